"""Clutter: 12 to 20 small shapes, mostly of one shape and colour, one of them unlike the rest.

>>> len(sample_clutter(7, "heldout").objects) in range(12, 21)
True
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from drawing import draw_setting, draw_shape
from pictures import SIDE, Mark, Picture, Question, sample_until
from PIL import Image, ImageDraw
from things import SceneObject, ask_color_and_shape, ask_places, ask_presence, ask_setting
from words import COLORS, SETTINGS, SHAPES, plural

GRID = 8  # cells on a side
CELL = SIDE // GRID  # units on a side
MAX_OBJECTS = 20
MAX_FEW = 5  # how often the less frequent shape or colour occurs at most


@dataclass(frozen=True)
class Clutter(Picture):
    kind: ClassVar[str] = "clutter"
    setting: str
    objects: tuple[SceneObject, ...]  # the odd one first
    texture_seed: int

    @property
    def content(self) -> str:
        shapes = sorted(f"{o.shape}/{o.color}/{o.cell}" for o in self.objects)
        return "|".join([self.kind, self.setting, *shapes])

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
        return image.reduce(2)

    def questions(self, seed: int) -> list[Question]:
        rng = random.Random(f"{seed}/{self.content}")
        found = [
            *ask_color_and_shape(self.objects, rng),
            ask_presence(self.objects, rng),
            *ask_places(self.objects, rng),
            ask_setting(self.setting, rng),
            *self._ask_counts(),
        ]
        rng.shuffle(found)
        return found

    def _ask_counts(self) -> list[Question]:
        """Ask for the count of each shape and colour that occurs at most MAX_FEW + 1 times."""
        found = []
        shapes = [item.shape for item in self.objects]
        colors = [item.color for item in self.objects]
        for shape in dict.fromkeys(shapes[1:]):
            if (count := shapes.count(shape)) <= MAX_FEW + 1:
                text = f"How many {plural(shape)} are there?"
                found.append(Question("counting", "count_shape", text, str(count), "whole"))
        for color in dict.fromkeys(colors[1:]):
            if (count := colors.count(color)) <= MAX_FEW + 1:
                text = f"How many {color} objects are there?"
                found.append(Question("counting", "count_color", text, str(count), "whole"))
        return found


def sample_clutter(seed: int, split: str) -> Clutter:
    """Draw pictures from `seed` until one is in `split` ("train" or "heldout")."""
    return sample_until(_draw_clutter, "clutter/", seed, split)


def _draw_clutter(rng: random.Random) -> Clutter:
    count = rng.randint(12, MAX_OBJECTS) - 1  # besides the odd one
    odd, many, few = rng.sample(SHAPES, k=3)
    shapes = [few] * rng.randint(1, MAX_FEW)
    shapes += [many] * (count - len(shapes))
    odd_color, many_color, *few_colors = rng.sample(list(COLORS), k=4)
    colors = [color for color in few_colors for _ in range(rng.randint(1, MAX_FEW))]
    colors += [many_color] * (count - len(colors))
    rng.shuffle(shapes)
    rng.shuffle(colors)
    if rng.random() < 0.5:
        odd_color = rng.choice([many_color, *few_colors])
    cells = [(row, column) for row in range(GRID) for column in range(GRID)]
    drawn = zip([odd, *shapes], [odd_color, *colors], rng.sample(cells, k=count + 1), strict=True)
    objects = []
    for shape, color, (row, column) in drawn:
        half = (size := rng.uniform(9.0, 10.5)) / 2
        x = column * CELL + rng.uniform(half + 0.3, CELL - half - 0.3)
        y = row * CELL + rng.uniform(half + 0.3, CELL - half - 0.3)
        objects.append(SceneObject(shape, color, (row, column), (x, y), size))
    return Clutter(rng.choice(SETTINGS), tuple(objects), rng.randrange(2**31))
