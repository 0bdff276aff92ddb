"""Schedules: the decoder layers at which visual tokens are dropped, and how many stay."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from clasp_kernels._integers import as_int
from clasp_kernels.policy._fields import finite_number
from clasp_kernels.policy._progressive import ascending_layers, falling_counts, falling_fractions

_STAGE_TEXT = re.compile(
    r"\s*(\d+)\s*:\s*((?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*", re.ASCII | re.IGNORECASE
)


@dataclass(frozen=True, init=False, repr=False)
class Schedule:
    """Number of visual tokens per image that stay after given decoder layers.

    ``Schedule({l: R})`` keeps R tokens after l decoder layers, so layers 0..l-1 still see every
    token; l = 0 prunes before the LLM. R is an int, the count, or a float, the fraction of the
    image's tokens. Counts must fall from stage to stage, and so must fractions. A count and a
    fraction can only be compared for a given image (see ``counts``).

    >>> Schedule({6: 64, 2: 128}).stages
    ((2, 128), (6, 64))
    >>> Schedule({2: 0.5, 4: 64})
    Schedule({2: 0.5, 4: 64})
    """

    stages: tuple[tuple[int, int | float], ...]
    # (visual tokens or None for fractions, decoder layers) that `progressive` solved for.
    _solved_for: tuple[int | None, int] | None = field(default=None, compare=False)

    def __init__(self, tokens_after: Mapping[int, int | float]) -> None:
        if not isinstance(tokens_after, Mapping) or not tokens_after:
            raise ValueError(
                f"tokens_after must map at least one decoder layer to the tokens kept, "
                f"got {tokens_after!r}"
            )
        kept = {}
        for given_layer, given_tokens in tokens_after.items():
            layer = _integer("a decoder layer", given_layer, at_least=0)
            kept[layer] = _count_or_fraction(f"tokens kept after layer {layer}", given_tokens)
        stages = tuple(sorted(kept.items()))
        for kind in (int, float):
            same_kind = [stage for stage in stages if isinstance(stage[1], kind)]
            for (layer, tokens), (next_layer, next_tokens) in pairwise(same_kind):
                if next_tokens >= tokens:
                    raise ValueError(
                        f"tokens kept must fall from stage to stage: {tokens} after layer {layer}, "
                        f"then {next_tokens} after layer {next_layer}"
                    )
        object.__setattr__(self, "stages", stages)

    @classmethod
    def input(cls, tokens: int | float) -> Schedule:
        """Return a schedule that prunes once, before the LLM, to ``tokens`` per image.

        >>> Schedule.input(16), Schedule.input(0.25)
        (Schedule({0: 16}), Schedule({0: 0.25}))
        """
        return cls({0: tokens})

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """Parse "layer:tokens,layer:tokens", the format that ``str`` writes.

        Tokens with a decimal point or an exponent are a fraction, others a count. Errors are
        ValueErrors that quote ``text``.

        >>> Schedule.parse("2:0.5, 4:64")
        Schedule({2: 0.5, 4: 64})
        >>> str(Schedule({2: 0.5, 4: 64}))
        '2:0.5,4:64'
        """
        kept: dict[int, int | float] = {}
        try:
            for part in text.split(","):
                match = _STAGE_TEXT.fullmatch(part)
                if match is None:
                    raise ValueError(
                        f"each stage must be layer:tokens, like 2:128 or 2:0.5, with commas "
                        f"between stages, got {part!r}"
                    )
                layer, tokens = int(match[1]), match[2]
                if layer in kept:
                    raise ValueError(f"each layer must be named once, but {layer} is named twice")
                kept[layer] = int(tokens) if tokens.isdigit() else float(tokens)
            return cls(kept)
        except ValueError as error:
            raise ValueError(f"schedule {text!r}: {error}") from None

    @classmethod
    def progressive(
        cls,
        average: int | float,
        layers: Sequence[int] = (2, 6, 15),
        num_layers: int = 32,
        num_tokens: int = 576,
    ) -> Schedule:
        """Return counts that fall by one ratio, with mean ``average`` over all decoder layers.

        Layers before the first stage see all N = ``num_tokens``. Stage k = 1, 2, ... keeps
        N * q**k tokens. The mean rises with the ratio q, and bisection finds the q in (0, 1) for
        which the mean is ``average``.

        An int ``average`` gives integer counts whose mean is at most half a token off. Each count
        is rounded in the direction that compensates the earlier rounding. Counts that would be
        equal or 0 are moved apart.

        A float ``average`` in (0, 1) is a fraction of the image's tokens, and gives fractions.
        ``num_tokens`` then has no effect.

        Raises a ValueError for layers that do not ascend within 0..``num_layers`` - 1, and for an
        average that no falling counts have; the message gives the bound.

        >>> Schedule.progressive(192)
        Schedule({2: 334, 6: 194, 15: 112})
        >>> Schedule.progressive(0.375, layers=(0, 4), num_layers=8)
        Schedule({0: 0.5, 4: 0.25})
        """
        num_layers = _integer("num_layers", num_layers, at_least=1)
        stages = ascending_layers(layers, num_layers)
        average = _count_or_fraction("average", average)
        kept: Sequence[int | float]
        counted = None
        if isinstance(average, int):
            counted = _integer("num_tokens", num_tokens, at_least=len(stages) + 1)
            kept = falling_counts(average, stages, num_layers, counted)
        else:
            kept = falling_fractions(average, stages, num_layers)
        schedule = cls(dict(zip(stages, kept, strict=True)))
        object.__setattr__(schedule, "_solved_for", (counted, num_layers))
        return schedule

    @property
    def layers(self) -> tuple[int, ...]:
        """For each stage, the number of decoder layers that have run when it drops tokens.

        >>> Schedule({6: 64, 2: 128}).layers
        (2, 6)
        """
        return tuple(layer for layer, _ in self.stages)

    @property
    def prunes_input_only(self) -> bool:
        """Whether the only stage is before the first decoder layer.

        >>> Schedule({0: 64}).prunes_input_only, Schedule({0: 64, 2: 32}).prunes_input_only
        (True, False)
        """
        return self.layers == (0,)

    def counts(self, num_tokens: int) -> tuple[tuple[int, float], ...]:
        """Return (layer, tokens) of each stage for an image with ``num_tokens`` visual tokens.

        A fraction becomes a float and is not rounded yet, because a profile's ``budget_scale``
        multiplies it first. A count is limited to ``num_tokens``. Raises a ValueError if a later
        stage keeps more than an earlier one, which can happen if counts and fractions are mixed.

        >>> Schedule({2: 0.5, 4: 64}).counts(576)
        ((2, 288.0), (4, 64))
        >>> Schedule({2: 128, 4: 64}).counts(100)
        ((2, 100), (4, 64))
        """
        num_tokens = _integer("num_tokens", num_tokens, at_least=1)
        wanted = tuple(
            (layer, tokens * num_tokens if isinstance(tokens, float) else min(tokens, num_tokens))
            for layer, tokens in self.stages
        )
        for (layer, tokens), (next_layer, next_tokens) in pairwise(wanted):
            if next_tokens > tokens:
                raise ValueError(
                    f"schedule {self} keeps more tokens at a later stage: of {num_tokens} visual "
                    f"tokens, {tokens} after layer {layer}, then {next_tokens} after layer "
                    f"{next_layer}"
                )
        return wanted

    def average(self, num_tokens: int, num_layers: int) -> float:
        """Return the mean number of visual tokens over all decoder layers.

        Layers before the first stage see ``num_tokens``; layers after a stage see its count from
        ``counts``. Raises the ValueErrors of ``counts``, and one for a stage at ``num_layers`` or
        later.

        >>> Schedule({2: 128, 6: 64}).average(num_tokens=576, num_layers=8)
        224.0
        """
        num_layers = self._check_layers(num_layers)
        steps = ((0, num_tokens), *self.counts(num_tokens), (num_layers, 0))
        seen = (tokens * (end - start) for (start, tokens), (end, _) in pairwise(steps))
        return sum(seen) / num_layers

    def check_fits(self, num_tokens: int | None, num_layers: int) -> None:
        """Raise a ValueError if the schedule does not fit the model and image size.

        Each stage needs a decoder layer after it. A schedule from ``progressive`` only has its mean
        with the ``num_layers`` it was solved for, and counts also need the ``num_tokens``. Pass
        None for ``num_tokens`` if images differ in their number of tokens: it is not checked then.

        >>> Schedule({2: 128, 6: 64}).check_fits(num_tokens=576, num_layers=6)
        Traceback (most recent call last):
        ValueError: schedule 2:128,6:64 drops tokens once 6 decoder layers have run, but ...
        """
        num_layers = _integer("num_layers", num_layers, at_least=1)
        tokens, layers = self._solved_for or (None, num_layers)
        if num_tokens is None:
            num_tokens = tokens or 1
        num_tokens = _integer("num_tokens", num_tokens, at_least=1)
        if tokens is None and layers != num_layers:
            raise ValueError(
                f"schedule was solved for {layers} decoder layers, but this model has "
                f"{num_layers}: give num_layers= to Schedule.progressive"
            )
        if tokens is not None and (tokens, layers) != (num_tokens, num_layers):
            raise ValueError(
                f"schedule was solved for {tokens} visual tokens in {layers} decoder layers, but "
                f"this model has {num_tokens} in {num_layers}: give num_tokens= and num_layers= "
                f"to Schedule.progressive"
            )
        self._check_layers(num_layers)

    def _check_layers(self, num_layers: int) -> int:
        num_layers = _integer("num_layers", num_layers, at_least=1)
        if self.layers[-1] >= num_layers:
            raise ValueError(
                f"schedule {self} drops tokens once {self.layers[-1]} decoder layers have run, but "
                f"the model has {num_layers} and nothing runs after the last: layers must be in "
                f"0..{num_layers - 1}"
            )
        return num_layers

    def __eq__(self, other: object) -> bool:
        # Compare the repr, because 1 (one token) == 1.0 (all tokens) in Python.
        return repr(self) == repr(other) if isinstance(other, Schedule) else NotImplemented

    def __str__(self) -> str:
        return ",".join(f"{layer}:{tokens}" for layer, tokens in self.stages)

    def __repr__(self) -> str:
        return f"Schedule({dict(self.stages)})"


def _integer(name: str, value: object, at_least: int) -> int:
    """Return ``value`` as an int, or raise a ValueError that names ``name``."""
    number = as_int(value)
    if number is None or number < at_least:
        raise ValueError(f"{name} must be an integer of at least {at_least}, got {value!r}")
    return number


def _count_or_fraction(name: str, value: object) -> int | float:
    """Return ``value`` as an int (count) or a float (fraction), or raise a ValueError."""
    allowed = "an integer of at least 1 (tokens) or a float above 0 and at most 1 (a fraction)"
    count = as_int(value)
    if count is not None and count >= 1:
        return count
    fraction = finite_number(name, value, allowed) if count is None else 0.0
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
    return fraction
