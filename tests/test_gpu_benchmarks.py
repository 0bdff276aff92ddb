"""The benchmarks on a GPU, as far as they go without one: nothing may be found out only there."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from case import Implementation, NotServed
from gpu import design_table, designs, device, run, targets
from gpu.clock import HostClock
from gpu.recording import GpuRow
from rows import COMPILED, DESIGN, EAGER, LIBRARY, OURS
from timing import worst_choice
from torch import Tensor

from clasp_kernels import backends, complete_tokens, use_backend

ROOT = Path(__file__).resolve().parent.parent
RATES = device.rates(4e12)


def small_cases(op: str) -> list[Any]:
    """Cases that differ only in size are the same small one."""
    return list({str(case.small()): case.small() for case in run.BENCHMARKS[op].gpu}.values())


@pytest.fixture
def nothing_is_compiled(monkeypatch: Any) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


def fastest_backend_to_try(op: str) -> str:
    """The interpreted Triton kernels where the op has them."""
    return backends.choose(op, "cpu", "triton").backend or "reference"


@pytest.mark.parametrize("op", run.BENCHMARKS)
def test_every_case_runs_and_everyone_computes_the_same(
    op, nothing_is_compiled, monkeypatch, tmp_path
) -> None:
    monkeypatch.setattr(run, "SETS", 1)  # interpreted kernels take a tenth of a second a call
    session = run.Session(HostClock(), "cpu")
    with use_backend(fastest_backend_to_try(op)):
        for case in small_cases(op):
            session.measure(case)
    assert not session.failures
    refused = [it for it in session.left_out if "takes GPU tensors" not in it["why"]]
    assert {it["implementation"] for it in refused} <= {"torch-cluster-fps", "torch-quickfps"}
    for case in session.cases:
        of_case = {row.implementation for row in session.rows if row.case == str(case)}
        of_case |= {it["implementation"] for it in session.left_out if it["case"] == str(case)}
        ways = designs.implementations(op, case.ours)
        assert of_case == {it.name for it in [*case.implementations(gpu=True), *ways]}
    run.write(tmp_path, session, {"processor": "none", "backend": {op: "it"}}, RATES)
    content = json.loads((tmp_path / "ops.json").read_text())
    assert len(content["rows"]) == len(session.rows)
    ours = [row for row in content["rows"] if row["kind"] == "ours"]
    assert all(row["best_baseline"] and row["times_floor"] > 0 for row in ours)
    assert set(ours[0]["events_us"]) == {"p20", "p50", "p80"}


def test_the_shapes_that_the_targets_are_about_come_first() -> None:
    names = [f"{case.op} {case}" for case in run.in_order(run.BENCHMARKS) if case.priority == 0]
    for target in (
        "fuse_layers 64x576x1024 bfloat16 L4",
        "select_pivots 1x576 float32 k32",
        "attention_salience B1 T64 S16384 bfloat16 H32/32 d128",
        "select_tokens 1x576x1024 bfloat16 R64 P32 random",
        "select_tokens 64x576x1024 bfloat16 R64 P32 random",
        "select_tokens 1x2880x1024 bfloat16 R320 P160 random",
        "select_tokens 1x576x1024 float32 R64 P32 random",
        "complete_tokens 1x576x1024 bfloat16 R64 P1 random",
    ):
        assert target in names


def test_a_short_run_times_the_targets_shapes_alone() -> None:
    first = [case for case in run.in_order(run.BENCHMARKS) if case.priority == 0]
    assert run.in_order(run.BENCHMARKS, least=0) == first


def test_every_target_is_about_a_case_that_comes_first() -> None:
    first = {(case.op, str(case)) for case in run.in_order(run.BENCHMARKS, least=0)}
    assert {(target.op, target.case) for target in targets.TARGETS} <= first


def test_what_compiles_for_long_is_timed_after_what_does_not() -> None:
    order = [(case.priority, case.compiles) for case in run.in_order(run.BENCHMARKS)]
    assert order == sorted(order) and (0, True) in order and (0, False) in order


def test_inputs_rotate_and_differ() -> None:
    for op in run.BENCHMARKS:
        case = small_cases(op)[0]
        first, again, other = (case.inputs("cpu", seed)[0] for seed in (0, 0, 1))
        if isinstance(first, list):
            first, again, other = first[0], again[0], other[0]
        assert torch.equal(first, again) and not torch.equal(first, other)


# What goes wrong costs its row and no more.


def session_of(broken: Implementation, **options: Any) -> run.Session:
    class Case(type(small_cases("gather_tokens")[0])):
        def baselines(self, gpu):
            return [broken, *super().baselines(gpu)]

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
    largest = max(run.BENCHMARKS["fuse_layers"].gpu, key=lambda case: case.counted().bytes)
    session.measure(largest)
    assert "GiB" in session.left_out[0]["why"] and not session.rows


# Our designs side by side.


@pytest.fixture
def on_the_cpu(monkeypatch: Any) -> list[str]:
    """The extension is taken to serve the CPU; says which design each call of ours was made with.
    ``refused`` of the case refuses, and the steps are wrong."""
    told: list[str] = []

    def choose(op: str, device: str, forced: str) -> backends.Choice:
        problem = f"there is no {forced} here" if forced == "triton" else None
        return backends.Choice(None if problem else forced, problem or "forced")

    class Case(type(small_cases("complete_tokens")[-1])):
        refused = "none"

        def ours(self, features: Tensor, selected: Tensor, num_tokens: int) -> Tensor:
            told.append(os.environ.get(designs.ENVIRONMENT, "nothing"))
            if told[-1] == self.refused:
                raise RuntimeError("CLASP_KERNELS_CUDA_DESIGN=matrix serves no more\nthan that")
            picks = complete_tokens(features, selected, num_tokens)
            return picks.flip(1) if told[-1] == "steps" else picks

        def baselines(self, gpu: bool) -> list[Implementation]:
            return []

    monkeypatch.setattr(designs.backends, "choose", choose)
    monkeypatch.setattr(designs, "use_backend", lambda name: contextlib.nullcontext())
    monkeypatch.delenv(designs.ENVIRONMENT, raising=False)
    small = small_cases("complete_tokens")[-1]
    fields = {name: getattr(small, name) for name in small.shape()}
    told.append(Case(**fields))  # type: ignore[arg-type]
    return told


def test_a_design_holds_for_all_of_its_calls_and_no_others(on_the_cpu) -> None:
    told, case = on_the_cpu, on_the_cpu.pop()
    session = run.Session(HostClock(), "cpu")
    with designs.design("auto"):
        session.measure(case)
        assert os.environ[designs.ENVIRONMENT] == "auto"
    assert designs.ENVIRONMENT not in os.environ
    in_turn = [name for name, before in zip(told, ["", *told], strict=False) if name != before]
    assert in_turn == ["auto", "matrix", "steps"]
    assert told.count("matrix") == told.count("auto") - 1  # which is called once to compare with
    rows = {row.implementation: row.kind for row in session.rows}
    assert rows == {OURS: "ours", "cuda-matrix": DESIGN}


def test_a_design_that_refuses_is_left_out_and_one_that_errs_fails(on_the_cpu) -> None:
    case = on_the_cpu.pop()
    type(case).refused = "matrix"
    session = run.Session(HostClock(), "cpu")
    session.measure(case)
    assert {it["implementation"]: it["why"] for it in session.left_out} == {
        "cuda-matrix": "CLASP_KERNELS_CUDA_DESIGN=matrix serves no more",
        "cuda-steps": "computes something else",
        "triton": "there is no triton here",
    }
    assert all(it["kind"] == DESIGN for it in session.left_out)
    assert len(session.failures) == 1 and "cuda-steps" in session.failures[0]
    assert all(row.note == "no graph: there is no GPU" for row in session.rows)


def test_a_design_that_fails_otherwise_is_not_taken_for_one_that_refuses(monkeypatch) -> None:
    choice = backends.Choice("cuda", "forced")
    monkeypatch.setattr(designs.backends, "choose", lambda *_: choice)
    with pytest.raises(RuntimeError, match="misaligned"), designs.forced("op", "cuda", "auto", ""):
        raise RuntimeError("misaligned address")
    with pytest.raises(NotServed), designs.forced("op", "cuda", "auto", ""):
        raise ValueError("CLASP_KERNELS_CUDA_DESIGN must be")


def invented(case: str, implementation: str, kind: str, median: float, by: str) -> GpuRow:
    times = {"p20": median, "p50": median, "p80": median}
    more = {"timed_by": by, "events_us": times, "graph_us": None, "peak_bytes": 0}
    return GpuRow("select_tokens", case, implementation, kind, median, 5, **more)


def test_designs_are_shown_by_shape() -> None:
    rows = [
        invented("a", OURS, "ours", 50.0, "graph"),
        invented("a", "cuda-steps", DESIGN, 49.0, "graph"),
        invented("a", "cuda-matrix", DESIGN, 61.0, "graph"),
        invented("a", "eager-gram", EAGER, 1500.0, "graph"),
        invented("a", "eager-per-image", EAGER, 1100.0, "events"),
        invented("a", "compiled", COMPILED, 900.0, "graph"),
        invented("a", "torch-cluster-fps", LIBRARY, 5000.0, "events"),
        invented("b", OURS, "ours", 400.0, "graph"),
        invented("b", "cuda-matrix", DESIGN, 399.0, "graph"),
        replace(invented("c", OURS, "ours", 1.0, "graph"), op="select_pivots"),
    ]
    where = {"op": "select_tokens", "case": "b"}
    left_out = [
        {**where, "implementation": "cuda-steps", "kind": DESIGN, "why": "too large"},
        {**where, "implementation": "eager-gram", "kind": EAGER, "why": "too slow"},
    ]
    header, _, first, second, *rest = design_table.markdown(rows, left_out).splitlines()
    names = "case|ours|cuda-matrix|cuda-steps|triton|best eager|torch.compile"
    assert [cell.strip() for cell in header.strip("|").split("|")] == [
        *names.split("|"),
        "others' kernels",
    ]
    assert first == (
        "| `select_tokens` a | 50 us | 61 us | **49 us** | - | 1.1 ms\\* (22.0x) "
        "| 900 us (18.0x) | 5 ms\\* (100.0x) |"
    )
    assert second == "| `select_tokens` b | 400 us | **399 us** | - | - | - | - | - |"
    assert rest[-1] == "- `select_tokens` b, cuda-steps: too large"
    assert "too slow" not in "".join(rest) and "select_pivots" not in "".join(rest)
    assert design_table.markdown(rows[-1:], []) == ""


def test_a_target_is_met_missed_or_not_measured() -> None:
    fused = replace(
        invented(targets.TARGETS[0].case, OURS, "ours", 20.0, "graph"), op="fuse_layers"
    )
    fused.times_floor = 1.25
    rows = [
        fused,
        invented(targets.ONE, OURS, "ours", 50.0, "graph"),
        invented(targets.ONE, "eager-gram", EAGER, 900.0, "graph"),
        invented(targets.ONE, "compiled", COMPILED, 1100.0, "graph"),
        invented(targets.MANY, OURS, "ours", 200.0, "graph"),
        invented(targets.MANY, "cuda-matrix", DESIGN, 1.0, "graph"),
    ]
    lines = targets.markdown(rows).splitlines()
    assert lines[2].endswith("| at least 85% of the copy bandwidth | 80% | missed |")
    verdicts = [line for line in lines if targets.ONE in line and "select" in line]
    assert verdicts == [
        f"| `select_tokens` {targets.ONE} | at most 60 us | 50 us | met |",
        f"| `select_tokens` {targets.ONE} | at least 20x the best eager and compiled | 18.0x "
        "| missed |",
    ]
    assert f"| `select_tokens` {targets.MANY} | at most 200 us | 200 us | met |" in lines
    assert sum(line.endswith("| - | not measured |") for line in lines) == len(targets.TARGETS) - 4


def test_picks_are_certified() -> None:
    """Token 3 is the farthest from 0, then 2; 1 is the same direction as 0."""
    features = torch.tensor([[[1.0, 0], [2, 0], [0, 3], [-1, 0], [3, 4]]])
    selected = torch.tensor([[0]])

    def worst(*picks: int) -> float:
        return worst_choice(features, selected, torch.tensor([picks]))

    assert worst(3, 2, 4) == worst(3) == 0
    assert worst(2) == pytest.approx(1.0) and worst(3, 4) == pytest.approx(0.6)
    assert worst(3, 3) == worst(0) == worst(-1) == worst(5) == float("inf")


# The whole run.


def test_a_run_writes_a_few_files_and_shows_the_designs(
    tmp_path, monkeypatch, capsys, nothing_is_compiled
) -> None:
    few = {op: small_cases(op)[:2] for op in ("complete_tokens", "select_pivots")}
    on_the_cpu, known = run.Session, {"processor": "P", "threads": 1, "torch": "2"}
    for owner, name, value in (
        (torch.cuda, "is_available", lambda: True),
        (run, "BENCHMARKS", {op: replace(run.BENCHMARKS[op], gpu=few[op]) for op in few}),
        (run, "CudaClock", HostClock),
        (run, "Session", lambda clock, _, deadline: on_the_cpu(clock, "cpu", deadline)),
        (run, "served", lambda ops: dict.fromkeys(ops, "cpu")),
        (run.gpu, "copy_rate", lambda: 4e12),
        (run.gpu, "describe", lambda backend, rate: known | {"backend": backend}),
        (sys, "argv", ["gpu", "--results", str(tmp_path)]),
    ):
        monkeypatch.setattr(owner, name, value)
    assert run.main() == 0
    assert {path.name for path in tmp_path.iterdir()} == {"ops.json", "designs.md", "targets.md"}
    content = json.loads((tmp_path / "ops.json").read_text())
    assert content["environment"]["backend"] == dict.fromkeys(few, "cpu")
    cases = {(row["op"], row["case"]) for row in content["rows"]}
    assert cases == {(op, str(case)) for op in few for case in few[op]}
    assert {it["implementation"] for it in content["left_out"]} >= {"cuda-matrix", "cuda-steps"}
    table = (tmp_path / "designs.md").read_text()
    assert table.startswith("P\n\n| case | ours | cuda-matrix |")
    output = capsys.readouterr().out
    assert table.removeprefix("P\n\n") in output and "backend auto" in output


def test_what_only_the_reference_serves_is_not_timed(monkeypatch, capsys) -> None:
    found = {"select_tokens": "cuda", "fuse_layers": "reference", "select_pivots": "triton"}
    monkeypatch.setattr(
        run.backends, "choose", lambda op, device, forced: backends.Choice(found[op], f"{op}.")
    )
    assert run.served(found) == {"select_tokens": "cuda", "select_pivots": "triton"}
    assert "fuse_layers: not timed, as fuse_layers." in capsys.readouterr().out


def test_without_a_gpu_it_says_so(tmp_path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu"), "--results", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip().endswith("torch sees no GPU.")
