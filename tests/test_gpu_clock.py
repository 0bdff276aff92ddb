"""Timing of calls on a GPU, tested with a fake device that only counts time."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from gpu.clock import CudaClock, percentiles


class FakeDevice:
    """A fake device. Flushing the cache takes 50 us, a call 10 to 30 us. A launch of either takes
    5 us more outside of a graph."""

    def __init__(self, monkeypatch: Any) -> None:
        self.now = 0.0
        self.recorded: list[float] | None = None
        fake = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = fake.now

            def elapsed_time(self, end: Any) -> float:
                return (end.at - self.at) / 1e3

        class Graph:
            def replay(self) -> None:
                fake.now += sum(self.work)

        @contextlib.contextmanager
        def graph(captured: Graph, capture_error_mode: str):
            fake.recorded = captured.work = []
            yield
            fake.recorded = None

        cuda = torch.cuda
        for name, value in {"Event": Event, "CUDAGraph": Graph, "graph": graph}.items():
            monkeypatch.setattr(cuda, name, value)
        monkeypatch.setattr(cuda, "synchronize", lambda: None)
        monkeypatch.setattr(cuda, "set_sync_debug_mode", lambda mode: None)
        self.clock = CudaClock.__new__(CudaClock)
        self.clock._writes = {}
        monkeypatch.setattr(self.clock, "write_all_of_the_cache", lambda: self.work(50.0))

    def work(self, microseconds: float) -> None:
        if self.recorded is not None:
            self.recorded.append(microseconds)
        else:
            self.now += microseconds + 5


def test_a_graph_is_timed_without_launches_and_writes(monkeypatch) -> None:
    fake = FakeDevice(monkeypatch)
    calls = [lambda took=took: fake.work(took) for took in (10.0, 20.0, 30.0)]
    times = fake.clock.time(calls)
    assert times.events.p50 == pytest.approx(25) and times.events.p20 == pytest.approx(15)
    assert times.graph is not None and times.graph.p50 == pytest.approx(20)
    assert times.no_graph == ""


def test_what_waits_is_not_captured(monkeypatch) -> None:
    fake = FakeDevice(monkeypatch)
    mode = ["default"]
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda it: mode.append(it))

    def call() -> None:
        if mode[-1] == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        fake.work(10.0)

    times = fake.clock.time([call])
    assert (times.graph, times.no_graph) == (None, "waits for the device")
    assert mode[-1] == "default"


def test_what_is_known_to_wait_is_not_captured(monkeypatch) -> None:
    fake = FakeDevice(monkeypatch)
    times = fake.clock.time([lambda: fake.work(10.0)], "reads a size back")
    assert (times.graph, times.no_graph) == (None, "reads a size back")
    assert times.events.p50 == pytest.approx(15)


def test_what_cannot_be_captured_says_so(monkeypatch) -> None:
    fake = FakeDevice(monkeypatch)

    def call() -> None:
        if fake.recorded is not None:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        fake.work(10.0)

    times = fake.clock.time([call])
    assert times.graph is None and times.events.p50 == pytest.approx(15)
    assert times.no_graph.endswith(
        "cannot be captured: operation not permitted when stream is capturing"
    )


def test_percentiles_are_values_that_were_measured() -> None:
    assert percentiles([5, 1, 4, 2, 3, 6, 7, 8, 9, 10, 11]) == (3, 6, 9)
    assert percentiles([7]) == (7, 7, 7)
