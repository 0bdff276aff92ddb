"""Answers on disk survive a kill, and are not mixed with those of another calibration."""

from __future__ import annotations

from pathlib import Path

import pytest

from clasp_kernels.calibrate.store import AnswerKey, AnswerStore, OtherCalibration

MANIFEST = {"model": "a", "budgets": [0.25]}
ONE, TWO = AnswerKey("q1", "0.25", "clasp E 0.5"), AnswerKey("q2", "0.25", "clasp E 0.5")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of a store with two answers."""
    with AnswerStore(tmp_path / "store", MANIFEST) as store:
        store.add([(ONE, "yes"), (TWO, "a \n new \u2028 line")])
    return tmp_path / "store"


def test_answers_are_there_again(folder: Path) -> None:
    with AnswerStore(folder, MANIFEST) as store:
        assert store.answers == {ONE: "yes", TWO: "a \n new \u2028 line"}


def test_half_a_line_is_removed_wherever_the_process_was_killed(folder: Path) -> None:
    path = folder / "answers.jsonl"
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for length in range(first, len(whole)):
        path.write_bytes(whole[:length])
        with AnswerStore(folder, MANIFEST) as store:
            assert store.answers == {ONE: "yes"}
            store.add([(TWO, "a \n new \u2028 line")])
        assert path.read_bytes() == whole


@pytest.mark.parametrize("line", [b"{}\n", b"[1]\n", b"\xff\n", b'["q", "b"\n'])
def test_damage_that_is_no_half_line_is_refused(folder: Path, line: bytes) -> None:
    path = folder / "answers.jsonl"
    path.write_bytes(line + path.read_bytes())
    with pytest.raises(ValueError, match=r"answers\.jsonl is damaged at line 1"):
        AnswerStore(folder, MANIFEST)


def test_another_calibration_is_refused_and_the_difference_named(folder: Path) -> None:
    before = (folder / "answers.jsonl").read_bytes()
    other = {"model": "b", "budgets": [0.25], "rules": ["clasp"]}
    with pytest.raises(OtherCalibration) as refused:
        AnswerStore(folder, other)
    assert str(refused.value) == (
        'model was "a", and is "b" now; rules was not given, and is ["clasp"] now'
    )
    with AnswerStore(folder, MANIFEST):  # it is closed again, and unchanged
        assert (folder / "answers.jsonl").read_bytes() == before


def test_manifests_that_are_equal_as_json_are_equal(folder: Path) -> None:
    AnswerStore(folder, {**MANIFEST, "budgets": (0.25,)}).__exit__(None, None, None)


def test_a_damaged_or_missing_manifest_is_refused(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        AnswerStore(folder, MANIFEST)
    (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"has answers but no manifest\.json"):
        AnswerStore(folder, MANIFEST)


def test_two_processes_do_not_write_at_once(folder: Path) -> None:
    # A second open file has its own lock, in the same process too.
    with (
        AnswerStore(folder, MANIFEST),
        pytest.raises(ValueError, match="another process is writing"),
    ):
        AnswerStore(folder, MANIFEST)
