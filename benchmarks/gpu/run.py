"""Runs the benchmarks, the most important cases of every op first, and writes `ops.json`.

    python3 benchmarks/gpu --results FOLDER
    python3 benchmarks/gpu --results FOLDER --ops fuse_layers select_tokens --seconds 120
    python3 benchmarks/gpu --results FOLDER --targets        # only the targets' shapes

Files are written after every case, so that whatever ends a run costs no more than that case. What
was left out, and why, is in `ops.json` too. Ours is the backend that serves by itself; where there
are several ways of computing an op, each has a row of its own beside it, and `designs.md` shows
them. `targets.md` says how far ours are from the targets.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ops
import table
import torch
from case import Case, Implementation, Inputs, NotServed, first_line
from machine import Rates
from rows import DESIGN, note_left_out

from clasp_kernels import backends, use_backend

from . import design_table, designs, recording, targets
from . import device as gpu
from .clock import Clock, CudaClock
from .recording import GpuRow

SLOW_SECONDS = 1.0
SETS_BYTES = 6 << 30  # for all sets of inputs together
SETS = 3
MOST_INPUT_BYTES = 40 << 30  # of one set of inputs; baselines that stack them need a multiple
BENCHMARKS = ops.load_all()


@dataclass
class Session:
    clock: Clock
    device: str
    deadline: float = float("inf")
    """On time.monotonic's clock; nothing is begun after it."""
    cases: list[Case] = field(default_factory=list)
    rows: list[GpuRow] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """What should not have happened: ours failing, or anyone computing something else."""

    def leave_out(self, case: Case, implementation: Implementation, why: str) -> None:
        self.left_out.append(
            {
                "op": case.op,
                "case": str(case),
                "implementation": implementation.name,
                "kind": implementation.kind,
                "why": why,
            }
        )
        print(f"  left out: {implementation.name}: {why}", flush=True)

    def fail(self, case: Case, implementation: Implementation, why: str) -> None:
        self.failures.append(f"{case.op} {case} {implementation.name}: {why}")
        self.leave_out(case, implementation, why)

    def measure(self, case: Case) -> None:
        self.cases.append(case)
        print(f"{case.op} {case}", flush=True)
        ours, *baselines = case.implementations(gpu=True)
        if time.monotonic() > self.deadline:
            return self.leave_out(case, ours, "the time was up")
        if case.counted().bytes > MOST_INPUT_BYTES:
            gib = case.counted().bytes >> 30
            return self.leave_out(case, ours, f"{gib} GiB are more than a baseline has room for")
        sets = min(SETS, max(1, SETS_BYTES // case.counted().bytes))
        inputs = [case.inputs(self.device, seed) for seed in range(sets)]
        try:
            expected = case.ours(*inputs[0])
            self._synchronize()
        except Exception as error:
            return self.fail(case, ours, _said(error))
        before = len(self.left_out)
        ways = designs.implementations(case.op, case.ours)
        for implementation in [ours, *ways, *baselines]:
            if time.monotonic() > self.deadline:
                self.leave_out(case, implementation, "the time was up")
                continue
            try:
                with implementation.within(self.device):
                    self._measure(case, implementation, inputs, expected)
            except NotServed as reason:
                self.leave_out(case, implementation, str(reason))
            except torch.OutOfMemoryError:
                self.leave_out(case, implementation, "out of memory")
            except Exception as error:
                self.fail(case, implementation, _said(error))
            self._give_back()
        missing = [
            f"{it['implementation']} ({it['why']})"
            for it in self.left_out[before:]
            if it["kind"] != DESIGN
        ]
        note_left_out(self.rows, {(case.op, str(case)): missing})

    def _measure(
        self, case: Case, implementation: Implementation, inputs: list[Inputs], expected: Any
    ) -> None:
        function = implementation.make()
        adapted = [implementation.adapt(one) for one in inputs]
        result = function(*adapted[0])
        if not implementation.agrees(case, inputs[0], expected, result):
            return self.fail(case, implementation, "computes something else")
        del result
        self._synchronize()
        start = time.perf_counter()
        function(*adapted[0])
        self._synchronize()
        seconds = time.perf_counter() - start
        if seconds > SLOW_SECONDS and implementation.kind != "ours":
            return self.leave_out(case, implementation, f"takes {seconds:.1f} s")
        calls = [lambda one=one: function(*one) for one in adapted]
        peak = self.clock.peak_bytes(calls[0])
        times = self.clock.time(calls, implementation.waits)
        row = recording.make_row(case, implementation, times, peak)
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


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def write(folder: Path, session: Session, environment: dict[str, Any], rates: Rates) -> None:
    counted = {(case.op, str(case)): case.counted() for case in session.cases}
    recording.compare(session.rows, counted, rates)
    recording.write(folder, session.rows, session.left_out, environment)
    against = targets.markdown(session.rows)
    (folder / "targets.md").write_text(f"{environment['processor']}\n\n{against}")
    by_shape = design_table.markdown(session.rows, session.left_out)
    if by_shape:
        (folder / "designs.md").write_text(f"{environment['processor']}\n\n{by_shape}")


def in_order(names: Iterable[str], least: int = 2) -> list[Case]:
    """The most important cases of every op first, and what takes long to compile after what does
    not. ``least``: the least important priority."""
    cases = [case for op in names for case in BENCHMARKS[op].gpu if case.priority <= least]
    return sorted(cases, key=lambda case: (case.priority, case.compiles))


def served(names: Iterable[str]) -> dict[str, str]:
    """The backend of each op that has kernels here."""
    found = {}
    for op in names:
        choice = backends.choose(op, "cuda", "auto")
        if choice.backend in (None, "reference"):
            print(f"{op}: not timed, as {choice.reason}", flush=True)
        else:
            found[op] = str(choice.backend)
            print(f"{op}: {choice.backend}, {choice.reason}", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, required=True, help="the folder of the files")
    parser.add_argument("--ops", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin nothing later")
    parser.add_argument("--targets", action="store_true", help="only the targets' shapes")
    arguments = parser.parse_args()
    deadline = time.monotonic() + arguments.seconds
    if not torch.cuda.is_available():
        print("gpu benchmarks: torch sees no GPU.", file=sys.stderr)
        return 2
    copy_rate = gpu.copy_rate()
    environment = gpu.describe(served(arguments.ops), copy_rate)
    print(json.dumps(environment, indent=2), flush=True)
    session = Session(CudaClock(), "cuda", deadline)
    with torch.no_grad(), use_backend("auto"), designs.design("auto"):
        for case in in_order(environment["backend"], 0 if arguments.targets else 2):
            session.measure(case)
            write(arguments.results, session, environment, gpu.rates(copy_rate))
    table.show(session.rows, environment | {"backend": "auto"})
    print(design_table.markdown(session.rows, session.left_out))
    print(targets.markdown(session.rows))
    for failure in session.failures:
        print(f"FAILED {failure}", file=sys.stderr)
    return 1 if session.failures else 0
