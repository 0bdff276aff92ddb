"""Pictures of shapes before a setting: what all kinds but documents have in common."""

from __future__ import annotations

import random
from dataclasses import dataclass

from drawing import draw_setting, draw_shape
from pictures import SIDE, Mark, Picture
from PIL import Image, ImageDraw
from things import SceneObject


@dataclass(frozen=True)
class SettingPicture(Picture):
    setting: str
    objects: tuple[SceneObject, ...]
    texture_seed: int

    @property
    def surroundings(self) -> str:
        return self.setting

    def marks(self) -> list[Mark]:
        return [item.mark for item in self.objects]

    def render(self, size: int = SIDE) -> Image.Image:
        scale = 2 * size / SIDE
        image = Image.new("RGB", (2 * size, 2 * size))
        draw = ImageDraw.Draw(image)
        draw_setting(draw, self.setting, scale, random.Random(self.texture_seed))
        for item in self.objects:
            draw_shape(image, item, scale)
        self.draw_signs(draw, scale)
        return image.reduce(2)

    def draw_signs(self, draw: ImageDraw.ImageDraw, scale: float) -> None:
        """Draw the signs over the shapes; most kinds have none."""


def random_place(
    rng: random.Random,
    cell: tuple[int, int],
    cell_size: tuple[float, float],
    sizes: tuple[float, float],
    margin: float,
) -> tuple[tuple[float, float], float]:
    """Draw the center (x, y) and the size of a shape that keeps `margin` to the edges of its cell.

    `cell` is row and column, `cell_size` width and height in units, `sizes` the smallest and the
    largest.
    """
    (row, column), (width, height) = cell, cell_size
    half = (size := rng.uniform(*sizes)) / 2
    x = column * width + rng.uniform(half + margin, width - half - margin)
    y = row * height + rng.uniform(half + margin, height - half - margin)
    return (x, y), size
