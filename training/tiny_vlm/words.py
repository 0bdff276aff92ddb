"""What pictures can show, and the categories of questions about them."""

from __future__ import annotations

CATEGORIES = ("attribute", "counting", "spatial", "ocr", "scene")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLORS = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (38, 90, 214),
    "yellow": (250, 208, 36),
    "purple": (142, 58, 176),
    "orange": (242, 128, 28),
}
SETTINGS = ("snow", "night", "desert", "sea", "meadow", "city")
PATTERNS = ("horizontal stripes", "vertical stripes", "diagonal stripes", "dots", "checks")
LETTERS = "ACEHKLPTXZ"
DIGITS = "234579"
GLYPHS = LETTERS + DIGITS
ROLES = ("label", "first", "second")  # of a glyph in a line or on a sign


def plural(shape: str) -> str:
    return shape + ("es" if shape == "cross" else "s")


def article(color: str) -> str:
    return "an" if color == "orange" else "a"
