"""The kinds of picture, and pictures of any kind.

>>> [sample(kind, 3, "train").kind for kind in KINDS] == list(KINDS)
True
"""

from __future__ import annotations

from collections.abc import Callable

from clutter import sample_clutter
from documents import sample_document
from pictures import Picture
from scenes import sample_scene
from signs import sample_signs
from textures import sample_textures

KINDS: dict[str, Callable[[int, str], Picture]] = {
    "objects": sample_scene,
    "documents": sample_document,
    "clutter": sample_clutter,
    "textures": sample_textures,
    "signs": sample_signs,
}


# Which categories of questions a kind has: the cells of every table by kind and category.
CATEGORIES_OF = {
    "objects": ("attribute", "counting", "spatial", "ocr", "scene"),
    "documents": ("attribute", "counting", "spatial", "ocr"),
    "clutter": ("attribute", "counting", "spatial", "scene"),
    "textures": ("attribute", "counting", "spatial", "scene"),
    "signs": ("attribute", "counting", "spatial", "ocr", "scene"),
}


def sample(kind: str, seed: int, split: str) -> Picture:
    """Draw a picture of `kind` from `seed` that is in `split` ("train" or "heldout")."""
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    return KINDS[kind](seed, split)
