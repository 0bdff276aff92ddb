"""Writes the README's result tables from the committed benchmark rows.

    python benchmarks/readme_tables.py

A test holds the README to what this makes of `benchmarks/results`, so no number there can drift.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "cpu"
BEGIN, END = "<!-- results: benchmarks/readme_tables.py -->\n", "<!-- end of results -->"
CATEGORIES = ("attribute", "counting", "spatial", "ocr", "scene")


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def quality_table(report: dict[str, Any]) -> str:
    rows = [
        [
            row["method"],
            str(row["tokens_kept"]),
            f"{row['overall']:.3f}",
            *(f"{row['by_category'][category]:.3f}" for category in CATEGORIES),
        ]
        for row in report["rows"]
        if row["method"] == "all tokens" or row["tokens_kept"] in (8, 16, 36)
    ]
    return _table(["method", "kept", "overall", *CATEGORIES], rows)


def speed_table(report: dict[str, Any]) -> str:
    groups: dict[str, dict[str, dict[str, Any]]] = {}
    for row in report["rows"]:
        if not row["group"].startswith("select_tokens"):
            continue
        groups.setdefault(row["group"], {})[row["implementation"]] = row
    rows = []
    for implementations in groups.values():
        ours = implementations.pop("clasp_kernels")
        best = min(implementations.values(), key=lambda row: row["median_us"])
        eager = min(
            (row for name, row in implementations.items() if name != "compiled"),
            key=lambda row: row["median_us"],
        )
        shape = ours["shape"]
        rows.append(
            [
                f"{shape['batch']} x {shape['num_tokens']} x {shape['dim']} → {shape['budget']}",
                f"{shape['dtype']}, {shape['features']}",
                f"{ours['median_us'] / 1e3:.2f} ms",
                f"{eager['median_us'] / ours['median_us']:.1f}x ({eager['implementation']})",
                f"{best['median_us'] / ours['median_us']:.1f}x ({best['implementation']})",
            ]
        )
    header = ["B x N x D → R", "input", "time", "over the best eager", "over the best of all"]
    return _table(header, rows)


def tables() -> str:
    """Everything between the README's markers."""
    quality = json.loads((RESULTS / "tiny_vlm_quality.json").read_text())
    speed = json.loads((RESULTS / "select_tokens.json").read_text())
    environment = speed["environment"]
    accuracy = json.loads((RESULTS / "tiny_vlm_accuracy.json").read_text())
    seeing = accuracy["accuracy"]["image"]["overall"]
    blind = max(v["overall"] for name, v in accuracy["accuracy"].items() if name != "image")
    return (
        f"**Accuracy of the bundled model**, {quality['questions']} held-out questions, with all "
        f"144 visual tokens and with fewer. (On {accuracy['questions']} such questions, "
        f"{seeing:.3f} with all tokens; {blind:.3f} is the most any guess gets "
        "that does not see it.)\n\n"
        + quality_table(quality)
        + f"\n**`select_tokens` on a CPU** ({environment['processor']}, {environment['threads']} "
        f"threads, torch {environment['torch']}), medians, the baselines in the same run:\n\n"
        + speed_table(speed)
    )


def main() -> None:
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{BEGIN}{tables()}{END}{after}")


if __name__ == "__main__":
    main()
