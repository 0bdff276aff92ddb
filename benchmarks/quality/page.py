"""The results in Markdown, from `rows.json` and `times.json`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from table import markdown_table

from quality.names import (
    ALL,
    BLIND,
    BUDGETS,
    CONTROLS,
    FREQUENT,
    FULL,
    NUM_TOKENS,
    SMALLER,
    TIMES,
    WITHIN,
)

AT = 16  # tokens of the detailed table
PRUNED = {budget: f"{1 - budget / NUM_TOKENS:.1%}" for budget in BUDGETS}


def page(report: dict[str, Any], times: dict[str, Any] | None, picture: str) -> str:
    """Return the generated part of `docs/quality.md`.

    Args:
        report: the content of `rows.json`.
        times: the content of `times.json`; None if no times were measured.
        picture: the path of the plot.
    """
    bed = report["mean"]
    fit = bed["fitness"]
    lines = [*_questions(report), "", "**Is the test bed fit?** " + _fit(fit), ""]
    if not bed["rows"]:
        return "\n".join(lines)
    lines += [
        "## In short",
        "",
        *(f"- {sentence}" for sentence in findings(report)),
        "",
        "## Verdicts",
        "",
        "Points of retained accuracy with 95 % intervals. An asterisk: the interval that holds for "
        f"all {_count(bed['verdicts'])} differences of this table at once excludes 0 too. A "
        "verdict uses the plain intervals, as the plan says.",
        "",
        markdown_table(
            ["part", "verdict", "difference in points, by tokens kept"],
            [[each["part"], f"**{each['verdict']}**", _evidence(each)] for each in bed["verdicts"]],
        ),
        "## Retained accuracy",
        "",
        f"In percent of accuracy with all {NUM_TOKENS} tokens, mean of the categories, with 95 % "
        "intervals; below each number of tokens, the share that is pruned.",
        "",
        _by_budget(bed["rows"]),
        "## Full against every other row",
        "",
        "*Full* minus the row, in points, paired by question. Negative: *full* is worse. Bold: "
        "shown, the 95 % interval excludes 0. An asterisk: so does the interval that holds for the "
        "whole table at once.",
        "",
        _against(bed["full_against"]),
        f"## By category, at {AT} tokens",
        "",
        _by_category(bed["rows"]),
        "## Selection times",
        "",
        *_times(times),
        "## With and without the picture",
        "",
        _cells(bed),
        f"![Retained accuracy against tokens kept{', and selection time' if times else ''}]"
        f"({picture})",
        "",
    ]
    if len(report["models"]) > 1:
        lines += ["## By training seed", "", _by_model(report["models"])]
    return "\n".join(lines)


def read_times(folder: Path) -> dict[str, Any] | None:
    """Return the content of `times.json`, or None if no times were measured."""
    path = folder / TIMES
    return json.loads(path.read_text()) if path.is_file() else None


def _questions(report: dict[str, Any]) -> list[str]:
    """Say what was asked, and what was chosen on which other questions."""
    bed, [first, *_] = report["mean"], report["models"]
    seeds = len(report["models"])
    which = "one model" if seeds == 1 else f"the mean of {seeds} models, one a training seed"
    starts = report["first_seed"]
    fresh = _is_fresh(report)
    return [
        f"{report['questions']} held-out questions, {report['questions_per_cell']} of each of "
        f"{report['cells']} cells (a kind of picture and a category of questions), {which}; "
        f"{len(bed['fitness']['cells'])} cells count. torch {first['versions']['torch']}, "
        f"transformers {first['versions']['transformers']}.",
        "",
        f"Their pictures are drawn from seed {starts['heldout']:,} on. "
        + ("What was chosen was chosen on other pictures:" if fresh else "What was chosen:"),
        "",
        f"- the model's recipe, by held-out pictures from seed {starts['recipe']:,} on, so "
        f"{'on none' if fresh else '**on some**'} of these questions (`training/tiny_vlm/"
        "evaluate.py`; `stages.py` and `positions.py` report on those pictures too);",
        "- the profile, and with it *one profile* and the ratio of *fixed split*, by training "
        f"pictures from seed {starts['profile']:,} on (`choose_profile.py`, which says: "
        f"{first['profile']});",
        "- the best single layer and the options inside the decoder, by "
        f"{report['training_questions']} training questions about pictures from seed "
        f"{starts['train']:,} on (this benchmark).",
    ]


def _is_fresh(report: dict[str, Any]) -> bool:
    """Return whether the questions are about other pictures than those that judged the recipe."""
    return bool(report["first_seed"]["heldout"] != report["first_seed"]["recipe"])


def findings(report: dict[str, Any]) -> list[str]:
    """Return what the rows say about CLASP as a whole, a sentence each."""
    against, rows = report["mean"]["full_against"], report["mean"]["rows"]
    retained = {row["tokens"]: row["retained"][0] for row in rows if row["row"] == FULL}
    controls = [each[0] for name in CONTROLS for each in against[name]["differences"].values()]
    [whole] = [each for each in report["mean"]["verdicts"] if each["part"] == "the whole"]
    best = whole["comparisons"][-1]["differences"]
    near = [budget for budget, (value, *_) in best.items() if value >= -WITHIN]
    rules = report["rules"]
    others = [name for name in against if name not in (*rules, *CONTROLS, SMALLER)]
    found = [
        f"*Full* retains {_and(f'{value:.1f}' for value in retained.values())} % of accuracy with "
        f"{_and(retained)} tokens: {min(controls):.0f} to {max(controls):.0f} points more than "
        "random, uniform and pooled tokens do.",
        f"By its value, *full* is within 1 point of the best other rule at {len(near)} of "
        f"{len(best)} budgets ({_and(near) or 'none'}).",
    ]
    for kind, names in (("other rules", rules), ("parts and variants of CLASP", others)):
        ahead = [
            _ahead(report, name, budgets)
            for name in names
            if (budgets := shown_ahead(against[name]))
        ]
        found.append(f"Shown to be better than *full*, of {kind}: {'; '.join(ahead) or 'none'}.")
    at_once = [
        _ahead(report, name, budgets)
        for name in (*rules, *others)
        if (budgets := shown_ahead(against[name], "simultaneous"))
    ]
    found.append(
        "Of these, by intervals that hold for all differences to *full* at once: "
        f"{'; '.join(at_once) or 'none'}."
    )
    return found


def in_short(report: dict[str, Any]) -> str:
    """Return what the README says of these results."""
    against = report["mean"]["full_against"]
    controls = [each[0] for name in CONTROLS for each in against[name]["differences"].values()]
    ahead = [
        _ahead(report, name, budgets)
        for name in against
        if name not in CONTROLS and (budgets := shown_ahead(against[name]))
    ]
    by_verdict: dict[str, list[str]] = {}
    for each in report["mean"]["verdicts"]:
        if each["part"] != "the whole":
            by_verdict.setdefault(each["verdict"], []).append(each["part"])
    parts = "; ".join(f"{verdict}: {_and(names)}" for verdict, names in by_verdict.items())
    return (
        "By [a plan written beforehand](docs/quality.md), CLASP with the bundled profile retains "
        f"{min(controls):.0f} to {max(controls):.0f} points more of the bundled model's accuracy "
        "than random, uniform and pooled tokens. Shown to be better than it there: "
        f"{', '.join(ahead) or 'nothing'}. Of its parts, {parts}."
        + (
            ""
            if _is_fresh(report)
            else " The model's recipe was judged on some of these questions."
        )
    )


def shown_ahead(against: dict[str, Any], intervals: str = "differences") -> list[str]:
    """Return the budgets at which another row is shown to be better than *full*."""
    return [budget for budget, (*_, high) in against[intervals].items() if high < 0]


def _ahead(report: dict[str, Any], name: str, budgets: Sequence[str]) -> str:
    differences = report["mean"]["full_against"][name]["differences"]
    points = sorted(-differences[budget][0] for budget in budgets)
    by = dict.fromkeys(f"{each:.1f}" for each in (points[0], points[-1]))
    mark = "`" if name in report["rules"] else "*"
    return f"{mark}{name}{mark} at {_and(budgets)} tokens (by {' to '.join(by)} points)"


def _and(words: Iterable[object]) -> str:
    """
    >>> _and([48, 32, 7]), _and([16]), _and([])
    ('48, 32 and 7', '16', '')
    """
    *most, last = [str(word) for word in words] or [""]
    return f"{', '.join(most)} and {last}" if most else last


def _fit(fit: dict[str, Any]) -> str:
    loss = "" if fit["loss"] is None else f"; random tokens lose {fit['loss']:.1f} points at {AT}"
    if fit["is_fit"]:
        return f"Yes: {len(fit['cells'])} cells count{loss}."
    return f"No, so no part is judged: {'; '.join(fit['problems'])}."


def _evidence(verdict: dict[str, Any]) -> str:
    parts = [
        f"{each['text']} ({each['verdict']}): "
        + ", ".join(
            f"{budget}: {_signed(difference)}{_star(each, budget)}"
            for budget, difference in each["differences"].items()
        )
        for each in verdict["comparisons"]
    ]
    return "<br>".join([*parts, *verdict["notes"]])


def _count(verdicts: list[dict[str, Any]]) -> int:
    return sum(len(each["differences"]) for one in verdicts for each in one["comparisons"])


def _signed(difference: list[float]) -> str:
    value, low, high = difference
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _excludes_0(difference: list[float]) -> bool:
    _, low, high = difference
    return low > 0 or high < 0


def _star(comparison: dict[str, Any], budget: str) -> str:
    return "\\*" if _excludes_0(comparison["simultaneous"][budget]) else ""


def _cell(estimate: list[float]) -> str:
    value, low, high = estimate
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _by_budget(rows: list[dict[str, Any]]) -> str:
    header = ["row", *(f"{budget}<br>{PRUNED[budget]}" for budget in BUDGETS)]
    lines = []
    for name in _names(rows):
        mine = {row["tokens"]: _cell(row["retained"]) for row in rows if row["row"] == name}
        # A row that drops no tokens has one result, which is shown at every budget.
        lines.append([name, *(mine.get(budget, mine.get(NUM_TOKENS, "")) for budget in BUDGETS)])
    return markdown_table(header, lines)


def _against(against: dict[str, dict[str, Any]]) -> str:
    lines = []
    for name, comparison in against.items():
        cells = []
        for budget in map(str, BUDGETS):
            difference = comparison["differences"].get(budget)
            text = "" if difference is None else _signed(difference)
            if difference is not None and _excludes_0(difference):
                text = f"**{text}**{_star(comparison, budget)}"
            cells.append(text)
        lines.append([name, *cells])
    return markdown_table(["row", *map(str, BUDGETS)], lines)


def _times(times: dict[str, Any] | None) -> list[str]:
    if times is None:
        return ["None are recorded yet: `--times` measures them.", ""]
    found, at = times["microseconds"], times["environment"]
    rows = [
        [name, *(_time(by_budget.get(str(budget))) for budget in BUDGETS)]
        for name, by_budget in found.items()
    ]
    return [
        "Microseconds an image to score, choose and gather: the median and the quartiles of "
        f"{times['rounds']} rounds, in which all rows took turns, in batches of {times['batch']} "
        f"({at['processor']}, one thread, torch {at['torch']}).",
        "",
        markdown_table(["row", *map(str, BUDGETS)], rows),
    ]


def _time(quartiles: list[float] | None) -> str:
    if quartiles is None:
        return ""
    middle, low, high = quartiles
    return f"{middle:.0f} [{low:.0f}, {high:.0f}]"


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
