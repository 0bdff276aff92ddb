"""Rendered scenes with questions: the data of the tiny VLM, its demo, tests and benchmarks.

A scene has a setting, one to six coloured shapes on a 4 x 4 grid, and sometimes a sign with
two glyphs. It is determined by a seed, and only Pillow is needed:

>>> scene = sample_scene(7, "heldout")
>>> scene == sample_scene(7, "heldout")
True
>>> scene.render(96).size
(96, 96)
>>> sorted({question.category for question in scene.questions(seed=0)}) == sorted(CATEGORIES)
True

Train and held-out scenes cannot overlap: the split of a scene is a hash of its *content*
(setting, shapes, colours, cells, sign), so the same content is never in both splits.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from functools import cache
from math import cos, pi, sin

from PIL import Image, ImageDraw, ImageFont

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
GLYPHS = "ACEHKLPTXZ234579"
GRID = 4  # cells on a side
CELL = 24  # units on a side; a scene is GRID * CELL = 96 units wide
SIDE = GRID * CELL
MAX_OBJECTS = 6
HELDOUT_ONE_IN = 8


@dataclass(frozen=True)
class SceneObject:
    """One shape. `center` and `size` are in units of a 96 x 96 scene."""

    shape: str
    color: str
    cell: tuple[int, int]  # row, column
    center: tuple[float, float]  # x, y
    size: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        (x, y), half = self.center, self.size / 2
        return x - half, y - half, x + half, y + half

    @property
    def place(self) -> str:
        row, column = self.cell
        vertical = "top" if row < GRID // 2 else "bottom"
        return f"{vertical} {'left' if column < GRID // 2 else 'right'}"


@dataclass(frozen=True)
class Sign:
    """A white board two cells wide that carries two glyphs."""

    text: str
    cell: tuple[int, int]  # row, left column
    box: tuple[float, float, float, float]

    def glyph_box(self, index: int) -> tuple[float, float, float, float]:
        left, top, right, bottom = self.box
        middle = (left + right) / 2
        return (left, top, middle, bottom) if index == 0 else (middle, top, right, bottom)


@dataclass(frozen=True)
class Question:
    """A question about one scene. `kind` names the template within its category."""

    category: str
    kind: str
    text: str
    answer: str


@dataclass(frozen=True)
class Scene:
    setting: str
    objects: tuple[SceneObject, ...]
    sign: Sign | None
    texture_seed: int

    @property
    def content(self) -> str:
        """The content of the scene without jitter and texture. It determines the split."""
        shapes = sorted(f"{o.shape}/{o.color}/{o.cell}" for o in self.objects)
        sign = f"{self.sign.text}/{self.sign.cell}" if self.sign else "-"
        return "|".join([self.setting, *shapes, sign])

    @property
    def split(self) -> str:
        digest = hashlib.blake2b(self.content.encode(), digest_size=8).digest()
        return "heldout" if int.from_bytes(digest, "big") % HELDOUT_ONE_IN == 0 else "train"

    def render(self, size: int = SIDE) -> Image.Image:
        """Draw an RGB picture of `size` x `size` pixels, antialiased by 2x supersampling."""
        scale = 2 * size / SIDE
        image = Image.new("RGB", (2 * size, 2 * size))
        draw = ImageDraw.Draw(image)
        _draw_setting(draw, self.setting, scale, random.Random(self.texture_seed))
        for item in self.objects:
            _draw_shape(draw, item, scale)
        if self.sign:
            _draw_sign(draw, self.sign, scale)
        return image.reduce(2)

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
    if split not in ("train", "heldout"):
        raise ValueError(f'split must be "train" or "heldout", got {split!r}')
    rng = random.Random(f"{split}/{seed}")
    while True:
        scene = _draw_scene(rng)
        if scene.split == split:
            return scene


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
    for shape, (row, column) in zip(drawn, free, strict=False):
        half = (size := rng.uniform(15, 20)) / 2
        x = column * CELL + rng.uniform(half + 1, CELL - half - 1)
        y = row * CELL + rng.uniform(half + 1, CELL - half - 1)
        color = same_color if same_color and rng.random() < 0.7 else rng.choice(list(COLORS))
        objects.append(SceneObject(shape, color, (row, column), (x, y), size))
    return Scene(rng.choice(SETTINGS), tuple(objects), sign, rng.randrange(2**31))


# Questions ---------------------------------------------------------------------------------


def _once(values: list[str]) -> list[str]:
    return [value for value in dict.fromkeys(values) if values.count(value) == 1]


def _plural(shape: str) -> str:
    return shape + ("es" if shape == "cross" else "s")


def _ask_attribute(scene: Scene, rng: random.Random) -> list[Question]:
    found = []
    shapes = [item.shape for item in scene.objects]
    colors = [item.color for item in scene.objects]
    for item in scene.objects:
        if item.shape in _once(shapes):
            text = rng.choice(
                [f"What color is the {item.shape}?", f"What is the color of the {item.shape}?"]
            )
            found.append(Question("attribute", "color", text, item.color))
        if item.color in _once(colors):
            text = rng.choice(
                [f"What shape is the {item.color} object?", f"What is the {item.color} object?"]
            )
            found.append(Question("attribute", "shape", text, item.shape))
    shown = {(item.color, item.shape) for item in scene.objects}
    if rng.random() < 0.5:
        color, shape = rng.choice(sorted(shown))
        answer = "yes"
    else:
        # Half of the absent pairs combine a colour and a shape that are both in the scene.
        mixed = sorted({(c, s) for c in colors for s in shapes} - shown)
        every = sorted({(c, s) for c in COLORS for s in SHAPES} - shown)
        color, shape = rng.choice(mixed if mixed and rng.random() < 0.5 else every)
        answer = "no"
    article = "an" if color == "orange" else "a"
    text = f"Is there {article} {color} {shape}?"
    found.append(Question("attribute", "presence", text, answer))
    return found


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
                    f"How many {_plural(shape)} are there?",
                    f"How many {_plural(shape)} are in the picture?",
                ]
            ),
            str(shapes.count(shape)),
        ),
        Question(
            "counting",
            "count_color",
            f"How many {color} objects are there?",
            str(colors.count(color)),
        ),
        Question(
            "counting",
            "count_all",
            rng.choice(["How many objects are there?", "How many shapes are there?"]),
            str(len(shapes)),
        ),
    ]


def _ask_spatial(scene: Scene, rng: random.Random) -> list[Question]:
    found = []
    shapes = [item.shape for item in scene.objects]
    single = [item for item in scene.objects if item.shape in _once(shapes)]
    for item in single:
        text = rng.choice([f"Where is the {item.shape}?", f"In which corner is the {item.shape}?"])
        found.append(Question("spatial", "place", text, item.place))
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
    text = rng.choice(
        ["Describe the scene.", "What is the setting?", "What kind of scene is this?"]
    )
    return [Question("scene", "setting", text, scene.setting)]


# Pictures ----------------------------------------------------------------------------------

_OUTLINE = (24, 24, 28)


def _draw_setting(
    draw: ImageDraw.ImageDraw, setting: str, scale: float, rng: random.Random
) -> None:
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


def _draw_shape(draw: ImageDraw.ImageDraw, item: SceneObject, scale: float) -> None:
    x, y, half = item.center[0] * scale, item.center[1] * scale, item.size / 2 * scale
    color, width = COLORS[item.color], max(1, round(scale * 0.8))
    square = [x - half, y - half, x + half, y + half]
    if item.shape == "circle":
        draw.ellipse(square, fill=color, outline=_OUTLINE, width=width)
    elif item.shape == "square":
        inner = half * 0.9
        draw.rectangle(
            [x - inner, y - inner, x + inner, y + inner],
            fill=color,
            outline=_OUTLINE,
            width=width,
        )
    elif item.shape == "triangle":
        points = [(x, y - half), (x + half, y + half), (x - half, y + half)]
        draw.polygon(points, fill=color, outline=_OUTLINE, width=width)
    elif item.shape == "star":
        draw.polygon(_star(x, y, half), fill=color, outline=_OUTLINE, width=width)
    elif item.shape == "cross":
        arm = half * 0.36
        points = [
            (x - arm, y - half), (x + arm, y - half), (x + arm, y - arm), (x + half, y - arm),
            (x + half, y + arm), (x + arm, y + arm), (x + arm, y + half), (x - arm, y + half),
            (x - arm, y + arm), (x - half, y + arm), (x - half, y - arm), (x - arm, y - arm),
        ]  # fmt: skip
        draw.polygon(points, fill=color, outline=_OUTLINE, width=width)
    else:
        thickness = round(half * 0.42)
        draw.ellipse(square, outline=_OUTLINE, width=thickness + 2 * width)
        rim = [x - half + width, y - half + width, x + half - width, y + half - width]
        draw.ellipse(rim, outline=color, width=thickness)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _draw_sign(draw: ImageDraw.ImageDraw, sign: Sign, scale: float) -> None:
    draw.rectangle(
        [edge * scale for edge in sign.box],
        fill=(252, 252, 248),
        outline=_OUTLINE,
        width=max(1, round(scale)),
    )
    for index, glyph in enumerate(sign.text):
        left, top, right, bottom = sign.glyph_box(index)
        draw.text(
            ((left + right) / 2 * scale, (top + bottom) / 2 * scale),
            glyph,
            font=_font(round(19 * scale)),
            fill=(16, 16, 20),
            anchor="mm",
        )
