"""How an implementation is timed, and how it is shown to compute what ours does."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

SECONDS = 0.15  # aimed at per implementation and case
ROUND_SECONDS = 2e-4  # short calls are timed several at a time
SLOW_SECONDS = 0.4  # a call this long is timed three times


def time_call(benchmark: Any, function: Callable[[], Any], compiles: bool) -> Any:
    """Times a call with pytest-benchmark for about SECONDS, warmed up; returns its result.

    The first call compiles what is to be compiled and is never timed. Of slow calls that do not
    compile, it is the only one before the rounds.
    """
    seconds, result = _seconds(function)
    if compiles or seconds <= SLOW_SECONDS:
        seconds, _ = _seconds(function)
    if seconds > SLOW_SECONDS:
        rounds, iterations = 3, 1
    else:
        iterations = max(1, math.ceil(ROUND_SECONDS / seconds))
        rounds = min(max(round(SECONDS / (seconds * iterations)), 7), 500)
    benchmark.pedantic(function, rounds=rounds, iterations=iterations)
    return result


def _seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def close(ours: Tensor, theirs: Tensor, tolerance: float) -> bool:
    return torch.allclose(ours.float(), theirs.float(), rtol=tolerance, atol=tolerance)


def overlap(ours: Tensor, theirs: Tensor) -> float:
    """The share of indices [B, R] that both have. Rounding may flip a pick and what follows from
    it; something else computed shares hardly more than chance."""
    both = [len(set(a) & set(b)) for a, b in zip(ours.tolist(), theirs.tolist(), strict=True)]
    return sum(both) / ours.numel()


def worst_choice(
    features: Tensor, selected: Tensor, picks: Tensor, weights: Tensor | None = None
) -> float:
    """By how much the worst of the picks [B, M] is covered better than the least covered token was
    when it was picked, given the picks before it: similarities recomputed in float64. Infinite if a
    token is picked twice or is none. With ``weights`` above 0 [B, N], what is compared is weight
    times distance."""
    if picks.numel() and not 0 <= picks.min() <= picks.max() < features.shape[1]:
        return math.inf
    unit = torch.nn.functional.normalize(features.double(), dim=-1)

    def rows(tokens: Tensor) -> Tensor:
        return unit.gather(1, tokens[..., None].expand(-1, -1, unit.shape[2]))

    covered = torch.bmm(unit, rows(selected).transpose(1, 2)).amax(-1)
    covered.scatter_(1, selected, math.inf)
    worst = features.new_zeros((), dtype=torch.float64)
    for pick in picks.split(1, dim=1):
        distance = 1 - covered if weights is None else weights * (1 - covered)
        excess = distance.amax(1) - distance.gather(1, pick)[:, 0]
        worst = torch.maximum(worst, excess.max())
        similarity = torch.bmm(unit, rows(pick).transpose(1, 2))[..., 0]
        covered = covered.maximum(similarity).scatter(1, pick, math.inf)
    return float(worst)


def rows_agree(ours: Tensor, theirs: Tensor, tolerance: float) -> float:
    """The share of the vectors [B, R, D] that agree."""
    return float(((ours.float() - theirs.float()).abs().amax(-1) <= tolerance).float().mean())
