"""Draws settings, shapes, patterns and text, for every kind of picture."""

from __future__ import annotations

import random
from functools import cache
from math import cos, pi, sin

from pictures import SIDE
from PIL import Image, ImageChops, ImageDraw, ImageFont
from things import SceneObject
from words import COLORS

OUTLINE = (24, 24, 28)


def draw_setting(draw: ImageDraw.ImageDraw, setting: str, scale: float, rng: random.Random) -> None:
    width = max(1, round(scale))

    def box(x0: float, y0: float, x1: float, y1: float) -> list[float]:
        return [x0 * scale, y0 * scale, x1 * scale, y1 * scale]

    def anywhere() -> tuple[float, float]:
        return rng.uniform(0, SIDE), rng.uniform(0, SIDE)

    def fill(color: tuple[int, int, int]) -> None:
        shade = rng.randint(-10, 10)
        draw.rectangle(box(0, 0, SIDE, SIDE), fill=tuple(c + shade for c in color))

    if setting == "snow":
        fill((214, 224, 234))
        for _ in range(40):
            x, y = anywhere()
            draw.ellipse(box(x, y, x + 2, y + 2), fill=(250, 252, 255))
    elif setting == "night":
        fill((28, 32, 62))
        for _ in range(30):
            x, y = anywhere()
            draw.rectangle(box(x, y, x + 1, y + 1), fill=(232, 228, 190))
    elif setting == "desert":
        fill((222, 196, 146))
        for _ in range(14):
            x, y = anywhere()
            draw.arc(box(x - 12, y - 4, x + 12, y + 4), 180, 360, fill=(190, 158, 104), width=width)
    elif setting == "sea":
        fill((112, 172, 190))
        for _ in range(24):
            x, y = anywhere()
            draw.line(box(x, y, x + 9, y), fill=(206, 232, 238), width=width)
    elif setting == "meadow":
        fill((150, 188, 118))
        for _ in range(46):
            x, y = anywhere()
            draw.line(box(x, y, x + 1.5, y - 5), fill=(98, 140, 70), width=width)
    else:
        fill((148, 148, 152))
        left = rng.uniform(-6, 0)
        while left < SIDE:
            top = rng.uniform(0, 8)
            while top < SIDE:
                draw.rectangle(box(left, top, left + 3, top + 4), fill=(196, 190, 150))
                top += 8
            left += 8


def _star(x: float, y: float, half: float) -> list[tuple[float, float]]:
    return [
        (x + r * sin(i * pi / 5), y - r * cos(i * pi / 5))
        for i, r in enumerate([half * 1.08, half * 0.46] * 5)
    ]


def draw_shape(image: Image.Image, item: SceneObject, scale: float) -> None:
    width = max(1, round(scale * 0.8))
    _trace(ImageDraw.Draw(image), item, scale, COLORS[item.color], OUTLINE, width)
    if item.pattern:
        inside = Image.new("L", image.size)
        _trace(ImageDraw.Draw(inside), item, scale, 255, 0, width)
        figure = Image.new("L", image.size)
        _draw_pattern(ImageDraw.Draw(figure), item, scale)
        light = sum(COLORS[item.color]) > 400
        ink = (40, 36, 40) if light else (250, 250, 246)
        image.paste(ink, mask=ImageChops.multiply(inside, figure))


def _trace(
    draw: ImageDraw.ImageDraw,
    item: SceneObject,
    scale: float,
    fill: int | tuple[int, int, int],
    outline: int | tuple[int, int, int],
    width: int,
) -> None:
    x, y, half = item.center[0] * scale, item.center[1] * scale, item.size / 2 * scale
    square = [x - half, y - half, x + half, y + half]
    if item.shape == "circle":
        draw.ellipse(square, fill=fill, outline=outline, width=width)
    elif item.shape == "square":
        inner = half * 0.9
        draw.rectangle(
            [x - inner, y - inner, x + inner, y + inner], fill=fill, outline=outline, width=width
        )
    elif item.shape == "triangle":
        points = [(x, y - half), (x + half, y + half), (x - half, y + half)]
        draw.polygon(points, fill=fill, outline=outline, width=width)
    elif item.shape == "star":
        draw.polygon(_star(x, y, half), fill=fill, outline=outline, width=width)
    elif item.shape == "cross":
        arm = half * 0.36
        points = [
            (x - arm, y - half), (x + arm, y - half), (x + arm, y - arm), (x + half, y - arm),
            (x + half, y + arm), (x + arm, y + arm), (x + arm, y + half), (x - arm, y + half),
            (x - arm, y + arm), (x - half, y + arm), (x - half, y - arm), (x - arm, y - arm),
        ]  # fmt: skip
        draw.polygon(points, fill=fill, outline=outline, width=width)
    else:
        thickness = round(half * 0.42)
        draw.ellipse(square, outline=outline, width=thickness + 2 * width)
        rim = [x - half + width, y - half + width, x + half - width, y + half - width]
        draw.ellipse(rim, outline=fill, width=thickness)


def _draw_pattern(draw: ImageDraw.ImageDraw, item: SceneObject, scale: float) -> None:
    """Draw the pattern of a shape in white over its box."""
    left, top, right, bottom = item.box
    if item.pattern == "dots":
        pitch, radius = 5.5, 1.5
        for row in range(-1, int(item.size / pitch) + 2):
            for column in range(-1, int(item.size / pitch) + 2):
                x, y = left + column * pitch + item.phase, top + row * pitch + item.phase
                draw.ellipse(
                    [edge * scale for edge in (x - radius, y - radius, x + radius, y + radius)],
                    fill=255,
                )
        return
    if item.pattern == "checks":
        side = 4.0
        for row in range(-1, int(item.size / side) + 2):
            for column in range(row % 2 - 1, int(item.size / side) + 2, 2):
                x, y = left + column * side + item.phase, top + row * side + item.phase
                draw.rectangle(
                    [x * scale, y * scale, (x + side) * scale - 1, (y + side) * scale - 1], fill=255
                )
        return
    pitch, thickness = 5.0, 2.2
    at = item.phase - item.size
    while at < item.size:
        if item.pattern == "horizontal stripes":
            points = [(left, top + at), (right, top + at)]
        elif item.pattern == "vertical stripes":
            points = [(left + at, top), (left + at, bottom)]
        else:
            points = [(left + at, bottom), (left + at + item.size, top)]
        draw.line([(x * scale, y * scale) for x, y in points], 255, round(thickness * scale))
        at += pitch * (2**0.5 if item.pattern == "diagonal stripes" else 1)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def draw_glyph(
    draw: ImageDraw.ImageDraw,
    glyph: str,
    center: tuple[float, float],
    size: float,
    scale: float,
    fill: tuple[int, int, int] = (16, 16, 20),
) -> None:
    """Draw one glyph in a font of `size` units."""
    draw.text(
        (center[0] * scale, center[1] * scale),
        glyph,
        font=_font(round(size * scale)),
        fill=fill,
        anchor="mm",
    )
