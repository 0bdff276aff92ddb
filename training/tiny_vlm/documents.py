"""Documents: a page of short lines, each a label and a value of two digits.

>>> page = sample_document(7, "heldout")
>>> page.render(96).size, page == sample_document(7, "heldout")
((96, 96), True)
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from drawing import draw_glyph
from pictures import SIDE, Mark, Picture, Question, place, sample_until
from PIL import Image, ImageDraw
from words import DIGITS, LETTERS, ROLES

PITCH = 8  # units from line to line and from glyph to glyph
ROWS = SIDE // PITCH
MAX_LINES = len(LETTERS)
GLYPH_SIZE = 10  # units; a digit is 7 high
INKS = ((16, 16, 20), (30, 40, 110), (110, 24, 24), (20, 80, 40))


@dataclass(frozen=True)
class Line:
    """A label with a value behind it. `cell` is the place of the label in units of PITCH."""

    label: str
    value: str
    cell: tuple[int, int]  # row, column

    def centers(self) -> list[tuple[float, float]]:
        """Return where the label and the two digits stand, without the jitter of the page."""
        row, column = self.cell
        return [(PITCH * (column + step + 0.5), PITCH * (row + 0.5)) for step in (0, 2, 3)]


@dataclass(frozen=True)
class Document(Picture):
    kind: ClassVar[str] = "documents"
    lines: tuple[Line, ...]
    jitter: tuple[float, float]
    ink: tuple[int, int, int]
    paper: tuple[int, int, int]

    @property
    def content(self) -> str:
        lines = sorted(f"{line.label}/{line.value}/{line.cell}" for line in self.lines)
        return "|".join([self.kind, *lines])

    @property
    def surroundings(self) -> str:
        return "page"

    def marks(self) -> list[Mark]:
        (right, down), half = self.jitter, PITCH / 2
        found = []
        for line in self.lines:
            glyphs = line.label + line.value
            for glyph, role, (x, y) in zip(glyphs, ROLES, line.centers(), strict=True):
                x, y = x + right, y + down
                box = (x - half, y - half, x + half, y + half)
                found.append(Mark(box, glyph=glyph, line=line.label, role=role))
        return found

    def render(self, size: int = SIDE) -> Image.Image:
        scale = 2 * size / SIDE
        image = Image.new("RGB", (2 * size, 2 * size), self.paper)
        draw = ImageDraw.Draw(image)
        right, down = self.jitter
        for line in self.lines:
            centers = line.centers()
            for glyph, (x, y) in zip(line.label + line.value, centers, strict=True):
                draw_glyph(draw, glyph, (x + right, y + down), GLYPH_SIZE, scale, self.ink)
            label_x, label_y = centers[0]
            x, y = label_x + PITCH + right, label_y + down
            for dot in (-2.0, 1.5):  # a colon
                corners = (x - 0.7, y + dot - 0.7, x + 0.7, y + dot + 0.7)
                draw.ellipse([edge * scale for edge in corners], fill=self.ink)
        return image.reduce(2)

    def questions(self, seed: int) -> list[Question]:
        rng = random.Random(f"{seed}/{self.content}")
        found = [self._ask_count(), self._ask_presence(rng), self._ask_first_digit(rng)]
        for line in self.lines:
            text = rng.choice(
                [f"Read the value of {line.label}.", f"What value is written beside {line.label}?"]
            )
            found.append(Question("ocr", "value", text, line.value))
            text = rng.choice([f"Where is {line.label}?", f"In which corner is {line.label}?"])
            found.append(Question("spatial", "place", text, place(*line.centers()[0])))
        rng.shuffle(found)
        return found

    def _ask_count(self) -> Question:
        text = "How many lines are there?"
        return Question("counting", "count_lines", text, str(len(self.lines)), "whole")

    def _ask_presence(self, rng: random.Random) -> Question:
        shown = [line.label for line in self.lines]
        absent = sorted(set(LETTERS) - set(shown))
        there = not absent or rng.random() < 0.5
        text = f"Is there a line {rng.choice(shown if there else absent)}?"
        return Question("attribute", "presence", text, "yes" if there else "no", "whole")

    def _ask_first_digit(self, rng: random.Random) -> Question:
        first = [line.value[0] for line in self.lines]
        # Half of the time the most frequent digit, because most counts would be 1 otherwise.
        most = max(sorted(set(first)), key=first.count)
        digit = most if rng.random() < 0.5 else rng.choice(DIGITS)
        text = f"How many values start with {digit}?"
        return Question("counting", "count_digit", text, str(first.count(digit)), "whole")


def sample_document(seed: int, split: str) -> Document:
    """Draw documents from `seed` until one is in `split` ("train" or "heldout")."""
    return sample_until(_draw_document, "documents/", seed, split)


def _draw_document(rng: random.Random) -> Document:
    columns = (rng.randrange(3), 6 + rng.randrange(3))  # two columns of lines, six cells wide each
    cells = [(row, column) for row in range(ROWS) for column in columns]
    count = rng.randint(4, 9)
    labels = rng.sample(LETTERS, k=count)
    lines = tuple(
        Line(label, rng.choice(DIGITS) + rng.choice(DIGITS), cell)
        for label, cell in zip(labels, rng.sample(cells, k=count), strict=True)
    )
    shade = rng.randint(-8, 3)
    paper = tuple(rng.randint(238, 250) + shade for _ in range(3))
    jitter = (rng.uniform(-0.8, 0.8), rng.uniform(-0.4, 0.4))
    return Document(lines, jitter, rng.choice(INKS), paper)  # type: ignore[arg-type]
