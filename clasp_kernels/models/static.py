"""Shorten each layer of a static cache by the columns that are dropped in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clasp_kernels.models.compat import fit_static_layers, static_lengths


class StaticLengths:
    """The longest static cache of one model so far, layer by layer.

    As in transformers, lengths never shrink from one prompt to the next, so that compiled decoding
    is not recompiled for new shapes.
    """

    def __init__(self) -> None:
        self._longest: list[int] = []

    def fit(self, cache: Any, dropped: Sequence[int]) -> None:
        """Shorten each layer by its ``dropped`` columns, before the layer is allocated.

        A dynamic cache, and layers that are already allocated, stay as they are.
        """
        lengths = static_lengths(cache)
        if lengths is None:
            return
        lengths = [length - columns for length, columns in zip(lengths, dropped, strict=True)]
        if len(self._longest) == len(lengths):
            lengths = [*map(max, lengths, self._longest)]
        self._longest = lengths
        fit_static_layers(cache, lengths)
