"""What every kind of picture has: content, a split, pixels, questions, and marks.

A picture is determined by a seed and a split. The split of a picture is a hash of its *content*,
so the same content is never in both splits.
"""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

from PIL import Image

SIDE = 96  # units on a side; coordinates are in units whatever the size in pixels
HELDOUT_ONE_IN = 8

Box = tuple[float, float, float, float]  # left, top, right, bottom
Needs = Literal["spot", "whole"]
P = TypeVar("P", bound="Picture")


@dataclass(frozen=True)
class Question:
    """A question about one picture. `kind` names the template within its category.

    `needs` says whether the answer is in the spots that the question names, or takes all of the
    picture.
    """

    category: str
    kind: str
    text: str
    answer: str
    needs: Needs = "spot"


@dataclass(frozen=True)
class Mark:
    """Something that stands in `box`. What is "" does not apply.

    `line` is the label of the line of a document that a glyph belongs to; `role` is the part that
    a glyph has in its sign or line.
    """

    box: Box
    shape: str = ""
    color: str = ""
    glyph: str = ""
    pattern: str = ""
    line: str = ""
    role: str = ""


class Picture(ABC):
    kind: ClassVar[str]

    @property
    @abstractmethod
    def content(self) -> str:
        """The content of the picture without jitter and texture. It determines the split."""

    @property
    @abstractmethod
    def surroundings(self) -> str:
        """The setting, or "page"."""

    @abstractmethod
    def render(self, size: int = SIDE) -> Image.Image:
        """Draw an RGB picture of `size` x `size` pixels, antialiased by 2x supersampling."""

    @abstractmethod
    def questions(self, seed: int) -> list[Question]:
        """Return all unambiguous questions about the picture, shuffled by `seed`."""

    @abstractmethod
    def marks(self) -> list[Mark]:
        """Return all that stands in the picture."""

    @property
    def split(self) -> str:
        digest = hashlib.blake2b(self.content.encode(), digest_size=8).digest()
        return "heldout" if int.from_bytes(digest, "big") % HELDOUT_ONE_IN == 0 else "train"


def place(x: float, y: float) -> str:
    """Return the quarter of the picture that holds a point.

    >>> place(90, 3)
    'top right'
    """
    return f"{'top' if y < SIDE / 2 else 'bottom'} {'left' if x < SIDE / 2 else 'right'}"


def sample_until(draw: Callable[[random.Random], P], name: str, seed: int, split: str) -> P:
    """Draw pictures from a generator seeded by `name` and `seed` until one is in `split`."""
    if split not in ("train", "heldout"):
        raise ValueError(f'split must be "train" or "heldout", got {split!r}')
    rng = random.Random(f"{name}{split}/{seed}")
    while True:
        picture = draw(rng)
        if picture.split == split:
            return picture
