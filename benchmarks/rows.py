"""Benchmark rows: what is recorded of a timing, how rows compare, and their files."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from machine import Counted, Rates

OURS = "clasp_kernels"
OPS = (
    "fuse_layers",
    "attention_salience",
    "select_pivots",
    "select_tokens",
    "complete_tokens",
    "gather_tokens",
    "merge_tokens",
)
# What a row's implementation is, next to "ours":
EAGER, COMPILED = "eager", "compiled"  # compute the same
COPY = "copy"  # only moves as many bytes
PEER = "peer"  # does the same job by another rule, so that another result comes out
SAME = (EAGER, COMPILED)


@dataclass
class Row:
    op: str
    case: str
    implementation: str
    kind: str
    median_us: float
    min_us: float
    iqr_us: float
    rounds: int
    shape: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    # Only ours have these, in `compare`.
    best_baseline: str | None = None
    speedup_over_best_baseline: float | None = None
    floor_us: float | None = None
    floor_bound: str | None = None
    times_floor: float | None = None


def compare(rows: Iterable[Row], counted: dict[str, Counted], rates: Rates) -> None:
    """Fills in what our rows are compared with: the best of those computing the same, a floor.

    ``counted`` has each case's work.
    """
    rows = list(rows)
    for row in rows:
        if row.kind != "ours":
            continue
        same = [other for other in rows if other.case == row.case and other.kind in SAME]
        if same:
            best = min(same, key=lambda other: other.median_us)
            row.best_baseline = best.implementation
            row.speedup_over_best_baseline = round(best.median_us / row.median_us, 2)
        floor, row.floor_bound = rates.floor(counted[row.case])
        row.floor_us = round(1e6 * floor, 2)
        row.times_floor = round(row.median_us / (1e6 * floor), 2)


def write_json(path: Path, environment: dict[str, Any], rows: Iterable[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"environment": environment, "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> tuple[dict[str, Any], list[Row]]:
    content = json.loads(path.read_text())
    return content["environment"], [Row(**row) for row in content["rows"]]


def read_all(folder: Path) -> list[Row]:
    """Of every op that has a file."""
    files = (folder / f"{op}.json" for op in OPS)
    return [row for path in files if path.exists() for row in read_json(path)[1]]


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    """One line a row; the case says the shape."""
    names = [column.name for column in fields(Row) if column.name != "shape"]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
