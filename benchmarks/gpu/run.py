"""Runs the benchmarks, the most important cases of every op first, and writes a file per op.

    python3 benchmarks/gpu --results FOLDER
    python3 benchmarks/gpu --results FOLDER --ops fuse_layers select_tokens --seconds 120

Files are written after every case, so that whatever ends a run costs no more than that case. What
was left out, and why, is in them too.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import rows as recorded
import table
import torch
from machine import Rates
from rows import OURS, SAME

from clasp_kernels import backends, use_backend

from . import device as gpu
from . import fusion, gathering, salience, selection
from .clock import Clock, CudaClock, Percentiles, Times
from .implementation import MOST_INPUT_BYTES, Case, Implementation, Inputs

SLOW_SECONDS = 1.0
SETS_BYTES = 6 << 30  # for all sets of inputs together
SETS = 3
CASES: dict[str, Callable[[], Iterable[Case]]] = {
    "fuse_layers": fusion.cases,
    "attention_salience": salience.cases,
    "select_tokens": selection.select_cases,
    "select_pivots": selection.pivot_cases,
    "gather_tokens": gathering.gather_cases,
    "merge_tokens": gathering.merge_cases,
    "complete_tokens": selection.complete_cases,
}


@dataclass
class Row:
    """``median_us`` is that of the graph where there is one, else that between events."""

    op: str
    case: str
    implementation: str
    kind: str
    median_us: float
    timed_by: str
    events_us: Percentiles
    graph_us: Percentiles | None
    rounds: int
    peak_bytes: int
    shape: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    # Only ours have these.
    best_baseline: str | None = None
    speedup_over_best_baseline: float | None = None
    speedup_by_events: float | None = None
    floor_us: float | None = None
    floor_bound: str | None = None
    times_floor: float | None = None


@dataclass
class Session:
    clock: Clock
    device: str
    deadline: float = float("inf")
    """On time.monotonic's clock; nothing is begun after it."""
    cases: list[Case] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """What should not have happened: ours failing, or anyone computing something else."""

    def leave_out(self, case: Case, implementation: str, why: str) -> None:
        self.left_out.append(
            {"op": case.op, "case": str(case), "implementation": implementation, "why": why}
        )
        print(f"  left out: {implementation}: {why}", flush=True)

    def fail(self, case: Case, implementation: str, why: str) -> None:
        self.failures.append(f"{case.op} {case} {implementation}: {why}")
        self.leave_out(case, implementation, why)

    def measure(self, case: Case) -> None:
        self.cases.append(case)
        print(f"{case.op} {case}", flush=True)
        if time.monotonic() > self.deadline:
            return self.leave_out(case, OURS, "the time was up")
        if case.counted().bytes > MOST_INPUT_BYTES:
            gib = case.counted().bytes >> 30
            return self.leave_out(case, OURS, f"{gib} GiB are more than a baseline has room for")
        sets = min(SETS, max(1, SETS_BYTES // case.counted().bytes))
        inputs = [case.inputs(self.device, seed) for seed in range(sets)]
        try:
            expected = case.ours(*inputs[0])
            self._synchronize()
        except Exception as error:
            return self.fail(case, OURS, _first_line(error))
        before = len(self.left_out)
        ours = Implementation(OURS, "ours", lambda: case.ours)
        for implementation in [ours, *case.implementations()]:
            if time.monotonic() > self.deadline:
                self.leave_out(case, implementation.name, "the time was up")
                continue
            try:
                self._measure(case, implementation, inputs, expected)
            except torch.OutOfMemoryError:
                self.leave_out(case, implementation.name, "out of memory")
            except Exception as error:
                self.fail(case, implementation.name, _first_line(error))
            self._give_back()
        missing = [f"{it['implementation']} ({it['why']})" for it in self.left_out[before:]]
        for row in self.rows:
            if row.kind == "ours" and (row.op, row.case) == (case.op, str(case)) and missing:
                row.note = "; ".join(filter(None, [row.note, "left out: " + ", ".join(missing)]))

    def _measure(
        self, case: Case, implementation: Implementation, inputs: list[Inputs], expected: Any
    ) -> None:
        function = implementation.make()
        adapted = [implementation.adapt(one) for one in inputs]
        result = function(*adapted[0])
        if implementation.kind in SAME and not case.agree(inputs[0], expected, result):
            return self.fail(case, implementation.name, "computes something else")
        del result
        self._synchronize()
        start = time.perf_counter()
        function(*adapted[0])
        self._synchronize()
        seconds = time.perf_counter() - start
        if seconds > SLOW_SECONDS and implementation.kind != "ours":
            return self.leave_out(case, implementation.name, f"takes {seconds:.1f} s")
        calls = [lambda one=one: function(*one) for one in adapted]
        peak = self.clock.peak_bytes(calls[0])
        row = make_row(case, implementation, self.clock.time(calls), peak)
        self.rows.append(row)
        print(f"  {row.implementation:28} {row.median_us:11.2f} us by {row.timed_by}", flush=True)

    def _synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def _give_back(self) -> None:
        """So that a baseline finds as much memory as any other."""
        if self.device == "cuda":
            gc.collect()
            torch.cuda.empty_cache()


def _first_line(error: Exception) -> str:
    text = str(error).strip() or "no message"
    return f"{type(error).__name__}: {text.splitlines()[0][:300]}"


def make_row(case: Case, implementation: Implementation, times: Times, peak: int) -> Row:
    best = times.graph or times.events
    shape = {k: v for k, v in case.shape().items() if k not in ("priority", "compiles")}
    return Row(
        case.op,
        str(case),
        implementation.name,
        implementation.kind,
        round(best.p50, 3),
        "graph" if times.graph else "events",
        Percentiles(*(round(it, 3) for it in times.events)),
        times.graph and Percentiles(*(round(it, 3) for it in times.graph)),
        times.rounds,
        peak,
        shape,
        f"no graph: {times.no_graph}" if times.no_graph else "",
    )


def compare(rows: list[Row], cases: Iterable[Case], rates: Rates) -> None:
    """Fills in what our rows are compared with, by the median and, apart, between events."""
    counted = {(case.op, str(case)): case.counted() for case in cases}
    for op in {row.op for row in rows}:
        of_op = [row for row in rows if row.op == op]
        work = {row.case: counted[op, row.case] for row in of_op}
        recorded.compare(of_op, work, rates)  # type: ignore[arg-type]
        for row in of_op:
            same = [it for it in of_op if it.case == row.case and it.kind in SAME]
            if row.kind == "ours" and same:
                best = min(it.events_us.p50 for it in same)
                row.speedup_by_events = round(best / row.events_us.p50, 2)


def write(folder: Path, session: Session, environment: dict[str, Any], rates: Rates) -> None:
    compare(session.rows, session.cases, rates)
    for op in {row.op for row in session.rows} | {it["op"] for it in session.left_out}:
        content = {
            "environment": environment,
            "rows": [asdict(row) for row in session.rows if row.op == op],
            "left_out": [it for it in session.left_out if it["op"] == op],
        }
        for row in content["rows"]:
            for name in ("events_us", "graph_us"):
                if row[name] is not None:
                    row[name] = dict(zip(Percentiles._fields, row[name], strict=True))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{op}.json").write_text(json.dumps(content, indent=2) + "\n")


def in_order(ops: Iterable[str]) -> list[Case]:
    """The most important cases of every op first."""
    return sorted((case for op in ops for case in CASES[op]()), key=lambda case: case.priority)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, required=True, help="the folder of the files")
    parser.add_argument("--ops", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--backend", choices=backends.NAMES, default="triton")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin nothing later")
    arguments = parser.parse_args()
    deadline = time.monotonic() + arguments.seconds
    if not torch.cuda.is_available():
        print("gpu benchmarks: torch sees no GPU.", file=sys.stderr)
        return 2
    copy_rate = gpu.copy_rate()
    environment = gpu.describe(arguments.backend, copy_rate)
    print(json.dumps(environment, indent=2), flush=True)
    session = Session(CudaClock(), "cuda", deadline)
    ops = []
    for op in arguments.ops:
        choice = backends.choose(op, "cuda", arguments.backend)
        if choice.backend is None:
            print(f"{op}: not timed, as {choice.reason}", flush=True)
        else:
            ops.append(op)
    with torch.no_grad(), use_backend(arguments.backend):
        for case in in_order(ops):
            session.measure(case)
            write(arguments.results, session, environment, gpu.rates(copy_rate))
    table.show(session.rows, environment)  # type: ignore[arg-type]
    for failure in session.failures:
        print(f"FAILED {failure}", file=sys.stderr)
    return 1 if session.failures else 0
