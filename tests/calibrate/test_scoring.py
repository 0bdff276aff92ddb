"""Scorers: what counts as right."""

from __future__ import annotations

import pytest

from clasp_kernels.calibrate.scoring import SCORERS, anls, exact, relaxed, vqa


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("Exit", "exit"),
        ("the red car.", "red car"),
        ("Three", "3"),
        ("1,000", "1000"),
        ("It's", "its"),
        ("A", "a."),
        ("bottom-right", "Bottom-Right"),
        ("50%", "50%"),
        ("\uff25xit", "exit"),  # a full-width letter
    ],
)
def test_what_does_not_matter(answer: str, right: str) -> None:
    assert exact(answer, ["something else", right]) == 1.0


@pytest.mark.parametrize(
    ("answer", "right"),
    [("A", "dog"), ("", "dog"), ("1.5", "15"), ("dogs", "dog"), ("A dog", "A"), ("-3", "3")],
)
def test_what_does_matter(answer: str, right: str) -> None:
    assert exact(answer, [right]) == 0.0


def test_vqa_counts_annotators_that_agree() -> None:
    right = ["yes"] * 2 + ["no"] * 8
    # Leaving out one that agrees leaves one of three, leaving out another two of three.
    assert vqa("Yes", right) == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)
    assert vqa("no", right) == 1.0
    assert vqa("maybe", right) == 0.0


@pytest.mark.parametrize(
    ("answer", "right", "score"),
    [
        ("105", "100", 1.0),
        ("106", "100", 0.0),
        ("95", "100", 1.0),
        ("-95", "-100", 1.0),
        ("$1,040.", "1000", 1.0),
        ("0", "0", 1.0),
        ("0.001", "0", 0.0),
        ("blue", "Blue", 1.0),
        ("12", "twelve", 0.0),
        ("nan", "100", 0.0),
    ],
)
def test_relaxed_allows_numbers_five_percent(answer: str, right: str, score: float) -> None:
    assert relaxed(answer, [right]) == score
    assert relaxed(answer, ["other", right]) == score


def test_anls_is_the_similarity_to_the_nearest_answer() -> None:
    assert anls("ITC  Limited", ["itc limited", "ITC"]) == 1.0
    assert anls("abcd", ["abxx"]) == 0.5  # a half still counts
    assert anls("abcd", ["axxx"]) == 0.0
    assert anls("kitten", ["sitting"]) == pytest.approx(1 - 3 / 7)
    assert anls("", ["x"]) == 0.0


@pytest.mark.parametrize("name", SCORERS)
def test_scores_are_from_0_to_1(name: str) -> None:
    for answer in ("", "x", "3", "the", "..."):
        for right in (["x"], ["3", "4"], ["a"] * 10, ["..."]):
            assert 0.0 <= SCORERS[name](answer, right) <= 1.0
