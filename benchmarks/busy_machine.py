"""The ops on one thread and on several, on an idle machine and with a busy process on each core.

    python benchmarks/busy_machine.py            # -> benchmarks/results/cpu/busy_machine.json
    python benchmarks/busy_machine.py --calls 3  # a quick look, printed only

Servers, Ray workers and data loaders keep cores busy. A thread that an op calls may not run there
for milliseconds, so several threads can be slower than one.

Times are means. A call that takes about as long as the system's time slice is either interrupted,
for several milliseconds, or not, so its median jumps between two values from run to run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import ops
import torch
from machine import ROOT, environment
from table import duration, markdown_table

from clasp_kernels import use_backend

RECORDED = ROOT / "benchmarks" / "results" / "cpu" / "busy_machine.json"
ROUNDS, CALLS = 20, 20
CASES = {
    "select_tokens": "1x2880x1024 float32 R320 P160 random",
    "attention_salience": "B1 T32 S640 float32 H32/32 d128",
    "fuse_layers": "1x2880x1024 float32 L4",
    "merge_tokens": "1x2880x1024 float32 R320",
}


@dataclass(frozen=True)
class BusyRow:
    """One op on so many threads."""

    op: str
    case: str
    load: str
    """"idle", or "busy" with a busy process on each core."""
    threads: int
    mean_us: float
    """Microseconds."""


@contextmanager
def busy_cores() -> Iterator[None]:
    """Keep every core busy with a process of its own."""
    command = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(command) for _ in range(os.cpu_count() or 1)]
    try:
        time.sleep(1)  # until all of them run
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def seconds(call: Callable[[], Any], calls: int) -> list[float]:
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def measure(load: str, calls: int) -> list[BusyRow]:
    rows = []
    several = torch.get_num_threads()
    benchmarks = ops.load_all()
    for op, name in CASES.items():
        case = next(case for case in benchmarks[op].cpu if str(case) == name)
        call = partial(case.ours, *case.inputs("cpu", 0))
        times: dict[int, list[float]] = {1: [], several: []}
        with torch.no_grad(), use_backend("cpu"):
            call()
            # In turns, as how much of a core the op gets changes from second to second.
            for _ in range(ROUNDS):
                for threads in times:
                    torch.set_num_threads(threads)
                    times[threads] += seconds(call, calls)
        rows += [
            BusyRow(op, name, load, threads, round(1e6 * statistics.mean(taken), 2))
            for threads, taken in times.items()
        ]
    torch.set_num_threads(several)
    return rows


def table(rows: list[BusyRow]) -> str:
    """A line for each op: one thread and several, idle and busy, and the ratio where it is busy."""
    lines = []
    for op, case in CASES.items():
        times = {(row.load, row.threads): row.mean_us for row in rows if row.op == op}
        one, *_, several = sorted({threads for _, threads in times})
        lines.append(
            [
                f"`{op}`",
                case,
                *(duration(times["idle", threads]) for threads in (one, several)),
                *(duration(times["busy", threads]) for threads in (one, several)),
                f"{times['busy', several] / times['busy', one]:.2f}",
            ]
        )
    header = ["op", "case", "idle, 1 thread", "idle, all", "busy, 1 thread", "busy, all", "ratio"]
    return markdown_table(header, lines)


def main() -> None:
    if torch.get_num_threads() < 2:
        sys.exit("torch has one thread here, so there is nothing to compare: unset OMP_NUM_THREADS")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", type=int, default=CALLS, help="in each of the rounds")
    arguments = parser.parse_args()
    rows = measure("idle", arguments.calls)
    with busy_cores():
        rows += measure("busy", arguments.calls)
    if arguments.calls >= CALLS:
        content = {
            "environment": environment() | {"command": "python benchmarks/busy_machine.py"},
            "rows": [asdict(row) for row in rows],
        }
        RECORDED.write_text(json.dumps(content, indent=2) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
