"""Times taken in interleaved rounds, the peak of memory, and the size of a cache."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from count_malloc import result_and_peak

from clasp_kernels.models.stopwatch import Stopwatch

from .methods import Method, Runner

STEPS = 8  # tokens decoded in every round, after the first


@dataclass
class PrefillRow:
    """The record of one method on a batch of prompts. Times are in seconds."""

    method: str
    ideal: bool
    batch: int
    budget: int
    """Visual tokens kept of an image, on average over the decoder layers."""
    stages: list[list[int]]
    """Each stage: [layers that have run, visual tokens that go on]."""
    columns: list[list[int]]
    """The columns in the cache after the prefill: [layer, columns], for each layer that holds
    another number of them than the layer before it."""
    rounds: int
    first_token: float
    """The median time to the first token. It includes the vision tower."""
    first_token_min: float
    first_token_iqr: float
    per_token: float
    """The median time of each token after the first."""
    peak_bytes: int
    """The memory that the prefill takes at its peak, beyond the weights and the prompt."""
    kv_bytes: int
    """The size of all keys and values after the prefill."""
    ideal_ratio: float | None = None
    """The ideal's time to the first token over this method's, as the median over the rounds. None
    for an ideal and for the unpruned model."""
    selection: float | None = None
    """The median time of choosing tokens before the first token: scores, fusion, selection and, for
    the stage before the decoder, gathering. None where nothing is chosen."""
    selection_share: float | None = None
    """``selection`` as a share of the time to the first token: the median of the rounds' shares."""


class Times(NamedTuple):
    """The seconds of one method in each round."""

    first_token: list[float]
    per_token: list[float]
    selection: list[float]
    """The part of ``first_token`` that went into choosing tokens."""


def columns(cache: Any) -> list[int]:
    """The columns that the cache holds of each layer."""
    return [layer.keys.shape[-2] for layer in cache.layers]


def runs(values: list[int]) -> list[list[int]]:
    """[index, value] of the first value, and of each that differs from the one before."""
    return [
        [index, value]
        for index, value in enumerate(values)
        if index == 0 or value != values[index - 1]
    ]


def kv_bytes(cache: Any) -> int:
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def time_rounds(
    runners: Mapping[Method, Runner], device: torch.device, prompt_length: int, rounds: int
) -> dict[Method, Times]:
    """Run every method once in each round.

    Each round begins with another method, and every other round goes backwards, so that neither
    of two neighbours always profits from what the other left in the caches.
    """
    methods = list(runners)
    times = {method: Times([], [], []) for method in methods}
    gc.freeze()  # so that collecting before each run does not look through all modules
    for turn in range(rounds):
        order = methods[::-1] if turn % 2 else methods
        start = turn % len(methods)
        for method in order[start:] + order[:start]:
            first, rest = _time_once(runners[method], device, prompt_length)
            times[method].first_token.append(first)
            times[method].per_token.append(rest / STEPS)
            times[method].selection.append(runners[method].selection_seconds())
    gc.unfreeze()
    return times


def _time_once(runner: Runner, device: torch.device, prompt_length: int) -> tuple[float, float]:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
    with Stopwatch(device) as first:
        logits, cache = runner.prefill()
        tokens = logits.argmax(-1, keepdim=True)
    with Stopwatch(device) as rest:
        for step in range(STEPS):
            tokens = runner.step(tokens, cache, prompt_length + step).argmax(-1, keepdim=True)
    return first.seconds, rest.seconds


def ratio_of(ideal: Times, ours: Times) -> float:
    """The median of the ratios within rounds. A machine that slows down slows both times of one."""
    pairs = zip(ideal.first_token, ours.first_token, strict=True)
    return statistics.median(theirs / mine for theirs, mine in pairs)


def selection_share(times: Times) -> float:
    """The median of the shares within rounds of choosing tokens in the time to the first token."""
    pairs = zip(times.selection, times.first_token, strict=True)
    return statistics.median(selection / first for selection, first in pairs)


def interquartile_range(values: list[float]) -> float:
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4)
    return high - low


def peak_bytes(runner: Runner, device: torch.device) -> int:
    """The memory that a prefill takes at its peak, beyond what was there before it.

    On a CPU the process must have been started with ``count_malloc.counting()``.
    """
    if device.type == "cpu":
        return result_and_peak(runner.prefill)[1]
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    runner.prefill()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
