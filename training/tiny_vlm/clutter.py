"""Clutter: 12 to 20 small shapes, mostly of one shape and colour, one of them unlike the rest.

>>> len(sample_clutter(7, "heldout").objects) in range(12, 21)
True
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from pictures import SIDE, Question, sample_until
from setting_picture import SettingPicture, random_place
from things import SceneObject, ask_color_and_shape, ask_places, ask_presence, ask_setting
from words import COLORS, SETTINGS, SHAPES, plural

GRID = 8  # cells on a side
CELL = SIDE // GRID  # units on a side
MAX_OBJECTS = 20
MAX_FEW = 5  # how often the less frequent shape or colour occurs at most


@dataclass(frozen=True)
class Clutter(SettingPicture):
    """`objects` has the odd one first."""

    kind: ClassVar[str] = "clutter"

    @property
    def content(self) -> str:
        shapes = sorted(f"{o.shape}/{o.color}/{o.cell}" for o in self.objects)
        return "|".join([self.kind, self.setting, *shapes])

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
    for shape, color, cell in drawn:
        center, size = random_place(rng, cell, (CELL, CELL), (9.0, 10.5), 0.3)
        objects.append(SceneObject(shape, color, cell, center, size))
    return Clutter(rng.choice(SETTINGS), tuple(objects), rng.randrange(2**31))
