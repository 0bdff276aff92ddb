"""Time a block of code without synchronising the device."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

import torch


class Stopwatch:
    """Measure the seconds that the device spends in a ``with`` block.

    On CUDA, two events are recorded, and read only when ``seconds`` is accessed, so timing a
    prefill adds no synchronisation. On other devices the host clock is read.

    >>> with Stopwatch(torch.device("cpu")) as watch:
    ...     _ = torch.ones(3).sum()
    >>> watch.seconds > 0
    True
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: float | None = None
        self._started = 0.0
        self._events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None

    def __enter__(self) -> Stopwatch:
        if self._device.type == "cuda":
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._events = (start, stop)
            start.record(torch.cuda.current_stream(self._device))
        else:
            self._started = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._events is not None:
            self._events[1].record(torch.cuda.current_stream(self._device))
        else:
            self._seconds = time.perf_counter() - self._started

    def __deepcopy__(self, memo: dict[int, Any]) -> Stopwatch:
        # CUDA events cannot be copied, and a stopped watch is immutable.
        return self

    @property
    def seconds(self) -> float:
        """Elapsed seconds. On CUDA, reading this waits for the timed work to finish."""
        if self._seconds is None:
            assert self._events is not None, "a stopwatch is read after its block"
            start, stop = self._events
            stop.synchronize()
            self._seconds = start.elapsed_time(stop) / 1e3
            self._events = None
        return self._seconds
