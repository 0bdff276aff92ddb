"""A table in Markdown from the results that are there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from real.settings import TASKS, Row, Task

MANIFEST = "manifest.json"
RESULT = "result.json"


def score(task: str, results: dict[str, Any]) -> float:
    """Return a task's score from the harness's results.

    Raises:
        ValueError: the harness gave no such metric.
    """
    known: Task = TASKS[task]
    given = results["results"].get(task, {})
    # The harness adds the name of its filter: "exact_match,none".
    values = {name.partition(",")[0]: value for name, value in given.items()}
    missing = [name for name in known.metrics if not isinstance(values.get(name), int | float)]
    if missing:
        raise ValueError(f"{task} has no number for {missing[0]} in {sorted(given)}")
    total = float(sum(values[name] for name in known.metrics))
    return 100 * total if known.percent else total


def table(name: str, rows: Sequence[Row], tasks: Sequence[str], folder: Path) -> str:
    """Return the table of a model, whose results are in ``folder/row/task``.

    A row's last column is the mean, over the tasks, of its share of the unpruned score. It stays
    empty until the row and the unpruned model have every task.
    """
    scores: dict[str, dict[str, float]] = {}
    manifests = []
    for row in rows:
        scores[row.name] = {}
        for task in tasks:
            result = folder / row.name / task / RESULT
            if result.is_file():
                scores[row.name][task] = score(task, json.loads(result.read_text()))
                manifests.append(json.loads((result.parent / MANIFEST).read_text()))
    lines = [
        f"# {name}",
        "",
        *_provenance(manifests),
        "| kept | method | " + " | ".join(TASKS[task].label for task in tasks) + " | retained |",
        "| --- | --- |" + " ---: |" * (len(tasks) + 1),
    ]
    whole = scores[rows[0].name]
    for row in rows:
        own = scores[row.name]
        cells = [f"{own[task]:.1f}" if task in own else "" for task in tasks]
        comparable = all(task in own and whole.get(task) for task in tasks)
        shares = [own[task] / whole[task] for task in tasks] if comparable else []
        cells.append(f"{100 * sum(shares) / len(shares):.1f} %" if shares else "")
        kept = "all" if row.budget is None else str(row.budget)
        lines.append(f"| {kept} | {row.method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _provenance(manifests: Sequence[dict[str, Any]]) -> list[str]:
    lines = []
    for limit in sorted({m["limit"] for m in manifests if m["limit"] is not None}):
        lines += [f"**The first {limit} questions of each task: a trial, not a result.**", ""]
    for versions in sorted({json.dumps(m["versions"], sort_keys=True) for m in manifests}):
        named = ", ".join(f"{package} {v}" for package, v in json.loads(versions).items())
        lines += [f"With {named}.", ""]
    return lines
