"""The row that a timing on a GPU leaves, and the file of all rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import rows as recorded
from case import Case, Implementation
from machine import Counted, Rates
from rows import Row

from .clock import Percentiles, Times

OPS_FILE = "ops.json"


@dataclass
class GpuRow(Row):
    """``median_us`` is that of the graph where there is one, else that between events."""

    _: KW_ONLY
    timed_by: str
    events_us: dict[str, float]
    """By percentile."""
    graph_us: dict[str, float] | None
    peak_bytes: int
    speedup_by_events: float | None = None
    """Of ours alone."""


def make_row(case: Case, implementation: Implementation, times: Times, peak: int) -> GpuRow:
    return GpuRow(
        case.op,
        str(case),
        implementation.name,
        implementation.kind,
        round((times.graph or times.events).p50, 3),
        times.rounds,
        case.shape(),
        "; ".join(
            filter(None, [implementation.note, times.no_graph and f"no graph: {times.no_graph}"])
        ),
        timed_by="graph" if times.graph else "events",
        events_us=_by_name(times.events),
        graph_us=_by_name(times.graph) if times.graph else None,
        peak_bytes=peak,
    )


def _by_name(times: Percentiles) -> dict[str, float]:
    return {name: round(value, 3) for name, value in times._asdict().items()}


def compare(rows: list[GpuRow], counted: dict[tuple[str, str], Counted], rates: Rates) -> None:
    """Fills in what our rows are compared with, by the median and, apart, between events."""
    recorded.compare(rows, counted, rates)
    for row in rows:
        if row.kind == "ours" and (same := recorded.baselines(rows, row)):
            best = min(other.events_us["p50"] for other in same)
            row.speedup_by_events = round(best / row.events_us["p50"], 2)


def write(
    folder: Path,
    rows: Iterable[GpuRow],
    left_out: Iterable[dict[str, str]],
    environment: dict[str, Any],
) -> None:
    """One file for all ops: what brings results back from a machine may take few files."""
    recorded.write_json(folder / OPS_FILE, environment, rows, left_out=list(left_out))
