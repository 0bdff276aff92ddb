"""How much memory a call takes beyond its inputs and outputs, at its peak.

    python benchmarks/peak_memory.py                 # all cases -> benchmarks/results/cpu
    python benchmarks/peak_memory.py --match fuse    # some, printed only

Each case runs in a process of its own, in which ``count_malloc.py`` counts what malloc gives out.
The process calls the op on few tokens of the same width, so that threads and whatever is set up
once are there, and then on all of them. The peak of live bytes during that call, less what was live
before and less the outputs, is what the call took.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import ops
import torch
from count_malloc import counting, result_and_peak
from machine import ROOT, environment
from rich.console import Console
from rich.table import Table
from rows import OURS
from table import size
from torch import Tensor

from clasp_kernels import backends, use_backend

RECORDED = ROOT / "benchmarks" / "results" / "cpu" / "peak_memory.json"


@dataclass(frozen=True)
class Measured:
    op: str
    case: str
    implementation: str
    peak_bytes: int
    """Beyond inputs and outputs."""
    limit_bytes: int | None
    """What the op promises, where it promises something."""


MEASURED = {op: one.memory for op, one in ops.load_all().items() if one.memory}


def measure_call(function: Callable[[], Any]) -> int:
    """The peak of what ``function`` takes beyond what it returns, in bytes; in a process started
    with :func:`counting`."""
    result, peak = result_and_peak(function)
    outputs = [result] if isinstance(result, Tensor) else list(result)
    returned = sum(output.untyped_storage().nbytes() for output in outputs)
    return max(peak - returned, 0)


def _measure_here(op: str, name: str, implementation: str) -> int:
    memory = MEASURED[op]
    case = next(case for case in memory.cases if str(case) == name)
    function = next(
        it.make() for it in case.implementations(gpu=False) if it.name == implementation
    )
    inputs, few = case.inputs("cpu", 0), memory.few(case).inputs("cpu", 0)
    with torch.no_grad(), use_backend("cpu" if implementation == OURS else "auto"):
        function(*few)
        function(*few)
        return measure_call(lambda: function(*inputs))


def in_fresh_process(*arguments: str) -> int:
    done = subprocess.run(
        [sys.executable, __file__, "--here", *arguments],
        env=counting(),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"peak_memory {' '.join(arguments)} failed:\n{done.stderr}")
    return int(done.stdout)


def measure(match: str = "") -> list[Measured]:
    """Two processes at a time: unlike times, peaks do not mind."""
    wanted = [
        (op, case, implementation)
        for op, memory in MEASURED.items()
        for implementation in filter(None, (OURS, memory.against))
        for case in memory.cases
        if match in f"{op} {case} {implementation}"
    ]
    with ThreadPoolExecutor(2) as pool:
        peaks = list(pool.map(lambda it: in_fresh_process(it[0], str(it[1]), it[2]), wanted))
    return [
        Measured(op, str(case), implementation, peak, MEASURED[op].limit(case))
        for (op, case, implementation), peak in zip(wanted, peaks, strict=True)
    ]


def make_table(measured: list[Measured]) -> Table:
    table = Table(
        title="Peak memory beyond inputs and outputs",
        caption="Limit of select_tokens: 8 bytes x B x N x P.",
    )
    for name in ("op", "case", "implementation"):
        table.add_column(name)
    for name in ("peak", "limit"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in measured:
        over = row.limit_bytes is not None and row.peak_bytes > row.limit_bytes
        colour = "red" if over and row.implementation == OURS else "default"
        peak = f"[{colour}]{size(row.peak_bytes)}[/{colour}]"
        table.add_row(row.op, row.case, row.implementation, peak, size(row.limit_bytes))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--match", default="", help="only the cases whose names have this in them")
    parser.add_argument("--here", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        print(_measure_here(*arguments.here))
        return
    for op in MEASURED:
        choice = backends.choose(op, "cpu", "cpu")
        if choice.backend is None and arguments.match in op:
            sys.exit(f"the cpu backend does not serve {op}: {choice.reason}")
    counting()  # once, before the threads
    measured = measure(arguments.match)
    if not arguments.match:
        rows = [asdict(row) for row in measured]
        content = {"environment": environment(), "rows": rows}
        RECORDED.write_text(json.dumps(content, indent=2) + "\n")
    Console(width=None if sys.stdout.isatty() else 140).print(make_table(measured))


if __name__ == "__main__":
    main()
