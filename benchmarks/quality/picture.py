"""The plot: retained accuracy against tokens kept, and against the time of selection."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from quality.names import BUDGETS, SMALLER
from quality.page import AT
from quality.rows import RULES

matplotlib.use("Agg")

# Okabe and Ito's colours, which differ for every kind of sight. What has none is grey.
COLOURS = {
    "full": "#D55E00",
    "completion only": "#0072B2",
    "pivots only": "#56B4E9",
    SMALLER: "#009E73",
    "random": "#000000",
    "progressive (0, 2, 4)": "#CC79A7",
}
GREY = "0.55"
TIMED = (*COLOURS, "uniform", "pool", *RULES)
LINES = 24  # labels that fit above each other


def draw_picture(report: dict[str, Any], times: dict[str, Any] | None, path: Path) -> None:
    """Draw the data of `rows.json`, and a second panel with those of `times.json` if there are."""
    rows = report["mean"]["rows"]
    panels = 1 if times is None else 2
    figure = Figure(figsize=(6.3 * panels, 5.4), layout="constrained")
    left, *right = figure.subplots(1, panels, squeeze=False)[0]
    _against_tokens(left, rows)
    for axes in right:
        assert times is not None
        _against_time(axes, rows, times["microseconds"])
    figure.savefig(path, dpi=140)


def _against_tokens(axes: Axes, rows: list[dict[str, Any]]) -> None:
    ends: list[tuple[float, float, str]] = []
    for name, colour in COLOURS.items():
        mine = sorted((row for row in rows if row["row"] == name), key=lambda row: row["tokens"])
        tokens = [row["tokens"] for row in mine]
        value, low, high = zip(*(row["retained"] for row in mine), strict=True)
        axes.fill_between(tokens, low, high, color=colour, alpha=0.15, lw=0)
        axes.plot(tokens, value, color=colour, marker="o", ms=4, lw=2)
        ends.append((tokens[-1], value[-1], name))
    axes.set_xscale("log")
    axes.set_xticks(BUDGETS, [str(budget) for budget in BUDGETS])
    axes.minorticks_off()
    axes.set_xlim(min(BUDGETS) * 0.93, max(BUDGETS) * 2.3)
    _label(axes, ends, max(BUDGETS) * 1.15)
    axes.set_xlabel("visual tokens kept, of 144")
    axes.set_ylabel("retained accuracy, % (mean of the categories)")
    _plain(axes, "Bands: 95 % intervals")


def _against_time(
    axes: Axes, rows: list[dict[str, Any]], microseconds: dict[str, dict[str, list[float]]]
) -> None:
    points: list[tuple[float, float, str]] = []
    for row in rows:
        name = row["row"]
        if row["tokens"] == AT and name in TIMED and name in microseconds:
            time, *quartiles = microseconds[name][str(AT)]
            value, low, high = row["retained"]
            colour = COLOURS.get(name, GREY)
            axes.plot(quartiles, (value, value), color=colour, lw=1.5, alpha=0.5)
            axes.plot((time, time), (low, high), color=colour, lw=1.5, alpha=0.5)
            axes.plot(time, value, "o", color=colour, ms=6)
            points.append((time, value, name))
    first, last = min(time for time, *_ in points), max(time for time, *_ in points)
    axes.set_xscale("log")
    axes.set_xlim(first * 0.8, 1.6 * last * (last / first) ** 0.5)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    _label(axes, points, 1.6 * last)
    axes.set_xlabel("selection, microseconds an image on one thread")
    axes.set_ylabel("retained accuracy, %")
    _plain(axes, f"At {AT} tokens. Lines: 95 % intervals, and quartiles of the times")


def _label(axes: Axes, points: Sequence[tuple[float, float, str]], x: float) -> None:
    """Name the points (x, y, name) in a column at ``x``."""
    low, high = axes.get_ylim()
    gap = (high - low) / LINES
    places = apart([y for _, y, _ in points], gap)
    axes.set_ylim(min(low, *places) - gap, max(high, *places) + gap)
    for place, (at, y, name) in zip(places, points, strict=True):
        colour = COLOURS.get(name, GREY)
        axes.annotate(
            name,
            (at, y),
            xytext=(x, place),
            color=COLOURS.get(name, "0.3"),
            va="center",
            fontsize=9,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6, "alpha": 0.7},
        )


def apart(values: Sequence[float], gap: float) -> list[float]:
    """Return places for labels of ``values``, in their order, at least ``gap`` from each other."""
    order = sorted(range(len(values)), key=lambda n: values[n])
    places = list(values)
    for before, after in pairwise(order):
        places[after] = max(places[after], places[before] + gap)
    # They were only pushed up: all of them move down so that they are centred on the values.
    shift = sum(p - v for p, v in zip(places, values, strict=True)) / max(1, len(values))
    return [place - shift for place in places]


def _plain(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
