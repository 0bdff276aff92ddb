"""`benchmarks/quality`: what is kept, its statistics, its verdicts, and what is written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from quality import page, picture
from quality.names import ALL, BLIND, BUDGETS, FREQUENT, FULL, NUM_TOKENS, SMALLER
from quality.questions import FIRST_SEED, Label, draw, labels
from quality.records import (
    mean_of,
    read_correct,
    read_labels,
    with_random,
    write_correct,
    write_labels,
)
from quality.report import judged_bed
from quality.resampling import Estimate, Resampled, counting_cells, simultaneous
from quality.rows import RULES
from quality.verdicts import (
    REFUTED,
    SUPPORTED,
    UNDECIDED,
    UNJUDGED,
    Verdict,
    all_of,
    fitness,
    judged,
    verdicts,
)
from quality_rows import CHOICES, EVERY
from words import CATEGORIES

# Records


def test_which_answers_were_right_is_read_as_it_was_written(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    written = {
        (name, budget): (generator.random(13) < 0.5).tolist()
        for name in ("random 1", "random 2", "random 3", FULL)
        for budget in (7, 16)
    }
    write_correct(tmp_path / "bits.csv", written)
    found = read_correct(tmp_path / "bits.csv", 13)
    assert {key: bits.astype(bool).tolist() for key, bits in found.items()} == written
    mean = with_random(found)
    assert set(mean) == {(name, budget) for name in ("random", FULL) for budget in (7, 16)}
    expected = np.mean([written[f"random {seed}", 7] for seed in (1, 2, 3)], axis=0)
    assert np.array_equal(mean["random", 7], expected)
    assert np.array_equal(mean_of([found, found])[FULL, 7], found[FULL, 7])
    marks = labels(draw("heldout", 1))
    write_labels(tmp_path / "questions.csv", marks)
    assert read_labels(tmp_path / "questions.csv") == marks


# Statistics

QUESTIONS = [
    Label(kind, category, needs)
    for kind in ("objects", "documents", "textures", "clutter")
    for category in CATEGORIES[:4]
    for needs in ("spot", "whole")
    for _ in range(50)
]
CELLS = list(dict.fromkeys(label.cell for label in QUESTIONS))


def answered(share: float, seed: int) -> np.ndarray[Any, Any]:
    """A row that answers about ``share`` of the questions right, another one for each seed."""
    return (np.random.default_rng(seed).random(len(QUESTIONS)) < share).astype(np.float64)


def test_a_cell_counts_from_20_points_above_the_best_guess() -> None:
    two = [Label("objects", "ocr", "spot")] * 10 + [Label("signs", "ocr", "spot")] * 10
    seeing = np.array([1.0] * 5 + [0.0] * 5 + [1.0] * 4 + [0.0] * 6)
    blind, frequent = np.zeros(20), np.array([1.0] * 3 + [0.0] * 17)
    assert counting_cells(two, seeing, [blind, frequent]) == ["objects/ocr", "signs/ocr"]
    frequent[:4], frequent[10:12] = 1, 1
    assert counting_cells(two, seeing, [blind, frequent]) == ["signs/ocr"]


def test_the_row_of_all_tokens_retains_all_without_an_interval() -> None:
    correct = {(ALL, NUM_TOKENS): answered(0.8, 0)}
    found = Resampled(QUESTIONS, correct, CELLS).retained((ALL, NUM_TOKENS))
    assert found.shape == (2001,) and np.allclose(found, 1)


def test_the_interval_of_an_accuracy_is_that_of_the_binomial() -> None:
    correct = {(ALL, NUM_TOKENS): np.ones(len(QUESTIONS)), (FULL, 16): answered(0.7, 1)}
    found = Estimate.of(Resampled(QUESTIONS, correct, CELLS).retained((FULL, 16)))
    share = correct[FULL, 16].mean()
    reach = 1.96 * np.sqrt(share * (1 - share) / len(QUESTIONS))
    assert found.value == pytest.approx(share)
    assert (found.high - found.low) / 2 == pytest.approx(reach, rel=0.1)


def test_retained_accuracy_is_the_mean_of_the_categories_of_what_counts() -> None:
    two = [Label("objects", "ocr", "spot")] * 10 + [Label("objects", "scene", "whole")] * 2
    two += [Label("signs", "scene", "whole")] * 5
    whole = np.array([1.0] * 8 + [0.0] * 2 + [1.0] * 2 + [1.0] * 5)
    row = np.array([1.0] * 4 + [0.0] * 6 + [1.0] * 2 + [0.0] * 5)
    correct = {(ALL, NUM_TOKENS): whole, (FULL, 16): row}
    some = Resampled(two, correct, ["objects/ocr", "objects/scene"], draws=5)
    assert some.retained((FULL, 16))[0] == pytest.approx((0.5 + 1) / 2)
    assert some.retained((FULL, 16), lambda label: label.needs == "spot")[0] == pytest.approx(0.5)
    every = Resampled(two, correct, ["objects/ocr", "objects/scene", "signs/scene"], draws=5)
    assert every.retained((FULL, 16))[0] == pytest.approx((0.5 + 2 / 7) / 2)


def test_a_resample_without_right_answers_of_a_category_leaves_it_out() -> None:
    few = [Label("objects", "ocr", "spot")] * 3 + [Label("objects", "scene", "whole")] * 40
    whole = np.array([1.0, 0.0, 0.0] + [1.0] * 40)
    correct = {(ALL, NUM_TOKENS): whole, (FULL, 16): whole}
    found = Resampled(few, correct, ["objects/ocr", "objects/scene"]).retained((FULL, 16))
    assert np.array_equal(found, np.ones(2001))


def test_differences_are_paired_by_question() -> None:
    row = answered(0.6, 2)
    other = row.copy()
    other[:20] = 0
    correct = {(ALL, NUM_TOKENS): answered(0.9, 3), (FULL, 16): row, ("pool", 16): other}
    some = Resampled(QUESTIONS, correct, CELLS)
    paired = Estimate.of(some.retained((FULL, 16)) - some.retained(("pool", 16)))
    alone = Estimate.of(some.retained((FULL, 16)))
    assert paired.low > 0
    assert paired.high - paired.low < (alone.high - alone.low) / 2


def test_simultaneous_intervals_miss_one_of_many_values_as_seldom_as_one_interval_misses_its() -> (
    None
):
    generator = np.random.default_rng(0)
    scales = np.linspace(1, 3, 20)[:, None]
    missed = {"single": 0, "simultaneous": 0}
    for _ in range(200):
        values = scales * generator.standard_normal((20, 1))
        drawn = values + scales * generator.standard_normal((20, 400))
        samples = list(np.concatenate([values, drawn], axis=1))
        missed["single"] += any(not it.low <= 0 <= it.high for it in map(Estimate.of, samples))
        missed["simultaneous"] += any(not it.low <= 0 <= it.high for it in simultaneous(samples))
    assert missed["single"] > 100
    assert 2 <= missed["simultaneous"] <= 25  # 5 % of 200 are 10


def test_the_simultaneous_interval_of_one_value_is_its_own_and_one_of_certainty_has_no_width() -> (
    None
):
    drawn = np.concatenate([[0.0], np.random.default_rng(0).standard_normal(4000)])
    alone, certain = Estimate.of(drawn), np.full(4001, 3.0)
    together = simultaneous([drawn, certain])
    assert together[0].low == pytest.approx(alone.low, abs=0.1)
    assert together[0].high == pytest.approx(alone.high, abs=0.1)
    assert together[1] == Estimate(3, 3, 3)


# Verdicts

GAIN, LOSS = Estimate(5, 1, 9), Estimate(-5, -9, -1)
NOTHING, OPEN, SMALL = Estimate(0, -1.5, 1.5), Estimate(0, -6, 6), Estimate(1, 0.5, 1.5)


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([GAIN, GAIN, OPEN, OPEN], SUPPORTED),
        ([GAIN, OPEN, OPEN, OPEN], UNDECIDED),
        ([GAIN, GAIN, GAIN, LOSS], UNDECIDED),
        ([NOTHING, NOTHING, NOTHING, OPEN], REFUTED),
        ([NOTHING, LOSS, NOTHING, GAIN], REFUTED),
        ([NOTHING, NOTHING, OPEN, OPEN], UNDECIDED),
        ([SMALL, SMALL, SMALL, OPEN], UNDECIDED),  # shown, and within 2 points
        ([GAIN, GAIN], SUPPORTED),
    ],
)
def test_differences_are_judged_as_the_plan_says(
    differences: list[Estimate], expected: str
) -> None:
    assert judged(differences) == expected


def test_a_part_needs_every_comparison_and_one_refutes_it() -> None:
    assert all_of([SUPPORTED, SUPPORTED]) == SUPPORTED
    assert all_of([SUPPORTED, UNDECIDED]) == UNDECIDED
    assert all_of([SUPPORTED, REFUTED]) == REFUTED


def bed(shares: Mapping[str, float], default: float) -> dict[tuple[str, int], Any]:
    """All rows of the plan: a row of share s answers the first s of every group right."""
    rank = np.tile((np.arange(50) + 0.5) / 50, len(QUESTIONS) // 50)
    found = {}
    for row in EVERY:
        name = "random" if row.name.startswith("random") else row.name
        for budget in row.budgets:
            found[name, budget] = (rank < shares.get(name, default)).astype(np.float64)
    found[FREQUENT, NUM_TOKENS] = np.zeros(len(QUESTIONS))
    found[BLIND, NUM_TOKENS] = np.zeros(len(QUESTIONS))
    return found


def judged_verdicts(correct: Mapping[tuple[str, int], Any]) -> dict[str, Verdict]:
    resampled = Resampled(QUESTIONS, correct, CELLS, draws=200)
    fit = fitness(CELLS, resampled)
    return {each.part: each for each in verdicts(resampled, CHOICES, fit)}


def judged_parts(correct: Mapping[tuple[str, int], Any]) -> dict[str, str]:
    return {part: each.verdict for part, each in judged_verdicts(correct).items()}


def test_a_clasp_that_is_best_is_supported_and_one_like_the_others_is_refuted() -> None:
    best = judged_parts(bed({ALL: 1, FULL: 0.9, "progressive (0, 2, 4)": 0.96}, 0.7))
    assert best["routing"] == best["dual stage"] == best["the whole"] == SUPPORTED
    assert best["progressive"] == SUPPORTED
    assert best["fusion"] == UNDECIDED  # it gains no more on textures and documents than elsewhere
    alike = judged_parts(bed({ALL: 1}, 0.7))
    assert set(alike.values()) == {REFUTED}


def test_each_part_is_judged_by_its_own_rows() -> None:
    base = {ALL: 1.0, FULL: 0.9}
    for part, name in (
        ("routing", "one profile"),
        ("routing", "wrong category"),
        ("fusion", "one layer (-1)"),
        ("dual stage", "pivots only"),
        ("dual stage", "completion only"),
        ("the whole", "uniform"),
        ("the whole", "pool"),
        ("the whole", SMALLER),
    ):
        found = judged_parts(bed({**base, name: 0.9}, 0.7))
        assert found[part] == REFUTED, name
    ahead = judged_parts(bed({**base, "divprune": 0.95}, 0.7))
    assert ahead["the whole"] == UNDECIDED


def test_fusion_is_supported_if_it_gains_most_on_textures_and_documents() -> None:
    correct = bed({ALL: 1, FULL: 0.8}, 0.7)
    detailed = np.array([label.kind in ("textures", "documents") for label in QUESTIONS])
    for budget in BUDGETS:
        better = bed({}, 0.98)[FULL, budget]
        correct[FULL, budget] = np.where(detailed, better, correct[FULL, budget])
    assert judged_parts(correct)["fusion"] == SUPPORTED


def test_progressive_may_not_lose_more_on_whole_pictures_than_it_gains_on_spots() -> None:
    name = "progressive (0, 2, 4)"
    correct = bed({ALL: 1, FULL: 0.8, name: 0.86}, 0.7)
    whole = np.array([label.needs == "whole" for label in QUESTIONS])
    assert judged_parts(correct)["progressive"] == SUPPORTED
    for budget in BUDGETS:
        correct[name, budget] = np.where(whole, bed({}, 0.6)[name, budget], correct[name, budget])
    assert judged_parts(correct)["progressive"] == UNDECIDED


def test_the_whole_says_which_rules_are_ahead_and_what_its_criterion_does_not_test() -> None:
    correct = bed({ALL: 1, FULL: 0.9, "scope": 0.92}, 0.7)
    correct["scope", 48] = correct[FULL, 48]
    found = judged_verdicts(correct)["the whole"]
    assert "scope is shown better than full at 32, 16 and 7" in found.notes
    assert any(
        "within 1 point of the best other rule at 48;" in note
        and "does not test non-inferiority: intervals reach below -1 point at 32, 16 and 7" in note
        for note in found.notes
    )
    assert not any("divprune" in note for note in found.notes if "shown better" in note)


def test_the_whole_is_judged_without_the_smaller_image_too() -> None:
    found = judged_verdicts(bed({ALL: 1, FULL: 0.9, SMALLER: 0.9}, 0.7))["the whole"]
    assert found.verdict == REFUTED
    assert found.notes[-1].endswith("without this control, the whole is supported")


def test_a_single_layer_that_is_better_than_the_profile_is_named() -> None:
    found = judged_verdicts(bed({ALL: 1, FULL: 0.8, "one layer (-1)": 0.86}, 0.7))["fusion"]
    assert "one layer (-1) is shown better than full at 48, 32, 16 and 7" in found.notes


def test_a_bed_that_is_not_fit_judges_nothing() -> None:
    easy = judged_parts(bed({ALL: 1, FULL: 0.99}, 0.95))
    assert set(easy.values()) == {UNJUDGED}
    correct = bed({ALL: 1, FULL: 0.9}, 0.7)
    few = Resampled(QUESTIONS, correct, CELLS[:11], draws=50)
    assert fitness(CELLS[:11], few).problems == ("11 cells count, fewer than 12",)
    assert fitness(CELLS, Resampled(QUESTIONS, correct, CELLS, draws=50)).is_fit


# What is written


def report(correct: Mapping[tuple[str, int], Any]) -> dict[str, Any]:
    one = {
        "name": "seed1",
        "profile": "a sweep",
        "versions": {"torch": "2", "transformers": "5"},
        **judged_bed(QUESTIONS, correct, CHOICES, draws=100),
    }
    return {
        "questions": len(QUESTIONS),
        "questions_per_cell": 100,
        "cells": len(CELLS),
        "training_questions": 10,
        "first_seed": FIRST_SEED | {"recipe": 0, "profile": 1},
        "rules": RULES,
        "models": [one],
        "mean": one,
    }


TIMES = {
    "rounds": 3,
    "batch": 32,
    "environment": {"processor": "a processor", "torch": "2"},
    "microseconds": {
        name: {str(budget): [10.0 + n, 9.0 + n, 12.0 + n] for budget in BUDGETS}
        for n, name in enumerate([FULL, "random", "divprune"])
    },
}


def test_the_page_has_every_row_and_verdict_and_the_plot_is_drawn(tmp_path: Path) -> None:
    made = json.loads(json.dumps(report(bed({ALL: 1, FULL: 0.9}, 0.7))))
    text = page.page(made, TIMES, "quality.png")
    for row in EVERY:
        name = "random" if row.name.startswith("random") else row.name
        assert f"| {name} | " in text
    assert "| routing | **supported** | " in text
    assert "| full | 90.0 [" in text
    assert "| random | 11 [10, 13] | " in text
    sizes = []
    for times in (TIMES, None):
        picture.draw_picture(made, times, tmp_path / "quality.png")
        sizes.append(Image.open(tmp_path / "quality.png").width)
    assert sizes[0] == 2 * sizes[1]
    assert "None are recorded yet" in page.page(made, None, "quality.png")


def test_the_page_and_the_readme_say_what_is_ahead_of_clasp() -> None:
    correct = bed({ALL: 1, FULL: 0.9, "one profile": 0.96}, 0.7)
    correct["divprune", 7] = bed({}, 0.94)[FULL, 7]
    made = json.loads(json.dumps(report(correct)))
    text = page.page(made, None, "quality.png")
    assert "of other rules: `divprune` at 7 tokens (by 4.0 points)." in text
    assert "*one profile* at 48, 32, 16 and 7 tokens (by 6.0 points)" in text
    assert "within 1 point of the best other rule at 3 of 4 budgets (48, 32 and 16)." in text
    assert "20 to 20 points more than" in text
    short = page.in_short(made)
    assert "`divprune` at 7 tokens (by 4.0 points), *one profile* at 48, 32, 16 and 7" in short
    assert "Of its parts, refuted: routing" in short
    alone = json.loads(json.dumps(report(bed({ALL: 1, FULL: 0.9}, 0.7))))
    assert "Shown to be better than it there: nothing." in page.in_short(alone)


def test_the_page_says_if_the_recipe_was_judged_on_the_same_pictures() -> None:
    made = report(bed({ALL: 1, FULL: 0.9}, 0.7))
    assert "so on none of these questions" in page.page(made, None, "quality.png")
    assert "was judged on some" not in page.in_short(made)
    made["first_seed"] = made["first_seed"] | {"heldout": 0}
    assert "was judged on some of these questions" in page.in_short(made)
    assert "so **on some** of these questions" in page.page(made, None, "quality.png")


def test_a_model_that_sees_nothing_has_a_page_without_verdicts() -> None:
    text = page.page(report(bed({ALL: 0.1}, 0.1)), None, "quality.png")
    assert "No, so no part is judged: 0 cells count, fewer than 12." in text
    assert "Verdicts" not in text


def test_labels_of_the_plot_keep_apart_and_in_order() -> None:
    places = picture.apart([5.0, 5.1, 1.0, 5.0], gap=1.0)
    order = sorted(range(4), key=lambda n: places[n])
    assert order == [2, 0, 3, 1]
    ascending = sorted(places)
    assert all(after - before >= 1 - 1e-9 for before, after in pairwise(ascending))
