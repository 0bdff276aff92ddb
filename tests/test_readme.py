"""The README is correct: its numbers are the committed ones, and its files exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import compat
import family_table
import readme_tables

from clasp_kernels.backends.table import ops_of
from clasp_kernels.models.compat import TESTED_RELEASES

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
RESULTS = (ROOT / "docs" / "results.md").read_text()
QUALITY = (ROOT / "docs" / "quality.md").read_text()
AT_SCALE = (ROOT / "docs" / "at-scale.md").read_text()
COMPATIBILITY = (ROOT / "docs" / "compatibility.md").read_text()
RECORD = json.loads((ROOT / "docs" / "compat.json").read_text())


def test_result_tables_are_made_from_the_committed_rows() -> None:
    for page, expected in (
        (RESULTS, readme_tables.tables()),
        (QUALITY, readme_tables.quality()),
        (AT_SCALE, readme_tables.at_scale()),
        (README, readme_tables.summary()),
    ):
        between = page.split(readme_tables.BEGIN)[1].split(readme_tables.END)[0]
        assert between == expected, "run python benchmarks/readme_tables.py"


def test_the_table_of_families_is_made_from_the_registry_and_recorded_tests() -> None:
    long, short = family_table.table(RECORD), family_table.short_table(RECORD)
    for page, rows in ((COMPATIBILITY, long), (README, short)):
        assert family_table.BEGIN in page
        assert family_table.with_table(page, rows) == page, "run python tools/family_table.py"


def test_the_table_of_releases_is_made_from_recorded_tests() -> None:
    assert compat.with_table(COMPATIBILITY, RECORD) == COMPATIBILITY, "run make compat"
    assert tuple(RECORD["releases"]) == TESTED_RELEASES, "run make compat"


def test_the_two_commands_come_first() -> None:
    assert re.search(r"^make demo\nmake test$", README, re.MULTILINE)


def test_links_lead_somewhere() -> None:
    others = (RESULTS, COMPATIBILITY, QUALITY, AT_SCALE)
    pages = [(ROOT, README), *((ROOT / "docs", page) for page in others)]
    for folder, page in pages:
        targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", page)
        assert targets
        for target in targets:
            assert (folder / target).exists(), target


def test_the_readme_is_short() -> None:
    prose = re.sub(r"^(```.*?^```|\|.*?)$", "", README, flags=re.MULTILINE | re.DOTALL)
    assert len(prose.split()) < 900


def test_the_changelog_names_every_op_with_triton_kernels() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text()
    entries = " ".join(entry for entry in changes.split("\n- ") if "riton" in entry)
    assert set(re.findall(r"`(\w+_\w+)`", entries)) >= set(ops_of("triton"))


def test_the_support_matrix_leaves_out_no_op_that_has_triton_kernels() -> None:
    (row,) = re.findall(r"^\| every op \|.*$", README, re.MULTILINE)
    assert not [op for op in ops_of("triton") if op in row]
