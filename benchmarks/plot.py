"""The picture of the recorded rows: per op, how many times faster than the best baseline."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from rows import OURS, Row, in_order
from table import duration

matplotlib.use("Agg")
AHEAD, BEHIND = "#2a7f62", "#c4452d"


def draw(path: Path, rows: Iterable[Row]) -> None:
    """One panel an op, one bar a case, on a logarithmic axis that 1x divides."""
    ours = [
        row
        for row in in_order(rows)
        if row.implementation == OURS and row.speedup_over_best_baseline
    ]
    ops = list(dict.fromkeys(row.op for row in ours))
    counts = [sum(row.op == op for row in ours) for op in ops]
    figure = Figure(figsize=(11, 1.0 + sum(0.23 * count + 0.75 for count in counts)))
    panels = figure.subplots(
        len(ops), 1, squeeze=False, gridspec_kw={"height_ratios": [n + 1 for n in counts]}
    )[:, 0]
    most = max(row.speedup_over_best_baseline or 1 for row in ours)
    least = min(row.speedup_over_best_baseline or 1 for row in ours)
    for panel, op in zip(panels, ops, strict=True):
        cases = [row for row in ours if row.op == op]
        ratios = [row.speedup_over_best_baseline or 1.0 for row in cases]
        places = range(len(cases))
        colours = [AHEAD if ratio >= 1 else BEHIND for ratio in ratios]
        # Bars start at 1x: to the right is faster than the best baseline, to the left slower.
        panel.barh(places, [ratio - 1 for ratio in ratios], left=1, color=colours, height=0.7)
        for place, row, ratio in zip(places, cases, ratios, strict=True):
            text = f" {ratio:.3g}x over {row.best_baseline}, ours {duration(row.median_us)}"
            panel.text(max(ratio, 1), place, text, va="center", fontsize=7)
        panel.set_yticks(places, [row.case for row in cases], fontsize=7, family="monospace")
        panel.set_ylim(len(cases) - 0.4, -0.6)
        panel.set_xscale("log")
        panel.set_xlim(min(0.8 * least, 0.5), 6 * max(most, 2))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.axvline(1, color="black", linewidth=1)
        panel.tick_params(axis="x", labelsize=7)
        panel.set_title(op, fontsize=9, loc="left", fontweight="bold", pad=3)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    figure.suptitle("Times faster than the best baseline computing the same", fontsize=10)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.3 / figure.get_figheight()))
    figure.savefig(path, dpi=130)
