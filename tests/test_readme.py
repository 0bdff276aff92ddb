"""The README is true: its numbers are the committed ones and its files are there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import compat
import family_table
import readme_tables

from clasp_kernels._triton import TRITON_OPS
from clasp_kernels.models.compat import TESTED_RELEASES

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
RECORD = json.loads((ROOT / "docs" / "compat.json").read_text())


def test_result_tables_are_made_from_the_committed_rows() -> None:
    between = README.split(readme_tables.BEGIN)[1].split(readme_tables.END)[0]
    assert between == readme_tables.tables(), "run python benchmarks/readme_tables.py"


def test_the_table_of_families_is_made_from_the_registry_and_recorded_tests() -> None:
    assert family_table.BEGIN in README
    assert family_table.with_table(README, RECORD) == README, "run python tools/family_table.py"


def test_the_table_of_releases_is_made_from_recorded_tests() -> None:
    assert compat.with_table(README, RECORD) == README, "run make compat"
    assert tuple(RECORD["releases"]) == TESTED_RELEASES, "run make compat"


def test_the_two_commands_come_first() -> None:
    assert re.search(r"^make demo\nmake test$", README, re.MULTILINE)


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert len(targets) >= 6
    for target in targets:
        assert (ROOT / target).exists(), target


def test_the_changelog_names_every_op_with_triton_kernels() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text()
    entry = changes.split("- A `triton` backend")[1].split("\n- ")[0]
    assert set(re.findall(r"`(\w+_\w+)`", entry)) >= set(TRITON_OPS)


def test_the_support_matrix_leaves_out_no_op_that_has_triton_kernels() -> None:
    (row,) = re.findall(r"^\| every op \|.*$", README, re.MULTILINE)
    assert not [op for op in TRITON_OPS if op in row]
