"""A category gets another policy only if that is significantly better."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import ImageDraw

from clasp_kernels._version import __version__
from clasp_kernels.calibrate.choice import CategoryChoice, calibrated_profile, choose
from clasp_kernels.calibrate.dataset import Question
from clasp_kernels.calibrate.grid import OWN, Cell, Grid
from clasp_kernels.calibrate.heatmap import category_page, overview_page
from clasp_kernels.calibrate.results import in_words, write_answers, write_scores
from clasp_kernels.calibrate.stages import BEFORE_LLM, Stages
from clasp_kernels.calibrate.store import AnswerKey
from clasp_kernels.policy import CategoryPolicy, Profile, strategy_weights

PROFILE = Profile(
    "base",
    "llava",
    (-2, -1),
    "a guess",
    {
        "general": CategoryPolicy((0.5, 0.5), 0.5),
        "ocr": CategoryPolicy((0.4, 0.6), 0.3, budget_scale=2.0),
        "counting": CategoryPolicy(strategy_weights("E", 2), 0.5),
    },
)
GRID = Grid(PROFILE, ("A", "E"), (0.0, 0.5), ("clasp", "divprune"))
BUDGETS = (0.25, 16)
WINNER = Cell("divprune", "A")

#: The probability that an answer is right, by category, cell and budget.
Chance = Callable[[str, Cell, object], float]


def asked(category: str, count: int) -> list[Question]:
    return [
        Question(n, Path(f"{n}.png"), f"image {category} {n}", f"{n}?", ("right",), category)
        for n in range(count)
    ]


QUESTIONS = [*asked("counting", 80), *asked("ocr", 80)]


def answered(chance: Chance, seed: int = 0) -> dict[AnswerKey, str]:
    """Return answers of all cells, each right with its own chance."""
    draw = random.Random(seed)
    return {
        AnswerKey(question.key, str(budget), cell.name): (
            "Right." if draw.random() < chance(question.category or "", cell, budget) else "wrong"
        )
        for question in QUESTIONS
        for budget in BUDGETS
        for cell in GRID.cells(question.category or "")
    }


def planted(category: str, cell: Cell, budget: object) -> float:
    return 0.9 if category == "ocr" and cell == WINNER else 0.5


def chosen(chance: Chance, seed: int = 0) -> dict[str, CategoryChoice]:
    choices = choose(QUESTIONS, GRID, BUDGETS, answered(chance, seed), "exact", draws=1000)
    return {choice.category: choice for choice in choices}


def test_a_planted_winner_is_chosen_for_its_category_alone() -> None:
    choices = chosen(planted)
    assert list(choices) == ["ocr", "counting"]  # the order of the profile
    ocr, counting = choices["ocr"], choices["counting"]
    assert ocr.chosen.cell == WINNER and not ocr.is_kept
    assert ocr.chosen.difference == pytest.approx(ocr.chosen.score - ocr.default.score)
    assert ocr.chosen.difference_interval[0] > 0
    assert ocr.reason.startswith("divprune A scores ") and "higher than the default" in ocr.reason
    assert counting.is_kept and counting.chosen is counting.default
    assert "which is not significant (corrected p = " in counting.reason


def test_a_better_score_that_may_be_chance_keeps_the_default() -> None:
    for seed in range(5):
        choices = chosen(lambda category, cell, budget: 0.5, seed)
        for choice in choices.values():
            assert choice.is_kept
            assert choice.reason.startswith("the default is kept: ")


def test_a_default_that_is_best_is_kept_and_so_is_one_that_others_are_worse_than() -> None:
    choices = chosen(lambda category, cell, budget: 0.9 if cell == GRID.default(category) else 0.2)
    for choice in choices.values():
        assert choice.is_kept and choice.best is choice.default
        assert choice.reason == "the default is kept: no other cell scores higher"
        # The others differ significantly, in the other direction.
        assert any(result.p_value < 0.05 for result in choice.results[1:])


def test_the_score_is_the_mean_over_budgets() -> None:
    choice = chosen(lambda category, cell, budget: 1.0 if budget == 16 else 0.0)["ocr"]
    assert all(result.by_budget == (0.0, 1.0) for result in choice.results)
    assert all(result.score == 0.5 for result in choice.results)


def profile_of(
    choices: dict[str, CategoryChoice], grid: Grid = GRID, stages: Stages = BEFORE_LLM
) -> Profile:
    return calibrated_profile(
        grid,
        list(choices.values()),
        name="mine",
        data="data.jsonl",
        budgets=BUDGETS,
        stages=stages,
        scorer="exact",
    )


def test_the_profile_has_the_choices_and_says_what_found_them() -> None:
    profile = profile_of(chosen(planted))
    before = dict(PROFILE.categories)
    expected = CategoryPolicy(strategy_weights("A", 2), 0.3, 2.0, "divprune")
    assert profile.categories == {**before, "ocr": expected}
    assert profile.name == "mine" and profile.layers == PROFILE.layers
    assert profile.source == (
        f"clasp calibrate of clasp_kernels {__version__}: data.jsonl, 160 questions, budgets 0.25, "
        f"16, tokens dropped before the LLM, score exact, rules clasp, divprune, strategies A, E, "
        f"pivot ratios 0, 0.5: significantly better for ocr; the others as in 'base': a guess"
    )
    none = profile_of(chosen(lambda category, cell, budget: 0.5))
    assert none.categories == before
    assert none.source.endswith(": nothing better; all as in 'base': a guess")
    assert Profile.from_dict(profile.to_dict()) == profile
    own = Grid(PROFILE, (OWN,), (0.5,))
    inside = profile_of(chosen(lambda category, cell, budget: 0.5), own, Stages((0, 4), 6))
    assert (
        "budgets 0.25, 16 (means over decoder layers), tokens dropped before the LLM and after "
        "layer 4 of 6, score exact, rules clasp, pivot ratios 0.5: nothing better"
    ) in inside.source


def test_a_question_may_have_a_scorer_of_its_own() -> None:
    loose = [replace(question, scorer="anls", answers=("rights",)) for question in QUESTIONS]
    answers = answered(lambda category, cell, budget: 1.0)
    [choice, _] = choose(loose, GRID, BUDGETS, answers, "exact", draws=100)
    # "Right." and "rights" differ in one of six letters.
    assert choice.default.score == pytest.approx(5 / 6)


def test_tables_have_every_answer_and_every_cell(tmp_path: Path) -> None:
    answers, choices = answered(planted), chosen(planted)
    write_answers(tmp_path / "answers.csv", QUESTIONS, GRID, BUDGETS, answers, "exact")
    write_scores(tmp_path / "scores.csv", list(choices.values()), BUDGETS, Stages((2, 4), 6))
    with open(tmp_path / "answers.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(answers)
    mine = [
        float(row["score"])
        for row in rows
        if (row["category"], row["rule"], row["strategy"]) == ("ocr", "divprune", "A")
    ]
    assert sum(mine) / len(mine) == pytest.approx(choices["ocr"].chosen.score)
    with open(tmp_path / "scores.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["stages"] for row in rows} == {"2,4"}
    assert len(rows) == 7 + 6  # the default of ocr is no cell of the grid, that of counting is
    [row] = [row for row in rows if row["category"] == "ocr" and row["chosen"] == "1"]
    assert (row["rule"], row["strategy"], row["default"]) == ("divprune", "A", "0")
    assert float(row["difference"]) == pytest.approx(choices["ocr"].chosen.difference, abs=1e-5)
    [row] = [row for row in rows if row["category"] == "ocr" and row["default"] == "1"]
    assert (row["strategy"], row["difference"], row["corrected_p"]) == ("default", "", "")


def test_what_was_decided_is_said_for_every_category() -> None:
    lines = in_words(list(chosen(planted).values()), PROFILE.category_names)
    assert [line.split(":")[0] for line in lines] == ["ocr", "counting", "general"]
    assert lines[-1] == "general: the default is kept, as there are no questions."


def test_heat_maps_show_every_score() -> None:
    choices = chosen(planted)
    every = list(choices.values())
    pages = [category_page(choice, GRID, BUDGETS, BEFORE_LLM) for choice in every]
    pages.append(category_page(choices["ocr"], GRID, BUDGETS[:1], BEFORE_LLM))
    pages.append(overview_page(every, GRID, BEFORE_LLM, "all"))
    for page in pages:
        assert page.mode == "RGB" and page.width < 1200
        colors = page.getcolors(1 << 16)
        assert colors is not None and len(colors) > 50
    # The thick frame of the choice is drawn where it is, and a page without it differs.
    blue = (0, 114, 178)
    assert all(blue in {color for _, color in page.getcolors(1 << 16) or ()} for page in pages)


def test_heat_maps_say_where_tokens_were_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    draw = ImageDraw.ImageDraw.text

    def text(
        self: ImageDraw.ImageDraw, place: object, words: str, *more: Any, **given: Any
    ) -> None:
        written.append(words)
        draw(self, place, words, *more, **given)  # type: ignore[arg-type]

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    every, stages = list(chosen(planted).values()), Stages((2, 4), 6)
    category_page(every[0], GRID, BUDGETS, stages)
    assert {"tokens dropped after layers 2 and 4 of 6", "a mean of 16 tokens"} <= set(written)
    written.clear()
    overview_page(every, GRID, stages, "all")
    assert "tokens dropped after layers 2 and 4 of 6" in written
