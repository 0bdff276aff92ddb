"""The solver of ``Schedule.progressive``: counts that fall by one ratio from stage to stage."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

from clasp_kernels._integers import as_int
from clasp_kernels.policy._fields import round_half_up


def ascending_layers(layers: object, num_layers: int) -> list[int]:
    """Return ``layers`` as ints; raise a ValueError unless they ascend in 0..``num_layers`` - 1."""
    given = [as_int(layer) for layer in layers] if isinstance(layers, Iterable) else []
    found = [layer for layer in given if layer is not None]
    ascending = all(a < b for a, b in pairwise((-1, *found, num_layers)))
    if not found or len(found) < len(given) or not ascending:
        raise ValueError(
            f"layers must be one or more ascending integers in 0..{num_layers - 1}, as num_layers "
            f"is {num_layers}, got {layers!r}"
        )
    return found


def falling_fractions(average: float, layers: Sequence[int], num_layers: int) -> list[float]:
    """Return q, q**2, ... for the q in (0, 1) whose mean over decoder layers is ``average``.

    ``layers`` are the stages. Layers before the first stage keep all tokens, a fraction of 1.
    """
    before = layers[0] / num_layers
    if not before < average < 1:
        raise ValueError(
            f"average as a fraction must be above {before:g} and below 1, got {average}"
            + _cost_before(layers[0], before)
        )
    spans = _spans(layers, num_layers)
    below, above = 0.0, 1.0
    while below < (ratio := (below + above) / 2) < above:
        mean = (layers[0] + sum(span * ratio**k for k, span in enumerate(spans, 1))) / num_layers
        if mean <= average:
            below = ratio
        else:
            above = ratio
    return [below**k for k in range(1, len(layers) + 1)]


def falling_counts(
    average: int, layers: Sequence[int], num_layers: int, num_tokens: int
) -> list[int]:
    """Return ``num_tokens`` times ``falling_fractions`` as strictly falling integers of at least 1.

    Their mean over decoder layers is at most half a token from ``average``.
    """
    spans, num_stages = _spans(layers, num_layers), len(layers)
    _check_reachable(average, layers[0], spans, num_tokens)
    # The wanted sum over stages of tokens times layers.
    total = average * num_layers - num_tokens * layers[0]
    wanted = [
        num_tokens * fraction
        for fraction in falling_fractions(average / num_tokens, layers, num_layers)
    ]
    counts: list[int] = []
    owed = 0.0
    for stage, (tokens, span) in enumerate(zip(wanted, spans, strict=True)):
        # Round in the direction that reduces the error so far, which stays within half the longest
        # span. Clamp to the neighbouring integers, else a short stage after a long one would take
        # over the whole error.
        count = round_half_up(tokens + owed / span)
        count = min(max(count, math.floor(tokens)), math.ceil(tokens))
        # Stay below the previous stage, and leave room for the later stages to fall to 1.
        count = min(max(count, num_stages - stage), (counts or [num_tokens])[-1] - 1)
        owed += span * (tokens - count)
        counts.append(count)
    # The error exceeds half a token only if the last clamp moved counts. A step of one token
    # changes the mean by at most one token, so a step towards `average` cannot jump over the
    # accepted range.
    while 2 * abs(error := total - _kept(counts, spans)) > num_layers:
        step = 1 if error > 0 else -1
        bounds = (num_tokens, *counts, 0)
        stage = next(
            stage
            for stage, count in enumerate(counts)
            if bounds[stage] > count + step > bounds[stage + 2]
        )
        counts[stage] += step
    return counts


def _check_reachable(average: int, first: int, spans: list[int], num_tokens: int) -> None:
    """Raise a ValueError if no falling counts have a mean within half a token of ``average``."""
    num_stages, num_layers = len(spans), first + sum(spans)
    before = first * num_tokens
    one_each = (before + sum(spans)) / num_layers
    fewest = (before + _kept(range(num_stages, 0, -1), spans)) / num_layers
    most = (
        before + _kept(range(num_tokens - 1, num_tokens - 1 - num_stages, -1), spans)
    ) / num_layers
    at_least = math.ceil(max(one_each, fewest - 0.5))
    at_most = min(math.floor(most + 0.5), num_tokens - 1)
    if at_least <= average <= at_most:
        return
    # A few tokens over a late stage may have no mean within half a token of an integer.
    allowed = f"in {at_least}..{at_most} visual tokens" if at_least <= at_most else "a fraction"
    raise ValueError(
        f"average must be {allowed}, as counts fall from num_tokens = {num_tokens} over "
        f"{num_stages} stage{'s' * (num_stages > 1)}, got {average}"
        + (_cost_before(first, before / num_layers) if average < at_least else "")
    )


def _cost_before(first: int, mean: float) -> str:
    if first == 0:
        return ""
    return (
        f"; the layers before the first stage ({first}) already make the mean at least {mean:g}. "
        f"Use an earlier first stage (0 prunes before the LLM)"
    )


def _spans(layers: Sequence[int], num_layers: int) -> list[int]:
    """Return the number of decoder layers from each stage to the next stage, or to the end."""
    return [end - start for start, end in pairwise((*layers, num_layers))]


def _kept(counts: Iterable[int], spans: list[int]) -> int:
    """Return the sum over stages of tokens times layers."""
    return sum(count * span for count, span in zip(counts, spans, strict=True))
