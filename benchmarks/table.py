"""The table that ``make bench`` ends with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rows import COPY, OURS, PEER, SAME, AnyRow, Row, in_order


def duration(microseconds: float) -> str:
    """Three digits and the unit."""
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if microseconds >= size:
            return f"{microseconds / size:.3g} {unit}"
    return f"{microseconds:.3g} us"


def size(count: int | None) -> str:
    """Of bytes, three digits and the unit."""
    if count is None:
        return "-"
    for unit, scale in (("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count} B"


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def by_case(rows: Iterable[AnyRow]) -> dict[tuple[str, str], dict[str, AnyRow]]:
    """(op, case): implementation: row, in the order of the rows."""
    cases: dict[tuple[str, str], dict[str, AnyRow]] = {}
    for row in rows:
        cases.setdefault((row.op, row.case), {})[row.implementation] = row
    return cases


def _others(rows: dict[str, Row], kinds: Sequence[str], best: str | None) -> str:
    """The fastest first, and ``best`` in bold."""
    chosen = sorted((row for row in rows.values() if row.kind in kinds), key=lambda r: r.median_us)
    texts = []
    for row in chosen:
        text = f"{row.implementation} {duration(row.median_us)}"
        texts.append(f"[bold]{text}[/bold]" if row.implementation == best else text)
    return ", ".join(texts)


def make(rows: Iterable[Row], environment: dict[str, Any]) -> Table:
    table = Table(
        expand=True,
        title=f"{environment['processor']}, {environment['threads']} threads, "
        f"torch {environment['torch']}, backend {environment['backend']}",
        caption="Medians. Ratio: the best baseline computing the same (bold) over ours. Floor: "
        "counted (b)ytes or (m)ultiply-adds at this session's rates, or the least that a (c)all "
        "takes. Memcpy: as many bytes. "
        "Others' methods keep other tokens and do not enter the ratio.",
    )
    table.add_column("op", no_wrap=True)
    table.add_column("case", ratio=3)
    for name in ("ours", "ratio", "floor", "ours / floor"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("baselines computing the same", ratio=6)
    table.add_column("memcpy, others' methods", ratio=3)
    previous = None
    for (op, case), implementations in by_case(in_order(rows)).items():
        if previous not in (None, op):
            table.add_section()
        ours = implementations.get(OURS)
        if ours is None:
            cells = ["", "", "", ""]
        else:
            ratio = ours.speedup_over_best_baseline
            colour = "red" if ratio is not None and ratio < 1 else "green"
            bound = (ours.floor_bound or "")[:1]
            cells = [
                duration(ours.median_us),
                "" if ratio is None else f"[{colour}]{ratio:.2f}x[/{colour}]",
                "" if ours.floor_us is None else f"{duration(ours.floor_us)} {bound}",
                "" if ours.times_floor is None else f"{ours.times_floor:.2f}x",
            ]
        note = f"\n[dim]{ours.note}[/dim]" if ours and ours.note else ""
        best = ours.best_baseline if ours else None
        table.add_row(
            f"[bold]{op}[/bold]" if op != previous else "",
            f"{case}{note}",
            *cells,
            _others(implementations, SAME, best),
            _others(implementations, (COPY, PEER), None),
        )
        previous = op
    return table


def show(rows: Iterable[Row], environment: dict[str, Any]) -> None:
    # In a pipe or a log there is no width to read, and 80 columns would fold every cell.
    console = Console()
    if not console.is_terminal:
        console = Console(width=180)
    console.print(make(rows, environment))
