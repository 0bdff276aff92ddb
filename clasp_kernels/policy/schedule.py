"""Where visual tokens are dropped, and how many stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from clasp_kernels._integers import as_int


@dataclass(frozen=True, init=False, repr=False)
class Schedule:
    """Tokens kept once a number of decoder layers have run.

    ``Schedule({l: R})`` keeps R visual tokens per image after l decoder layers, so layers
    0..l-1 still see every token; 0 prunes before the LLM. Counts must fall from stage to stage.

    >>> Schedule({6: 64, 2: 128}).stages
    ((2, 128), (6, 64))
    >>> Schedule.input(32)
    Schedule({0: 32})
    """

    stages: tuple[tuple[int, int], ...]

    def __init__(self, tokens_after: Mapping[int, int]) -> None:
        if not isinstance(tokens_after, Mapping) or not tokens_after:
            raise ValueError(
                f"tokens_after must map at least one decoder layer to the tokens kept, "
                f"got {tokens_after!r}"
            )
        kept = {}
        for given_layer, given_tokens in tokens_after.items():
            layer, tokens = as_int(given_layer), as_int(given_tokens)
            if layer is None or layer < 0:
                raise ValueError(
                    f"a decoder layer must be an integer of at least 0, got {given_layer!r}"
                )
            if tokens is None or tokens < 1:
                raise ValueError(
                    f"tokens kept after layer {layer} must be an integer of at least 1, "
                    f"got {given_tokens!r}"
                )
            kept[layer] = tokens
        stages = tuple(sorted(kept.items()))
        for (layer, tokens), (next_layer, next_tokens) in pairwise(stages):
            if next_tokens >= tokens:
                raise ValueError(
                    f"tokens kept must fall from stage to stage: {tokens} after layer {layer}, "
                    f"then {next_tokens} after layer {next_layer}"
                )
        object.__setattr__(self, "stages", stages)

    @classmethod
    def input(cls, tokens: int) -> Schedule:
        """Prune once, before the LLM: every decoder layer sees ``tokens`` per image.

        >>> Schedule.input(16).stages
        ((0, 16),)
        """
        return cls({0: tokens})

    @property
    def prunes_input_only(self) -> bool:
        """Whether all dropping happens before the first decoder layer."""
        return len(self.stages) == 1 and self.stages[0][0] == 0

    def __repr__(self) -> str:
        return f"Schedule({dict(self.stages)})"
