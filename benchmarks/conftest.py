"""Collects the rows that the benchmarks time and writes them, with where they were taken.

    python -m pytest benchmarks --benchmark-only

writes ``benchmarks/results/cpu/<module>.json``. A row says how many times faster than the best
baseline of its group, in the same run, it was.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import clasp_kernels

ROOT = Path(__file__).resolve().parent.parent
OURS = "clasp_kernels"


@dataclass
class Row:
    group: str
    implementation: str
    shape: dict[str, Any]
    median_us: float
    min_us: float
    iqr_us: float
    rounds: int
    speedup_over_best_baseline: float | None = None


class Rows:
    """The rows of one module."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def add(self, benchmark: Any, implementation: str, shape: dict[str, Any]) -> None:
        if benchmark.stats is None:  # --benchmark-disable
            return
        stats = benchmark.stats.stats
        self.rows.append(
            Row(
                benchmark.group,
                implementation,
                shape,
                *(round(1e6 * value, 1) for value in (stats.median, stats.min, stats.iqr)),
                stats.rounds,
            )
        )

    def compare(self) -> None:
        for row in self.rows:
            baselines = [
                other.median_us
                for other in self.rows
                if other.group == row.group and other.implementation != OURS
            ]
            if row.implementation == OURS and baselines:
                row.speedup_over_best_baseline = round(min(baselines) / row.median_us, 2)


RESULTS: dict[str, Rows] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--results",
        type=Path,
        default=ROOT / "benchmarks" / "results" / "cpu",
        help="the folder that the rows are written to (default: benchmarks/results/cpu)",
    )


@pytest.fixture(scope="module")
def rows(request: pytest.FixtureRequest) -> Iterator[Rows]:
    name = request.module.__name__.rpartition(".")[2].removeprefix("bench_")
    RESULTS[name] = Rows()
    yield RESULTS[name]
    RESULTS[name].compare()


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip().partition("\n")[0]


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def environment() -> dict[str, Any]:
    commit = _first_line("git", "rev-parse", "HEAD")
    if _first_line(
        "git", "status", "--porcelain", "--", "csrc", "clasp_kernels", "benchmarks/*.py"
    ):
        commit += "+changes"
    return {
        "processor": _processor(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "clasp_kernels": clasp_kernels.__version__,
        "commit": commit,
        "command": "python -m pytest " + " ".join(sys.argv[1:]),
    }


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for name, rows in RESULTS.items():
        if not rows.rows:
            continue
        folder = config.getoption("--results")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.json"
        content = {"environment": environment(), "rows": [asdict(row) for row in rows.rows]}
        path.write_text(json.dumps(content, indent=2) + "\n")
        terminalreporter.section(f"{name}: {path}")
        for row in rows.rows:
            if row.speedup_over_best_baseline is not None:
                terminalreporter.line(
                    f"{row.group:<55} {row.median_us / 1e3:8.3f} ms, "
                    f"{row.speedup_over_best_baseline:6.2f} times the best baseline's speed"
                )
