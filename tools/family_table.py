"""Writes the tables of model families from the registry and the results of `make compat`.

    python tools/family_table.py

Every family of the registry gets a row. Families without a recorded run are marked as untested.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clasp_kernels.models.adapter import Adapter
from clasp_kernels.models.decoder import refusal
from clasp_kernels.models.families import ADAPTERS
from clasp_kernels.models.specimens import SPECIMENS
from clasp_kernels.policy import Profile

ROOT = Path(__file__).resolve().parent.parent
README, PAGE = ROOT / "README.md", ROOT / "docs" / "compatibility.md"
RECORD = ROOT / "docs" / "compat.json"
BEGIN, END = "<!-- families: tools/family_table.py -->\n", "<!-- end of families -->"
HEADER = (
    "family (`model_type`)",
    "before the decoder",
    "inside it",
    "videos",
    "features fused into the projector",
    "tested with transformers",
)
NEVER = "not tested yet"


def table(record: Mapping[str, Any]) -> str:
    """Returns one row per family of the registry. Families with equal cells share a row."""
    names: dict[tuple[str, ...], list[str]] = {}
    for model_type, adapter in ADAPTERS.items():
        tested = {
            release: result["families"][model_type]
            for release, result in record["releases"].items()
            if model_type in result["families"]
        }
        row = (
            *title(adapter),
            oracle("before", tested),
            inside(model_type) or oracle("inside", tested),
            "yes, each one pool" if takes_videos(adapter) else "-",
            projector(adapter, model_type),
            releases(tested),
        )
        names.setdefault(row, []).append(f"`{model_type}`")
    rows = [HEADER, ("---",) * len(HEADER)]
    for (name, special, *cells), types in names.items():
        rows.append((f"{name} ({', '.join(types)}){special}", *cells))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def short_table(record: Mapping[str, Any]) -> str:
    """Returns the README's table: the same rows with fewer cells."""
    rows = [line.strip("| \n").split(" | ") for line in table(record).splitlines()]
    lines = [[cells[0].partition("):")[0] + ")", *cells[1:4]] for cells in rows[2:]]
    head = [HEADER[:4], ["---"] * 4]
    for cells in lines:
        cells[0] = cells[0].replace("))", ")")
        cells[2], cells[3] = cells[2].partition(":")[0], cells[3].partition(",")[0]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [*head, *lines])


def title(adapter: type[Adapter]) -> tuple[str, str]:
    """Splits the first sentence of the adapter's module docstring, "Name: what is special about
    it."."""
    first = inspect.getdoc(sys.modules[adapter.__module__])
    assert first, f"{adapter.__module__} has no docstring"
    name, _, special = " ".join(first.partition("\n\n")[0].split()).rstrip(".").partition(": ")
    return name, f": {special}" if special else ""


def inside(model_type: str) -> str:
    """Returns why the family's decoder cannot be pruned between its layers, or an empty string."""
    reason = refusal(SPECIMENS[model_type].build().config.get_text_config())
    return f"no: {reason.partition(' cannot be pruned')[0]}" if reason else ""


def oracle(where: str, tested: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns whether the oracle's checks of pruning at `where` passed."""
    failing = [release for release, family in tested.items() if not family[where]]
    if failing == list(tested):
        return "no" if tested else NEVER
    return f"not with {', '.join(failing)}" if failing else "yes"


def takes_videos(adapter: type[Adapter]) -> bool:
    return any("video" in argument for argument in adapter.pixel_arguments)


def projector(adapter: type[Adapter], model_type: str) -> str:
    """Returns whether the family's tiny model works with ``fuse_into="projector"``."""
    try:
        adapter(SPECIMENS[model_type].build(), Profile.for_model_type(model_type), "projector")
    except ValueError as refusal:
        reason = re.search(r"\bbut (this model .*?);", str(refusal))
        return f"no: {reason[1]}" if reason else "no"
    return "yes"


def releases(tested: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the releases with which all tests of the family passed."""
    passing = [
        release
        for release, family in tested.items()
        if family["passed"] and not family["failed"] and family["before"] and family["inside"]
    ]
    return ", ".join(passing) or NEVER


def with_table(text: str, rows: str) -> str:
    """Returns the page with `rows` between its two markers."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}{rows}{END}{rest.partition(END)[2]}"


def main() -> None:
    record = json.loads(RECORD.read_text())
    for path, rows in ((PAGE, table(record)), (README, short_table(record))):
        path.write_text(with_table(path.read_text(), rows))


if __name__ == "__main__":
    main()
