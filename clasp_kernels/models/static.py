"""How long the layers of a static cache are: no longer than what is kept in each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clasp_kernels.models.compat import fit_static_layers, static_lengths


class StaticLengths:
    """The lengths that one model's static caches have had so far.

    They never shrink from one prompt to the next, as those of transformers do not: compiled
    decoding then finds the shapes that it knows.
    """

    def __init__(self) -> None:
        self._longest: list[int] = []

    def fit(self, cache: Any, dropped: Sequence[int]) -> None:
        """Leave the columns out that are ``dropped`` in each layer, before anything is allocated.

        A cache that is not static, or allocated already, stays as it is.
        """
        lengths = static_lengths(cache)
        if lengths is None:
            return
        lengths = [length - columns for length, columns in zip(lengths, dropped, strict=True)]
        if len(self._longest) == len(lengths):
            lengths = [*map(max, lengths, self._longest)]
        self._longest = lengths
        fit_static_layers(cache, lengths)
