"""How long calls take on the device, and how much memory at their peak.

Before every call that counts, a buffer larger than the L2 cache is written, and the calls rotate
over several sets of inputs, so that none finds its inputs in the cache. Two times are taken:

- between events around a call from Python: with the gaps in which the device waits for launches;
- in a graph of several such calls, replayed, less a graph of the writes alone: without the gaps.

What waits for the device cannot be captured, and has only the first.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch

Call = Callable[[], Any]
SECONDS = 0.06  # aimed at for each of the two times
LEAST_MICROSECONDS = 0.01  # what the difference of two graphs is taken for at least


class Percentiles(NamedTuple):
    p20: float
    p50: float
    p80: float


@dataclass(frozen=True)
class Times:
    """In microseconds."""

    events: Percentiles
    graph: Percentiles | None
    rounds: int
    no_graph: str = ""
    """Why there is no time of a graph."""


class Clock(Protocol):
    def time(self, calls: Sequence[Call], waits: str = "") -> Times:
        """``waits``: why the calls cannot be captured, where torch would not notice."""
        ...

    def peak_bytes(self, call: Call) -> int: ...


def percentiles(microseconds: Sequence[float]) -> Percentiles:
    ordered = sorted(microseconds)
    # The nearest of the values measured, so that few rounds need no interpolation.
    return Percentiles(*(ordered[round(share * (len(ordered) - 1))] for share in (0.2, 0.5, 0.8)))


def rounds_for(seconds: float, most: int) -> int:
    return min(max(round(SECONDS / max(seconds, 1e-9)), 5), most)


class HostClock:
    """The time of one call on the host, for trying out what is timed where there is no GPU."""

    def time(self, calls: Sequence[Call], waits: str = "") -> Times:
        took = []
        for call in calls:
            start = time.perf_counter()
            call()
            took.append(1e6 * (time.perf_counter() - start))
        return Times(percentiles(took), None, len(took), "there is no GPU")

    def peak_bytes(self, call: Call) -> int:
        call()
        return 0


class CudaClock:
    def __init__(self) -> None:
        size = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        self._buffer = torch.empty(2 * max(size, 64 << 20), dtype=torch.uint8, device="cuda")
        self._writes: dict[int, float] = {}

    def write_all_of_the_cache(self) -> None:
        self._buffer.zero_()

    def time(self, calls: Sequence[Call], waits: str = "") -> Times:
        for call in calls:
            call()
        seconds = self._between_events(calls, 3).p50 / 1e6
        rounds = rounds_for(seconds, 200)
        events = self._between_events(calls, rounds)
        if reason := waits or self._waits(calls[0]):
            return Times(events, None, rounds, reason)
        try:
            return Times(events, self._in_a_graph(calls, seconds), rounds)
        except RuntimeError as error:
            torch.cuda.synchronize()
            reason = f"cannot be captured: {str(error).strip().splitlines()[0][:200]}"
            return Times(events, None, rounds, reason)

    def _between_events(self, calls: Sequence[Call], rounds: int) -> Percentiles:
        pairs = []
        for turn in range(rounds):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self.write_all_of_the_cache()
            start.record()
            calls[turn % len(calls)]()
            end.record()
            pairs.append((start, end))
        torch.cuda.synchronize()
        return percentiles([1e3 * start.elapsed_time(end) for start, end in pairs])

    def _waits(self, call: Call) -> str:
        """Why the call cannot be captured, or nothing."""
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            call()
        except RuntimeError as error:
            if "synchronizing CUDA operation" not in str(error):
                raise
            return "waits for the device"
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return ""

    def _in_a_graph(self, calls: Sequence[Call], seconds: float) -> Percentiles:
        turns = len(calls) * math.ceil((10 if seconds < 2e-3 else 1) / len(calls))
        if turns not in self._writes:
            nothing = [lambda: None] * turns
            took = self._replays(self._capture(nothing), 30)
            self._writes[turns] = statistics.median(took)
        graph = self._capture([calls[turn % len(calls)] for turn in range(turns)])
        took = self._replays(graph, rounds_for(turns * seconds, 40))
        each = [max((it - self._writes[turns]) / turns, LEAST_MICROSECONDS) for it in took]
        return percentiles(each)

    def _capture(self, calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as a compiler's, may do what a capture forbids.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            for call in calls:
                self.write_all_of_the_cache()
                call()
        return graph

    def _replays(self, graph: torch.cuda.CUDAGraph, rounds: int) -> list[float]:
        graph.replay()
        pairs = []
        for _ in range(rounds):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            pairs.append((start, end))
        torch.cuda.synchronize()
        return [1e3 * start.elapsed_time(end) for start, end in pairs]

    def peak_bytes(self, call: Call) -> int:
        """Beyond inputs and outputs; of a call whose kernels are compiled already."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        torch.cuda.synchronize()
        outputs = torch.cuda.memory_allocated() - before
        del result
        return max(torch.cuda.max_memory_allocated() - before - outputs, 0)
