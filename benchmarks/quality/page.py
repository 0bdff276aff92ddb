"""The results in Markdown, from `rows.json`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from table import markdown_table

from quality.names import ALL, BLIND, BUDGETS, FREQUENT, NUM_TOKENS

AT = 16  # tokens of the detailed table
PRUNED = {budget: f"{1 - budget / NUM_TOKENS:.1%}" for budget in BUDGETS}


def page(report: dict[str, Any], picture: str) -> str:
    """Return the generated part of `docs/quality.md`. ``picture`` is the path of the plot."""
    bed, [first, *_] = report["mean"], report["models"]
    fit = bed["fitness"]
    seeds = len(report["models"])
    which = "one model" if seeds == 1 else f"the mean of {seeds} models, one a training seed"
    lines = [
        f"{report['questions']} held-out questions, {report['questions_per_cell']} of each of "
        f"{report['cells']} cells (a kind of picture and a category of questions), {which}; "
        f"{len(fit['cells'])} cells count. All choices were made on "
        f"{report['training_questions']} training questions. torch {first['versions']['torch']}, "
        f"transformers {first['versions']['transformers']}.",
        "",
        "**Is the test bed fit?** " + _fit(fit),
        "",
    ]
    if not bed["rows"]:
        return "\n".join(lines)
    lines += [
        "## Verdicts",
        "",
        markdown_table(
            ["part", "verdict", "difference in points, by tokens kept"],
            [[each["part"], f"**{each['verdict']}**", _evidence(each)] for each in bed["verdicts"]],
        ),
        "## Retained accuracy",
        "",
        f"In percent of accuracy with all {NUM_TOKENS} tokens, mean of the categories, with 95 % "
        "intervals; below each number of tokens, the share that is pruned. Selection: microseconds "
        f"an image, the least of {report['timed_runs']} runs, at {AT} tokens, one thread, batches "
        f"of {report['timed_batch']}.",
        "",
        _by_budget(bed["rows"], report["selection_microseconds"]),
        f"## By category, at {AT} tokens",
        "",
        _by_category(bed["rows"]),
        "## With and without the picture",
        "",
        _cells(bed),
        f"![Retained accuracy against tokens kept, and selection time]({picture})",
        "",
    ]
    if seeds > 1:
        lines += ["## By training seed", "", _by_model(report["models"])]
    return "\n".join(lines)


def _fit(fit: dict[str, Any]) -> str:
    loss = "" if fit["loss"] is None else f"; random tokens lose {fit['loss']:.1f} points at {AT}"
    if fit["is_fit"]:
        return f"Yes: {len(fit['cells'])} cells count{loss}."
    return f"No, so no part is judged: {'; '.join(fit['problems'])}."


def _evidence(verdict: dict[str, Any]) -> str:
    parts = [
        f"{each['text']} ({each['verdict']}): "
        + ", ".join(
            f"{budget}: {_signed(difference)}" for budget, difference in each["differences"].items()
        )
        for each in verdict["comparisons"]
    ]
    return "<br>".join([*parts, *verdict["notes"]])


def _signed(difference: list[float]) -> str:
    value, low, high = difference
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _cell(estimate: list[float]) -> str:
    value, low, high = estimate
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _by_budget(rows: list[dict[str, Any]], microseconds: dict[str, dict[str, float]]) -> str:
    header = ["row", *(f"{budget}<br>{PRUNED[budget]}" for budget in BUDGETS), "selection"]
    lines = []
    for name in _names(rows):
        mine = {row["tokens"]: _cell(row["retained"]) for row in rows if row["row"] == name}
        times = microseconds.get(name, {})
        time = f"{times[str(AT)]:.0f} us" if str(AT) in times else ""
        # A row that drops no tokens has one result, which is shown at every budget.
        cells = [mine.get(budget, mine.get(NUM_TOKENS, "")) for budget in BUDGETS]
        lines.append([name, *cells, time])
    return markdown_table(header, lines)


def _by_category(rows: list[dict[str, Any]]) -> str:
    shown = [row for row in rows if row["tokens"] == AT]
    categories, needs = (list(shown[0][f"retained_by_{by}"]) for by in ("category", "needs"))
    return markdown_table(
        ["row", *categories, *(f"needs the {each}" for each in needs)],
        [
            [
                row["row"],
                *(_cell(row["retained_by_category"][name]) for name in categories),
                *(_cell(row["retained_by_needs"][name]) for name in needs),
            ]
            for row in shown
        ],
    )


def _cells(bed: dict[str, Any]) -> str:
    counting = bed["fitness"]["cells"]
    ways = (ALL, BLIND, FREQUENT)
    return markdown_table(
        ["cell", *ways, "counts"],
        [
            [
                cell,
                *(f"{bed['accuracy_by_cell'][way][cell]:.3f}" for way in ways),
                "yes" if cell in counting else "no",
            ]
            for cell in bed["accuracy_by_cell"][ALL]
        ],
    )


def _by_model(models: Iterable[dict[str, Any]]) -> str:
    header: list[str] = []
    lines = []
    for model in models:
        judged = {each["part"]: each["verdict"] for each in model["verdicts"]}
        full = {
            row["tokens"]: _cell(row["retained"]) for row in model["rows"] if row["row"] == "full"
        }
        header = header or ["model", *(f"full at {budget}" for budget in BUDGETS), *judged]
        lines.append([model["name"], *(full[budget] for budget in BUDGETS), *judged.values()])
    return markdown_table(header, lines)


def _names(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["row"] for row in rows))
