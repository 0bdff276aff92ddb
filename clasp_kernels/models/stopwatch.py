"""Timing that never stalls the device it times."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

import torch


class Stopwatch:
    """Seconds spent in a ``with`` block, as the device sees it.

    On CUDA two events are recorded and only read when ``seconds`` is asked for, so that timing a
    prefill costs it no synchronisation. Elsewhere the host clock is read.

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
        # Events cannot be copied, and a stopped watch never changes again.
        return self

    @property
    def seconds(self) -> float:
        """The time taken; on CUDA this waits for the timed work to finish."""
        if self._seconds is None:
            assert self._events is not None, "a stopwatch is read after its block"
            start, stop = self._events
            stop.synchronize()
            self._seconds = start.elapsed_time(stop) / 1e3
            self._events = None
        return self._seconds
