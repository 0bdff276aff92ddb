"""Benchmark rows: what is recorded of a timing, how rows compare, and their files."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from machine import Counted, Rates

from clasp_kernels.backends.table import OPS

OURS = "clasp_kernels"
# What a row's implementation is, next to "ours":
EAGER, COMPILED = "eager", "compiled"  # compute the same
LIBRARY = "library"  # computes the same, by another package's kernel
COPY = "copy"  # only moves as many bytes
PEER = "peer"  # does the same job by another rule, so that another result comes out
DESIGN = "design"  # is ours, made to go about it in one of its ways
SAME = (EAGER, COMPILED, LIBRARY)


@dataclass
class Row:
    op: str
    case: str
    implementation: str
    kind: str
    median_us: float
    rounds: int
    shape: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    # Only ours have these, in `compare`.
    best_baseline: str | None = None
    speedup_over_best_baseline: float | None = None
    floor_us: float | None = None
    floor_bound: str | None = None
    times_floor: float | None = None


@dataclass
class HostRow(Row):
    """Timed by the host's clock, from call to return."""

    _: KW_ONLY
    min_us: float
    iqr_us: float


AnyRow = TypeVar("AnyRow", bound=Row)


def compare(rows: Iterable[Row], counted: Mapping[tuple[str, str], Counted], rates: Rates) -> None:
    """Fills in what our rows are compared with: the best of those computing the same, a floor.

    ``counted`` has the work of each op's cases.
    """
    rows = list(rows)
    for row in rows:
        if row.kind != "ours":
            continue
        same = baselines(rows, row)
        if same:
            best = min(same, key=lambda other: other.median_us)
            row.best_baseline = best.implementation
            row.speedup_over_best_baseline = round(best.median_us / row.median_us, 2)
        floor, row.floor_bound = rates.floor(counted[row.op, row.case])
        row.floor_us = round(1e6 * floor, 2)
        row.times_floor = round(row.median_us / (1e6 * floor), 2)


def baselines(rows: Iterable[AnyRow], ours: Row) -> list[AnyRow]:
    """Those that compute the same as ours on its case."""
    return [row for row in rows if (row.op, row.case) == (ours.op, ours.case) and row.kind in SAME]


def note_left_out(rows: Iterable[Row], left_out: Mapping[tuple[str, str], list[str]]) -> None:
    """Says in our rows what their case, by op and name, was to be compared with and was not."""
    for row in rows:
        missing = left_out.get((row.op, row.case))
        if row.kind == "ours" and missing:
            text = "left out: " + ", ".join(missing)
            row.note = f"{row.note}; {text}" if row.note else text


def in_order(rows: Iterable[AnyRow]) -> list[AnyRow]:
    """Of the table of ops."""
    return sorted(rows, key=lambda row: list(OPS).index(row.op))


def write_json(
    path: Path, environment: dict[str, Any], rows: Iterable[Row], **more: list[Any]
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"environment": environment, "rows": [asdict(row) for row in rows], **more}
    path.write_text(json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> tuple[dict[str, Any], list[HostRow]]:
    content = json.loads(path.read_text())
    return content["environment"], [HostRow(**row) for row in content["rows"]]


def read_all(folder: Path) -> list[HostRow]:
    """Of every op that has a file."""
    files = (folder / f"{op}.json" for op in OPS)
    return [row for path in files if path.exists() for row in read_json(path)[1]]


def write_csv(path: Path, rows: Iterable[HostRow]) -> None:
    """One line a row; the case says the shape."""
    names = [column.name for column in fields(HostRow) if column.name != "shape"]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
