"""The table of families has a row for each family, and only claims what was tested."""

from __future__ import annotations

import re
from typing import Any

import family_table
import pytest

from clasp_kernels.models.families import ADAPTERS
from clasp_kernels.models.families.llava import LlavaAdapter

PASSED = {"passed": 5, "skipped": 1, "failed": 0, "before": True, "inside": True}


def cells(**releases: dict[str, Any]) -> list[str]:
    """Return the cells of LLaVA's row for the given results by release."""
    record = {
        "releases": {
            release.replace("_", "."): {"families": {"llava": family} if family else {}}
            for release, family in releases.items()
        }
    }
    [row] = [line for line in family_table.table(record).splitlines() if "`llava`" in line]
    return row.strip("| ").split(" | ")


@pytest.fixture
def llava_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove all other families, so that making a table is fast."""
    # In the reverse order, so that undoing it restores the registry's order.
    for model_type in [name for name in reversed(ADAPTERS) if name != "llava"]:
        monkeypatch.delitem(ADAPTERS, model_type)


@pytest.mark.usefixtures("llava_alone")
def test_what_passes_is_named() -> None:
    title, *rest = cells(r1_0=PASSED, r2_0=PASSED)
    assert title.startswith("LLaVA 1.5 (`llava`): a CLIP vision tower")
    assert rest == ["yes", "yes", "-", "yes", "r1.0, r2.0"]


@pytest.mark.usefixtures("llava_alone")
def test_what_never_ran_is_not_claimed() -> None:
    assert cells(r1_0={})[1:3] == ["not tested yet"] * 2
    assert cells(r1_0={})[-1] == "not tested yet"
    assert cells()[-1] == "not tested yet"
    assert cells(r1_0={}, r2_0=PASSED)[-1] == "r2.0"


@pytest.mark.usefixtures("llava_alone")
def test_what_fails_is_not_claimed() -> None:
    broken = {**PASSED, "failed": 1, "inside": False}
    assert cells(r1_0=broken, r2_0=PASSED)[1:3] == ["yes", "not with r1.0"]
    assert cells(r1_0=broken, r2_0=PASSED)[-1] == "r2.0"
    assert cells(r1_0=broken)[2] == "no"
    assert cells(r1_0={**PASSED, "failed": 1})[-1] == "not tested yet"
    assert cells(r1_0={**PASSED, "passed": 0})[-1] == "not tested yet"


@pytest.mark.usefixtures("llava_alone")
def test_adapters_are_asked_what_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refuses(LlavaAdapter):
        pixel_arguments = ("pixel_values", "pixel_values_videos")

        def __init__(self, *arguments: Any) -> None:
            raise ValueError(
                "fuse_into='projector' does not fit, but this model folds; use another"
            )

    monkeypatch.setitem(ADAPTERS, "llava", Refuses)
    Refuses.__module__ = LlavaAdapter.__module__
    assert cells(r1_0=PASSED)[3:5] == ["yes, each one pool", "no: this model folds"]


def test_every_family_says_why_it_refuses_the_projector() -> None:
    rows = family_table.table({"releases": {}}).splitlines()[2:]
    named = [f"`{model_type}`" for model_type in ADAPTERS]
    assert sorted(re.findall(r"`\w+`", " ".join(row.split(" | ")[0] for row in rows))) == sorted(
        named
    )
    for row in rows:
        projector = row.split(" | ")[4]
        assert projector == "yes" or projector.startswith("no: this model "), row
