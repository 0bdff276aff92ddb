"""Signs: a wide scene with one to three small signs of different colours, and small shapes.

>>> picture = sample_signs(7, "heldout")
>>> len(picture.signs) in (1, 2, 3), len(picture.signs[0].text)
(True, 2)
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from drawing import OUTLINE, draw_glyph
from pictures import SIDE, Box, Mark, Question, place, sample_until
from PIL import ImageDraw
from setting_picture import SettingPicture, random_place
from things import SceneObject, ask_color_and_shape, ask_places, ask_setting
from words import COLORS, GLYPHS, ROLES, SETTINGS, SHAPES, article

ROWS, COLUMNS = 6, 4
ROW, COLUMN = SIDE // ROWS, SIDE // COLUMNS  # units
WIDE, HIGH = 20, 13  # units of a sign
FRAME = 2  # units
GLYPH_SIZE = 11.5  # units; a capital is 8 high
MAX_SIGNS = 3
MAX_SHAPES = 3


@dataclass(frozen=True)
class SmallSign:
    """A white board with a coloured frame that carries two glyphs."""

    text: str
    color: str
    cell: tuple[int, int]  # row, column
    corner: tuple[float, float]  # left, top

    @property
    def box(self) -> Box:
        left, top = self.corner
        return left, top, left + WIDE, top + HIGH

    @property
    def place(self) -> str:
        left, top = self.corner
        return place(left + WIDE / 2, top + HIGH / 2)

    def glyph_center(self, index: int) -> tuple[float, float]:
        left, top = self.corner
        return left + WIDE / 2 + (-4 if index == 0 else 4), top + HIGH / 2

    @property
    def marks(self) -> list[Mark]:
        found = []
        for index, glyph in enumerate(self.text):
            x, y = self.glyph_center(index)
            box = (x - 4, y - 4.5, x + 4, y + 4.5)
            found.append(Mark(box, color=self.color, glyph=glyph, role=ROLES[1 + index]))
        return found


@dataclass(frozen=True)
class Signs(SettingPicture):
    kind: ClassVar[str] = "signs"
    signs: tuple[SmallSign, ...]

    @property
    def content(self) -> str:
        shapes = sorted(f"{o.shape}/{o.color}/{o.cell}" for o in self.objects)
        signs = sorted(f"{s.text}/{s.color}/{s.cell}" for s in self.signs)
        return "|".join([self.kind, self.setting, *shapes, *signs])

    def marks(self) -> list[Mark]:
        return super().marks() + [mark for sign in self.signs for mark in sign.marks]

    def draw_signs(self, draw: ImageDraw.ImageDraw, scale: float) -> None:
        for sign in self.signs:
            left, top, right, bottom = sign.box
            for inset, color in ((0, OUTLINE), (0.5, COLORS[sign.color]), (FRAME, (252, 252, 248))):
                corners = (left + inset, top + inset, right - inset, bottom - inset)
                draw.rectangle([edge * scale for edge in corners], fill=color)
            for index, glyph in enumerate(sign.text):
                draw_glyph(draw, glyph, sign.glyph_center(index), GLYPH_SIZE, scale)

    def questions(self, seed: int) -> list[Question]:
        rng = random.Random(f"{seed}/{self.content}")
        found = [
            *(q for q in ask_color_and_shape(self.objects, rng) if q.kind == "color"),
            *ask_places(self.objects, rng),
            ask_setting(self.setting, rng),
            *self._ask_signs(rng),
        ]
        rng.shuffle(found)
        return found

    def _ask_signs(self, rng: random.Random) -> list[Question]:
        count = str(len(self.signs))
        found = [Question("counting", "count_signs", "How many signs are there?", count, "whole")]
        for sign in self.signs:
            text = rng.choice(
                [
                    f"What does the {sign.color} sign say?",
                    f"Read the {sign.color} sign.",
                    f"What is written on the {sign.color} sign?",
                ]
            )
            found.append(Question("ocr", "sign", text, sign.text))
            text = rng.choice(
                [f"Where is the {sign.color} sign?", f"In which corner is the {sign.color} sign?"]
            )
            found.append(Question("spatial", "place_of_sign", text, sign.place))
        shown = [sign.color for sign in self.signs]
        there = rng.random() < 0.5
        color = rng.choice(shown if there else sorted(set(COLORS) - set(shown)))
        text = f"Is there {article(color)} {color} sign?"
        answer = "yes" if there else "no"
        found.append(Question("attribute", "presence", text, answer, "whole"))
        return found


def sample_signs(seed: int, split: str) -> Signs:
    """Draw pictures from `seed` until one is in `split` ("train" or "heldout")."""
    return sample_until(_draw_signs, "signs/", seed, split)


def _draw_signs(rng: random.Random) -> Signs:
    cells = [(row, column) for row in range(ROWS) for column in range(COLUMNS)]
    rng.shuffle(cells)
    signs = []
    for color in rng.sample(list(COLORS), k=rng.randint(1, MAX_SIGNS)):
        row, column = cells.pop()
        corner = (
            column * COLUMN + rng.uniform(0.5, COLUMN - WIDE - 0.5),
            row * ROW + rng.uniform(0.5, ROW - HIGH - 0.5),
        )
        text = rng.choice(GLYPHS) + rng.choice(GLYPHS)
        signs.append(SmallSign(text, color, (row, column), corner))
    objects = []
    for _ in range(rng.randint(1, MAX_SHAPES)):
        cell = cells.pop()
        center, size = random_place(rng, cell, (COLUMN, ROW), (10, 12), 1)
        objects.append(
            SceneObject(rng.choice(SHAPES), rng.choice(list(COLORS)), cell, center, size)
        )
    return Signs(rng.choice(SETTINGS), tuple(objects), rng.randrange(2**31), tuple(signs))
