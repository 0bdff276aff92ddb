"""``clasp batch`` with one process and with two, with Ray, and beside a loop written by hand.

    python benchmarks/batch.py                        # -> benchmarks/results/cpu/batch.json
    python benchmarks/batch.py --images 40            # a quick look, printed only

Every way answers the same questions about the same pictures with the bundled model, from the start
of its command to its end, in turn, so that all meet the machine in the same states. All have the
same budget, and their answers are compared: a way that answers otherwise is an error. Ray and
``datasets`` are measured where they are installed; ``make test-engines`` puts each into a folder
for PYTHONPATH.

Threads are one for each process: two processes against one then tell what a second process adds,
and not what a second thread would.

The memory is that of all processes together, pages that they share once, looked at once a second.
Beside the peak stand its means in the second and in the last quarter of a run: they are equal if it
is flat.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import psutil
import pyarrow.parquet as pq
from batch_inputs import Command, write_questions
from machine import ROOT, environment
from table import markdown_table

RECORDED = ROOT / "benchmarks" / "results" / "cpu" / "batch.json"
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_BATCH, _TOKENS, _SHARD, _BUDGET = 8, 4, 64, 0.25
_SECONDS_BETWEEN_LOOKS = 1.0
# Sums differ by float noise with who shares a batch, so that two words that are nearly equally
# likely may change places.
_LEAST_EQUAL = 0.99
_MEGABYTE = 1e6


@dataclass(frozen=True)
class Run:
    """One run of one way."""

    seconds: float
    peak_bytes: int
    second_quarter_bytes: float
    last_quarter_bytes: float
    answers: dict[str, str]
    """By the name of the picture."""


@dataclass(frozen=True)
class BatchRow:
    """One way, medians over the rounds. Memory in units of 1,000,000 bytes."""

    way: str
    images: int
    seconds: float
    rounds: int
    rows_per_second: float
    equal_answers: float
    """The share of the first way's answers that this one gives too."""
    peak_mb: float
    second_quarter_mb: float
    last_quarter_mb: float


def by_batch(engine: str, workers: int, questions: Path, out: Path, log: Path) -> Command:
    """Start ``clasp batch``."""
    return Command.batch(
        [
            *(str(questions), str(out), "--budget", str(_BUDGET), "--device", "cpu"),
            *("--engine", engine, "--workers", str(workers), "--batch-size", str(_BATCH)),
            *("--max-new-tokens", str(_TOKENS), "--shard-size", str(_SHARD)),
        ],
        log,
        _ONE_THREAD,
    )


def by_hand(workers: int, questions: Path, out: Path, log: Path) -> Command:
    """Start the loop written by hand."""
    script = str(ROOT / "benchmarks" / "batch_by_hand.py")
    out.mkdir()
    settings = map(str, (_BATCH, _TOKENS, _BUDGET, workers))
    given = [script, str(questions), str(out / "answers.parquet"), *settings]
    return Command(given, log, {**_ONE_THREAD, "HF_DATASETS_CACHE": str(out / "cache")})


def ways() -> dict[str, Callable[[Path, Path, Path], Command]]:
    """Return the ways that are installed."""
    found: dict[str, Callable[[Path, Path, Path], Command]] = {}
    engines = ["local", *(["ray"] if find_spec("ray") is not None else [])]
    for workers, processes in ((1, "one process"), (2, "two processes")):
        if find_spec("datasets") is not None:
            found[f"datasets.map by hand, {processes}"] = partial(by_hand, workers)
        for engine in engines:
            found[f"clasp batch, {engine}, {processes}"] = partial(by_batch, engine, workers)
    return found


def measured(
    way: Callable[[Path, Path, Path], Command], questions: Path, images: int, work: Path
) -> Run:
    """Run one way to its end, and look at its memory."""
    out, log = work / "out", work / "log"
    started = time.monotonic()
    command = way(questions, out, log)
    seen: list[int] = []
    while True:
        try:
            status = command.driver.wait(_SECONDS_BETWEEN_LOOKS)
            break
        except psutil.TimeoutExpired:
            seen.append(command.memory_bytes())
    seconds = time.monotonic() - started
    if status != 0:
        sys.exit(f"it failed: {log.read_text()[-2000:]}")
    found = pq.read_table(sorted(out.glob("*.parquet")), columns=["image", "answer"]).to_pylist()
    answers = {Path(row["image"]).name: row["answer"] for row in found if row["answer"] is not None}
    if not len(answers) == len(found) == images:
        sys.exit(f"{len(answers)} answers in {len(found)} rows, but {images} were asked for")
    seen = seen[:-1] or seen  # at the last look, processes were ending
    quarter = max(1, len(seen) // 4)
    return Run(
        seconds,
        max(seen),
        statistics.mean(seen[quarter : 2 * quarter] or seen),
        statistics.mean(seen[-quarter:]),
        answers,
    )


def measure(images: int, rounds: int) -> list[BatchRow]:
    """Measure every way ``rounds`` times, in turn."""
    runs: dict[str, list[Run]] = {}
    with tempfile.TemporaryDirectory() as folder:
        questions = write_questions(Path(folder) / "pictures", images)
        for number in range(rounds):
            for name, way in ways().items():
                work = Path(folder) / f"{number} {name}"
                work.mkdir()
                runs.setdefault(name, []).append(measured(way, questions, images, work))
                print(f"{name}: {runs[name][-1].seconds:.1f} s", file=sys.stderr)
    first = next(iter(runs.values()))[0].answers
    rows = [_row(name, images, found, first) for name, found in runs.items()]
    for row in rows:
        if row.equal_answers < _LEAST_EQUAL:
            sys.exit(f"{row.way} gives {row.equal_answers:.1%} of the answers of {rows[0].way}")
    return rows


def _row(way: str, images: int, runs: list[Run], first: dict[str, str]) -> BatchRow:
    equal = min(sum(run.answers[name] == first[name] for name in first) for run in runs)
    seconds = statistics.median(run.seconds for run in runs)
    return BatchRow(
        way,
        images,
        seconds,
        len(runs),
        images / seconds,
        equal / images,
        statistics.median(run.peak_bytes for run in runs) / _MEGABYTE,
        statistics.median(run.second_quarter_bytes for run in runs) / _MEGABYTE,
        statistics.median(run.last_quarter_bytes for run in runs) / _MEGABYTE,
    )


def as_table(rows: list[BatchRow]) -> str:
    """Return the rows as a table in Markdown."""
    header = [
        "",
        "seconds",
        "rows/s",
        "same answers",
        "peak MB",
        "MB, second quarter",
        "MB, last quarter",
    ]
    return markdown_table(
        header,
        [
            [
                row.way,
                f"{row.seconds:.1f}",
                f"{row.rows_per_second:.1f}",
                f"{row.equal_answers:.1%}",
                f"{row.peak_mb:.0f}",
                f"{row.second_quarter_mb:.0f}",
                f"{row.last_quarter_mb:.0f}",
            ]
            for row in rows
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()
    rows = measure(given.images, given.rounds)
    print(as_table(rows))
    if len(sys.argv) == 1:
        recorded = {"environment": environment(), "rows": [asdict(row) for row in rows]}
        RECORDED.write_text(json.dumps(recorded, indent=2) + "\n")


if __name__ == "__main__":
    main()
