"""The shapes that stand in pictures, and questions that several kinds of picture share."""

from __future__ import annotations

import random
from dataclasses import dataclass

from pictures import Box, Mark, Question, place
from words import COLORS, SHAPES, article


@dataclass(frozen=True)
class SceneObject:
    """One shape. `center` and `size` are in units of a 96 x 96 picture.

    `pattern` fills it if it is not "", and starts at `phase` units.
    """

    shape: str
    color: str
    cell: tuple[int, int]  # row, column of the grid of its picture
    center: tuple[float, float]  # x, y
    size: float
    pattern: str = ""
    phase: float = 0.0

    @property
    def box(self) -> Box:
        (x, y), half = self.center, self.size / 2
        return x - half, y - half, x + half, y + half

    @property
    def place(self) -> str:
        return place(*self.center)

    @property
    def mark(self) -> Mark:
        return Mark(self.box, self.shape, self.color, pattern=self.pattern)


def once(values: list[str]) -> list[str]:
    """Return the values that occur once, in order."""
    return [value for value in dict.fromkeys(values) if values.count(value) == 1]


def ask_color_and_shape(objects: tuple[SceneObject, ...], rng: random.Random) -> list[Question]:
    """Ask for the colour of each shape that occurs once, and the shape of each such colour."""
    found = []
    shapes = [item.shape for item in objects]
    colors = [item.color for item in objects]
    for item in objects:
        if item.shape in once(shapes):
            text = rng.choice(
                [f"What color is the {item.shape}?", f"What is the color of the {item.shape}?"]
            )
            found.append(Question("attribute", "color", text, item.color))
        if item.color in once(colors):
            text = rng.choice(
                [f"What shape is the {item.color} object?", f"What is the {item.color} object?"]
            )
            found.append(Question("attribute", "shape", text, item.shape))
    return found


def ask_presence(objects: tuple[SceneObject, ...], rng: random.Random) -> Question:
    """Ask for one pair of a colour and a shape, which is there in half of the pictures."""
    shown = {(item.color, item.shape) for item in objects}
    if rng.random() < 0.5:
        color, shape = rng.choice(sorted(shown))
        answer = "yes"
    else:
        # Half of the absent pairs combine a colour and a shape that are both in the picture.
        colors = [item.color for item in objects]
        shapes = [item.shape for item in objects]
        mixed = sorted({(c, s) for c in colors for s in shapes} - shown)
        every = sorted({(c, s) for c in COLORS for s in SHAPES} - shown)
        color, shape = rng.choice(mixed if mixed and rng.random() < 0.5 else every)
        answer = "no"
    text = f"Is there {article(color)} {color} {shape}?"
    return Question("attribute", "presence", text, answer, "whole")


def ask_places(objects: tuple[SceneObject, ...], rng: random.Random) -> list[Question]:
    """Ask for the place of each shape that occurs once."""
    shapes = [item.shape for item in objects]
    found = []
    for item in objects:
        if item.shape in once(shapes):
            text = rng.choice(
                [f"Where is the {item.shape}?", f"In which corner is the {item.shape}?"]
            )
            found.append(Question("spatial", "place", text, item.place))
    return found


def ask_setting(setting: str, rng: random.Random) -> Question:
    text = rng.choice(
        ["Describe the scene.", "What is the setting?", "What kind of scene is this?"]
    )
    return Question("scene", "setting", text, setting, "whole")
