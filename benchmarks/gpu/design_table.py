"""The ways of computing a selection next to each other, shape by shape, as markdown."""

from __future__ import annotations

from collections.abc import Iterable

from rows import COMPILED, DESIGN, EAGER, LIBRARY, OURS, in_order
from table import by_case, duration, markdown_table

from .designs import DESIGNS
from .recording import GpuRow

BASELINES = {"best eager": EAGER, "torch.compile": COMPILED, "others' kernels": LIBRARY}
LEGEND = (
    "Medians of replayed graphs, \\* between events, with the gaps in which the device waits for "
    "launches. Ours: the automatic choice. Bold: the fastest design. In brackets: over ours."
)


def markdown(rows: Iterable[GpuRow], left_out: Iterable[dict[str, str]]) -> str:
    """Nothing where no op has designs."""
    rows = in_order(rows)
    refused = [it for it in left_out if it["kind"] == DESIGN]
    with_designs = {row.op for row in rows if row.kind == DESIGN} | {it["op"] for it in refused}
    lines = [
        [f"`{op}` {case}", *_cells(implementations)]
        for (op, case), implementations in by_case(rows).items()
        if op in with_designs
    ]
    if not lines:
        return ""
    header = ["case", "ours", *DESIGNS, *BASELINES]
    notes = [
        f"- `{it['op']}` {it['case']}, {it['implementation']}: {it['why']}\n" for it in refused
    ]
    text = f"{markdown_table(header, lines)}\n{LEGEND}\n"
    return text + ("\nNot timed:\n\n" + "".join(notes) if notes else "")


def _cells(implementations: dict[str, GpuRow]) -> list[str]:
    ours = implementations.get(OURS)
    designs = [implementations.get(name) for name in DESIGNS]
    fastest = min((row.median_us for row in designs if row), default=0.0)
    cells = [_time(ours)]
    for row in designs:
        cells.append(f"**{_time(row)}**" if row and row.median_us == fastest else _time(row))
    for kind in BASELINES.values():
        same = [row for row in implementations.values() if row.kind == kind]
        best = min(same, key=lambda row: row.median_us, default=None)
        ratio = f" ({best.median_us / ours.median_us:.1f}x)" if best and ours else ""
        cells.append(_time(best) + ratio)
    return cells


def _time(row: GpuRow | None) -> str:
    if row is None:
        return "-"
    return duration(row.median_us) + ("" if row.timed_by == "graph" else "\\*")
