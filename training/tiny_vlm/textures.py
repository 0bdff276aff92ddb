"""Textures: two to five large shapes, filled with stripes, dots or checks.

>>> all(item.pattern for item in sample_textures(7, "heldout").objects)
True
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from pictures import SIDE, Question, sample_until
from setting_picture import SettingPicture, random_place
from things import SceneObject, ask_color_and_shape, ask_presence, ask_setting, once
from words import COLORS, PATTERNS, SETTINGS, SHAPES

GRID = 3  # cells on a side
CELL = SIDE // GRID  # units on a side
MAX_OBJECTS = 5


@dataclass(frozen=True)
class Textures(SettingPicture):
    kind: ClassVar[str] = "textures"

    @property
    def content(self) -> str:
        shapes = sorted(f"{o.shape}/{o.color}/{o.pattern}/{o.cell}" for o in self.objects)
        return "|".join([self.kind, self.setting, *shapes])

    def questions(self, seed: int) -> list[Question]:
        rng = random.Random(f"{seed}/{self.content}")
        found = [
            *rng.sample(asked := ask_color_and_shape(self.objects, rng), k=min(2, len(asked))),
            ask_presence(self.objects, rng),
            ask_setting(self.setting, rng),
            *self._ask_patterns(rng),
            *self._ask_places(),
            *self._ask_counts(),
        ]
        rng.shuffle(found)
        return found

    def _ask_patterns(self, rng: random.Random) -> list[Question]:
        found = []
        shapes = [item.shape for item in self.objects]
        patterns = [item.pattern for item in self.objects]
        for item in self.objects:
            if item.shape in once(shapes):
                text = rng.choice(
                    [f"What pattern is the {item.shape}?", f"What pattern has the {item.shape}?"]
                )
                found.append(Question("attribute", "pattern", text, item.pattern))
            if item.pattern in once(patterns):
                text = f"What shape has {item.pattern}?"
                found.append(Question("attribute", "shape_of_pattern", text, item.shape))
        return found

    def _ask_places(self) -> list[Question]:
        """Ask for the place of each pattern that occurs once, and in a corner cell."""
        patterns = [item.pattern for item in self.objects]
        return [
            Question("spatial", "place", f"Where is the object with {item.pattern}?", item.place)
            for item in self.objects
            if item.pattern in once(patterns) and set(item.cell) <= {0, GRID - 1}
        ]

    def _ask_counts(self) -> list[Question]:
        """Ask for the count of the most frequent pattern, and of another in a third of pictures.

        Almost all counts would be 1 otherwise.
        """
        patterns = [item.pattern for item in self.objects]
        most, *others = sorted(sorted(set(patterns)), key=patterns.count, reverse=True)
        asked = [most, *others[: self.texture_seed % 3 == 0]]
        return [
            Question(
                "counting",
                "count_pattern",
                f"How many objects have {pattern}?",
                str(patterns.count(pattern)),
                "whole",
            )
            for pattern in asked
        ]


def sample_textures(seed: int, split: str) -> Textures:
    """Draw pictures from `seed` until one is in `split` ("train" or "heldout")."""
    return sample_until(_draw_textures, "textures/", seed, split)


def _draw_textures(rng: random.Random) -> Textures:
    cells = [(row, column) for row in range(GRID) for column in range(GRID)]
    # Corners come first in half of the pictures: only there is the place of a shape asked for.
    rng.shuffle(cells)
    if rng.random() < 0.5:
        cells.sort(key=lambda cell: set(cell) <= {0, GRID - 1}, reverse=True)
    repeated = rng.choice(PATTERNS)
    objects = []
    for cell in cells[: rng.randint(2, MAX_OBJECTS)]:
        center, size = random_place(rng, cell, (CELL, CELL), (25, 29), 1)
        pattern = repeated if rng.random() < 0.5 else rng.choice(PATTERNS)
        objects.append(
            SceneObject(
                rng.choice(SHAPES),
                rng.choice(list(COLORS)),
                cell,
                center,
                size,
                pattern,
                rng.uniform(0, 4),
            )
        )
    return Textures(rng.choice(SETTINGS), tuple(objects), rng.randrange(2**31))
