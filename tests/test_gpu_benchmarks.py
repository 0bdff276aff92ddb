"""The benchmarks on a GPU, as far as they go without one: nothing may be found out only there."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu import device, run
from gpu.clock import CudaClock, HostClock, percentiles
from gpu.implementation import Implementation

from clasp_kernels import backends, use_backend

ROOT = Path(__file__).resolve().parent.parent
RATES = device.rates(4e12)


def small_cases(op: str) -> list[Any]:
    """Cases that differ only in size are the same small one."""
    return list({str(case.small()): case.small() for case in run.CASES[op]()}.values())


@pytest.fixture
def nothing_is_compiled(monkeypatch: Any) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


def fastest_backend_to_try(op: str) -> str:
    """The interpreted Triton kernels where the op has them."""
    return backends.choose(op, "cpu", "triton").backend or "reference"


@pytest.mark.parametrize("op", run.CASES)
def test_every_case_runs_and_everyone_computes_the_same(op, nothing_is_compiled, tmp_path) -> None:
    session = run.Session(HostClock(), "cpu")
    with use_backend(fastest_backend_to_try(op)):
        for case in small_cases(op):
            session.measure(case)
    assert not session.failures
    assert not session.left_out
    for case in session.cases:
        of_case = {row.implementation for row in session.rows if row.case == str(case)}
        assert of_case == {"clasp_kernels", *(it.name for it in case.implementations())}
    run.write(tmp_path, session, {"gpu": "none"}, RATES)
    content = json.loads((tmp_path / f"{op}.json").read_text())
    assert len(content["rows"]) == len(session.rows)
    ours = [row for row in content["rows"] if row["kind"] == "ours"]
    assert all(row["best_baseline"] and row["times_floor"] > 0 for row in ours)
    assert set(ours[0]["events_us"]) == {"p20", "p50", "p80"}
    assert not {"priority", "compiles"} & ours[0]["shape"].keys()


@pytest.mark.parametrize("op", run.CASES)
def test_cases_have_names_of_their_own(op) -> None:
    cases = list(run.CASES[op]())
    assert len({str(case) for case in cases}) == len(cases)
    assert all(case.op == op and case.dtype in str(case) for case in cases)


def test_the_shapes_that_the_targets_are_about_come_first() -> None:
    names = [f"{case.op} {case}" for case in run.in_order(run.CASES) if case.priority == 0]
    for target in (
        "fuse_layers 64x576x1024 bfloat16 L4",
        "select_pivots 1x576 float32 k32",
        "attention_salience B1 T64 S16384 bfloat16 H32/32 d128",
        "select_tokens 1x576x1024 bfloat16 R64 P32 random",
        "select_tokens 64x576x1024 bfloat16 R64 P32 random",
        "select_tokens 1x2880x1024 bfloat16 R320 P160 random",
    ):
        assert target in names


def test_inputs_rotate_and_differ() -> None:
    for op in run.CASES:
        case = small_cases(op)[0]
        first, again, other = (case.inputs("cpu", seed)[0] for seed in (0, 0, 1))
        if isinstance(first, list):
            first, again, other = first[0], again[0], other[0]
        assert torch.equal(first, again) and not torch.equal(first, other)


# What goes wrong costs its row and no more.


def session_of(broken: Implementation, **options: Any) -> run.Session:
    class Case(type(small_cases("gather_tokens")[0])):
        def implementations(self):
            return [broken, *super().implementations()]

    case = small_cases("gather_tokens")[0]
    session = run.Session(HostClock(), "cpu", **options)
    with use_backend("reference"):
        session.measure(Case(case.batch, case.num_tokens, case.dim, case.dtype))
    return session


def raising(error: Exception) -> Implementation:
    def function(*_: Any) -> None:
        raise error

    return Implementation("broken", "eager", lambda: function)


def minus(tokens: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    return -tokens[:, : indices.shape[1]]


@pytest.mark.parametrize(
    ("broken", "why", "failures"),
    [
        (raising(torch.OutOfMemoryError("x")), "out of memory", 0),
        (raising(ValueError("first\nsecond")), "ValueError: first", 1),
        (
            Implementation("broken", "eager", lambda: lambda t, i: -t[:, : i.shape[1]]),
            "computes something else",
            1,
        ),
    ],
)
def test_what_fails_is_left_out_and_said(broken, why, failures, nothing_is_compiled) -> None:
    session = session_of(broken)
    assert [(it["implementation"], it["why"]) for it in session.left_out] == [("broken", why)]
    assert len(session.failures) == failures
    ours = next(row for row in session.rows if row.kind == "ours")
    assert f"left out: broken ({why})" in ours.note
    assert {row.implementation for row in session.rows} > {"clasp_kernels", "eager-gather"}


def test_nothing_is_begun_when_the_time_is_up() -> None:
    session = session_of(raising(ValueError()), deadline=0.0)
    assert not session.rows and not session.failures
    assert [it["why"] for it in session.left_out] == ["the time was up"]


def test_what_is_too_large_is_left_out_before_it_is_made() -> None:
    session = run.Session(HostClock(), "cpu")
    largest = max(run.CASES["fuse_layers"](), key=lambda case: case.counted().bytes)
    session.measure(largest)
    assert "GiB" in session.left_out[0]["why"] and not session.rows


# The clock, on a device whose time is counted.


class FakeDevice:
    """Writing the cache takes 50 us, a call 10 to 30, a launch of either 5 more but in a graph."""

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


def test_without_a_gpu_it_says_so(tmp_path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu"), "--results", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip().endswith("torch sees no GPU.")
