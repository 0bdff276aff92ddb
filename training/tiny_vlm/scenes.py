"""Rendered scenes with questions: the data of the tiny VLM, its demo, tests and benchmarks.

A scene has a setting, one to six coloured shapes on a 4 x 4 grid, and sometimes a sign with
two glyphs. It is determined by a seed, and only Pillow is needed:

>>> scene = sample_scene(6, "heldout")
>>> scene == sample_scene(6, "heldout")
True
>>> scene.render(96).size
(96, 96)
>>> sorted({question.category for question in scene.questions(seed=0)})
['attribute', 'counting', 'ocr', 'scene', 'spatial']

Train and held-out scenes cannot overlap: the split of a scene is a hash of its *content*
(setting, shapes, colours, cells, sign), so the same content is never in both splits.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from drawing import OUTLINE, draw_glyph
from pictures import SIDE, Box, Mark, Question, sample_until
from PIL import ImageDraw
from setting_picture import SettingPicture, random_place
from things import (
    SceneObject,
    ask_color_and_shape,
    ask_places,
    ask_presence,
    ask_setting,
    once,
)
from words import COLORS, GLYPHS, ROLES, SETTINGS, SHAPES, plural

GRID = 4  # cells on a side
CELL = SIDE // GRID  # units on a side
MAX_OBJECTS = 6


@dataclass(frozen=True)
class Sign:
    """A white board two cells wide that carries two glyphs."""

    text: str
    cell: tuple[int, int]  # row, left column
    box: Box

    def glyph_box(self, index: int) -> Box:
        left, top, right, bottom = self.box
        middle = (left + right) / 2
        return (left, top, middle, bottom) if index == 0 else (middle, top, right, bottom)


@dataclass(frozen=True)
class Scene(SettingPicture):
    kind: ClassVar[str] = "objects"
    sign: Sign | None

    @property
    def content(self) -> str:
        """The content of the scene without jitter and texture. It determines the split."""
        shapes = sorted(f"{o.shape}/{o.color}/{o.cell}" for o in self.objects)
        sign = f"{self.sign.text}/{self.sign.cell}" if self.sign else "-"
        return "|".join([self.setting, *shapes, sign])

    def marks(self) -> list[Mark]:
        glyphs = (
            [
                Mark(self.sign.glyph_box(index), glyph=glyph, role=ROLES[1 + index])
                for index, glyph in enumerate(self.sign.text)
            ]
            if self.sign
            else []
        )
        return super().marks() + glyphs

    def draw_signs(self, draw: ImageDraw.ImageDraw, scale: float) -> None:
        if self.sign:
            _draw_sign(draw, self.sign, scale)

    def questions(self, seed: int) -> list[Question]:
        """Return all unambiguous questions about the scene, shuffled by `seed`.

        `ocr` needs a sign and `spatial` a shape that occurs once, so some kinds may be missing.
        """
        rng = random.Random(f"{seed}/{self.content}")
        found: list[Question] = []
        for ask in (_ask_attribute, _ask_counting, _ask_spatial, _ask_ocr, _ask_scene):
            found.extend(ask(self, rng))
        rng.shuffle(found)
        return found


def sample_scene(seed: int, split: str) -> Scene:
    """Draw scenes from `seed` until one is in `split` ("train" or "heldout")."""
    return sample_until(_draw_scene, "", seed, split)


def _draw_scene(rng: random.Random) -> Scene:
    free = [(row, column) for row in range(GRID) for column in range(GRID)]
    sign = None
    if rng.random() < 0.7:
        row, column = rng.randrange(GRID), rng.randrange(GRID - 1)
        free.remove((row, column))
        free.remove((row, column + 1))
        left = column * CELL + rng.uniform(1, 5)
        top = row * CELL + rng.uniform(1, 3)
        text = rng.choice(GLYPHS) + rng.choice(GLYPHS)
        sign = Sign(text, (row, column), (left, top, left + 42, top + 20))
    rng.shuffle(free)
    # One shape occurs 1 to 4 times, because otherwise almost all counts would be 1. Others once.
    shapes = rng.sample(SHAPES, k=3)
    drawn = [shapes[0]] * rng.randint(1, 4) + shapes[1 : 1 + rng.randint(0, 2)]
    same_color = rng.choice(list(COLORS)) if rng.random() < 0.4 else None
    objects = []
    for shape, cell in zip(drawn, free, strict=False):
        center, size = random_place(rng, cell, (CELL, CELL), (15, 20), 1)
        color = same_color if same_color and rng.random() < 0.7 else rng.choice(list(COLORS))
        objects.append(SceneObject(shape, color, cell, center, size))
    return Scene(rng.choice(SETTINGS), tuple(objects), rng.randrange(2**31), sign)


# Questions ---------------------------------------------------------------------------------


def _ask_attribute(scene: Scene, rng: random.Random) -> list[Question]:
    return [*ask_color_and_shape(scene.objects, rng), ask_presence(scene.objects, rng)]


def _ask_counting(scene: Scene, rng: random.Random) -> list[Question]:
    shapes = [item.shape for item in scene.objects]
    colors = [item.color for item in scene.objects]
    shape = shapes[0] if rng.random() < 0.7 else rng.choice(shapes)  # shapes[0] may repeat
    color = max(sorted(set(colors)), key=colors.count) if rng.random() < 0.7 else rng.choice(colors)
    return [
        Question(
            "counting",
            "count_shape",
            rng.choice(
                [
                    f"How many {plural(shape)} are there?",
                    f"How many {plural(shape)} are in the picture?",
                ]
            ),
            str(shapes.count(shape)),
            "whole",
        ),
        Question(
            "counting",
            "count_color",
            f"How many {color} objects are there?",
            str(colors.count(color)),
            "whole",
        ),
        Question(
            "counting",
            "count_all",
            rng.choice(["How many objects are there?", "How many shapes are there?"]),
            str(len(shapes)),
            "whole",
        ),
    ]


def _ask_spatial(scene: Scene, rng: random.Random) -> list[Question]:
    found = ask_places(scene.objects, rng)
    shapes = [item.shape for item in scene.objects]
    single = [item for item in scene.objects if item.shape in once(shapes)]
    if len(single) >= 2:
        first, second = rng.sample(single, k=2)
        if first.cell[1] != second.cell[1]:
            answer = "left" if first.cell[1] < second.cell[1] else "right"
            text = f"Is the {first.shape} left or right of the {second.shape}?"
            found.append(Question("spatial", "left_right", text, answer))
        if first.cell[0] != second.cell[0]:
            answer = "above" if first.cell[0] < second.cell[0] else "below"
            text = f"Is the {first.shape} above or below the {second.shape}?"
            found.append(Question("spatial", "above_below", text, answer))
    return found


def _ask_ocr(scene: Scene, rng: random.Random) -> list[Question]:
    if scene.sign is None:
        return []
    text = rng.choice(
        ["What does the sign say?", "What is written on the sign?", "Read the text on the sign."]
    )
    return [Question("ocr", "sign", text, scene.sign.text)]


def _ask_scene(scene: Scene, rng: random.Random) -> list[Question]:
    return [ask_setting(scene.setting, rng)]


def _draw_sign(draw: ImageDraw.ImageDraw, sign: Sign, scale: float) -> None:
    draw.rectangle(
        [edge * scale for edge in sign.box],
        fill=(252, 252, 248),
        outline=OUTLINE,
        width=max(1, round(scale)),
    )
    for index, glyph in enumerate(sign.text):
        left, top, right, bottom = sign.glyph_box(index)
        draw_glyph(draw, glyph, ((left + right) / 2, (top + bottom) / 2), 19, scale)
