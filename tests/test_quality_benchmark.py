"""`benchmarks/quality`: its questions, its rows, and how they are run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import evaluate
import harness_task
import kinds
import make_demo_assets
import pytest
from evaluate import generate_answers, prepare
from pictures import Picture
from quality import run
from quality.answering import Answerer
from quality.names import ALL, BLIND, BUDGETS, FULL, NUM_TOKENS, SMALLER
from quality.page import read_times
from quality.questions import batches, digest, draw, labels, num_cells
from quality.rows import (
    RULES,
    Row,
    choose,
    inside_rows,
    layer_name,
    layer_rows,
    one_layer,
    side,
    training_rows,
    wrong_category,
)
from quality.run import Job, jobs
from quality.times import interleaved
from quality_rows import EVERY, MODEL, PROFILE
from words import CATEGORIES
from write_questions import training_examples

from clasp_kernels.calibrate.store import AnswerStore
from clasp_kernels.models import apply_clasp
from clasp_kernels.rules import registry, rule_names

# Questions


def test_every_cell_has_equally_many_questions_and_no_picture_is_in_both_splits() -> None:
    drawn = {split: draw(split, 3) for split in ("train", "heldout")}
    for split, examples in drawn.items():
        cells = [label.cell for label in labels(examples)]
        assert {cells.count(cell) for cell in cells} == {3}
        assert len(set(cells)) == num_cells()
        assert {picture.split for picture, _ in examples} == {split}
    contents = [{each.content for each, _ in examples} for examples in drawn.values()]
    assert not contents[0] & contents[1]


def test_the_final_pictures_are_drawn_by_nothing_else(monkeypatch: Any) -> None:
    """Each script that draws pictures, at the size of its recorded results or more."""
    drawn: list[tuple[str, int, str]] = []

    def sample(kind: str, seed: int, split: str) -> Picture:
        drawn.append((kind, seed, split))
        return kinds.sample(kind, seed, split)

    for module in (evaluate, make_demo_assets):
        monkeypatch.setattr(module, "sample", sample)
    asked = {
        "recipe": lambda: evaluate.heldout_examples(250),
        "demo": lambda: make_demo_assets.choose(make_demo_assets.ASKED),
        "profile": lambda: training_examples(300),
        "choices": lambda: draw("train", 40),
        "final": lambda: draw("heldout", 230),
    }
    seeds, contents = {}, {}
    for use, examples in asked.items():
        drawn.clear()
        contents[use] = {picture.content for picture, _ in examples()}
        seeds[use] = set(drawn)
    for one, other in combinations(asked, 2):
        assert not seeds[one] & seeds[other], (one, other)
    assert not contents["final"] & (contents["recipe"] | contents["demo"])
    # The scenes of the harness are among those that may judge a recipe.
    assert {scene.content for scene, _ in harness_task.examples(20)} <= {
        kinds.sample("objects", seed, "heldout").content for seed in range(100)
    }


def test_the_hash_of_questions_sees_another_answer_and_another_order() -> None:
    examples = draw("heldout", 1)
    (shown, question), *others = examples
    assert digest(examples) == digest(draw("heldout", 1))
    assert digest([(shown, replace(question, answer="?")), *others]) != digest(examples)
    assert digest([*others, (shown, question)]) != digest(examples)


def test_batches_hold_every_question_once_and_one_length_each() -> None:
    lengths = [5, 7, 5, 5, 9, 7]
    made = batches(lengths, 2)
    assert sorted(number for batch in made for number in batch) == list(range(6))
    assert all(len({lengths[number] for number in batch}) == 1 for batch in made)
    assert max(map(len, made)) == 2


# Rows


def test_the_rows_are_those_of_the_plan() -> None:
    names = [row.name for row in EVERY]
    assert len(names) == len(set(names))
    assert {*rule_names()} - {"clasp", "random"} <= {*names}
    single = [layer_name(layer) for layer in PROFILE.layers]
    assert {
        *(ALL, BLIND, "random 1", "random 2", "random 3", "uniform", "pool", SMALLER, FULL),
        *("one profile", "fixed split", "pivots only", "completion only", "wrong category"),
        *("progressive (0, 2, 4)", "progressive (1, 3)"),
        *single,
    } <= {*names}


def test_a_schedule_keeps_the_budget_on_average() -> None:
    inside = [row for row in EVERY if row.stages]
    assert [row.budgets for row in inside] == [BUDGETS, (48, 32)]
    for row in inside:
        for budget in row.budgets:
            schedule = row.schedule(budget)
            assert schedule is not None
            assert abs(schedule.average(144, 6) - budget) <= 0.5


def test_the_wrong_category_is_the_next_one_and_a_single_layer_has_all_the_weight() -> None:
    ratios = dict(zip(CATEGORIES, (0.1, 0.2, 0.3, 0.4, 0.5), strict=True))
    given = replace(
        PROFILE,
        categories={
            name: replace(policy, pivot_ratio=ratios.get(name, 0.9))
            for name, policy in PROFILE.categories.items()
        },
    )
    wrong = wrong_category(given).categories
    assert [wrong[name].pivot_ratio for name in CATEGORIES] == [0.2, 0.3, 0.4, 0.5, 0.1]
    single = one_layer(given, -2)
    assert {policy.layer_weights for policy in single.categories.values()} == {(0, 0, 1, 0)}
    assert single.categories["ocr"].pivot_ratio == 0.4


def test_controls_and_other_rules_use_the_layer_that_the_projector_was_trained_on() -> None:
    for row in EVERY:
        if row.name in (*RULES, "uniform", "pool", "random 1"):
            assert row.profile == one_layer(PROFILE, -1)


def test_the_best_on_training_questions_is_chosen() -> None:
    best = {layer_name(-3), inside_rows(PROFILE, (0, 2, 4))[2].name}
    found = choose(PROFILE, lambda row: float(row.name in best))
    assert found.layer == -3
    assert found.inside["progressive (0, 2, 4)"] == {
        "salience_rows": "instruction",
        "completion_on": "hidden",
    }
    assert {row.name for row in training_rows(PROFILE)} >= best


def test_the_smaller_image_has_the_least_square_of_patches_that_is_not_below_the_budget() -> None:
    assert [side(budget) for budget in (*BUDGETS, 9, 10, 144)] == [7, 6, 4, 3, 3, 4, 12]


# Answers


@pytest.fixture(scope="module")
def answerer() -> Iterator[Answerer]:
    """The bundled model and a question of each cell. Its rules are taken back afterwards."""
    before = dict(registry._RULES)
    yield Answerer(MODEL, PROFILE, "heldout", 1)
    registry._RULES.clear()
    registry._RULES.update(before)


def test_all_tokens_are_the_model_as_it_is(answerer: Answerer) -> None:
    singly = prepare(answerer.processor, answerer.examples, batch_size=1)
    expected = generate_answers(answerer.model, answerer.processor, singly)
    found = answerer.answers(Row(ALL, "whole"), NUM_TOKENS)
    assert found == [text.strip() for text in expected]


@pytest.mark.parametrize("name", [FULL, "divprune", "wrong category", "progressive (0, 2, 4)"])
def test_encoding_an_image_once_changes_no_answer(answerer: Answerer, name: str) -> None:
    row = next(row for row in EVERY if row.name == name)
    found = answerer.answers(row, 16)
    batch = prepare(answerer.processor, answerer.examples[:6], batch_size=1)
    with apply_clasp(
        answerer.model,
        schedule=row.schedule(16),
        profile=row.profile,
        processor=answerer.processor,
        rule=row.rule,
        **row.settings,
    ):
        expected = generate_answers(answerer.model, answerer.processor, batch)
    assert found[:6] == [text.strip() for text in expected]


def test_the_smaller_image_costs_the_tokens_it_should(answerer: Answerer) -> None:
    for budget in BUDGETS:
        batch = answerer._prepared([0, 1], 8 * side(budget), True)
        tokens = batch.inputs["input_ids"] == answerer.model.config.image_token_id
        assert tokens.sum(1).tolist() == [side(budget) ** 2] * 2
        assert batch.inputs["pixel_values"].shape[-2:] == (8 * side(budget), 8 * side(budget))
    assert len(set(answerer.answers(Row(SMALLER, "smaller"), 48))) > 3


def test_an_image_of_the_usual_size_is_answered_alike_as_a_smaller_one(
    answerer: Answerer,
) -> None:
    """So that the way in which smaller images are asked about is not what costs accuracy."""
    whole = answerer.answers(Row(ALL, "whole"), NUM_TOKENS)
    assert answerer.answers(Row(SMALLER, "smaller"), 144) == whole


def test_a_row_of_random_tokens_depends_on_its_seed_alone(answerer: Answerer) -> None:
    seeds = [row for row in EVERY if row.name.startswith("random")]
    first = answerer.answers(seeds[0], 7)
    others = [answerer.answers(row, 7) for row in seeds[1:]]
    assert answerer.answers(seeds[0], 7) == first
    assert any(other != first for other in others)


def test_attention_keeps_the_tokens_of_pivots_only(answerer: Answerer) -> None:
    """So that their times show what the way through Python costs."""
    found = [
        answerer.answers(next(row for row in EVERY if row.name == name), 16)
        for name in ("attention", "pivots only")
    ]
    assert found[0] == found[1]


# Times


def test_rows_take_turns_in_every_round_and_the_middle_of_their_times_is_kept() -> None:
    timed: list[tuple[str, int]] = []
    chosen = [row for row in EVERY if row.name in (FULL, "random 1", "random 2")]

    def seconds(row: Row, budget: int) -> float:
        timed.append((row.name, budget))
        return budget * 1e-6 * (1 if len(timed) <= 12 else 2 if len(timed) <= 24 else 6)

    found = interleaved(chosen, 3, seconds)
    rounds = [timed[:12], timed[12:24], timed[24:]]
    assert len({tuple(each) for each in rounds}) == 3
    assert all(sorted(each) == sorted(rounds[0]) and len(set(each)) == 12 for each in rounds)
    assert set(found) == {FULL, "random"}
    assert found[FULL]["16"] == [32, 24, 64]
    assert found["random"]["16"] == [32, 20, 80]


def test_times_are_measured_without_touching_the_answers(tmp_path: Path, monkeypatch: Any) -> None:
    @contextmanager
    def pool(workers: int) -> Iterator[Pool]:
        yield Pool()

    monkeypatch.setattr(run, "_pool", pool)
    monkeypatch.setattr(
        run, "rows", lambda *_: [row for row in EVERY if row.name in (ALL, FULL, "divprune")]
    )
    committed = (run.ROOT / "benchmarks/results/cpu/quality" / run.ROWS).read_text()
    (tmp_path / run.ROWS).write_text(committed)
    before = dict(registry._RULES)
    asked = ["--model", str(MODEL), "--out", str(tmp_path), "--per-cell", "1", "--rounds", "2"]
    run.main([*asked, "--times"])
    registry._RULES.clear()
    registry._RULES.update(before)
    assert (tmp_path / run.ROWS).read_text() == committed
    times = read_times(tmp_path)
    assert times is not None and times["rounds"] == 2
    assert {name: list(each) for name, each in times["microseconds"].items()} == {
        name: ["48", "32", "16", "7"] for name in ("divprune", FULL)
    }
    middle, low, high = times["microseconds"][FULL]["16"]
    assert 0 < low <= middle <= high < 1e6
    assert {each.name for each in tmp_path.iterdir()} == {run.ROWS, "times.json", "quality.png"}


def test_times_need_the_results_of_the_same_model(tmp_path: Path) -> None:
    asked = ["--model", str(MODEL), "--out", str(tmp_path), "--times"]
    with pytest.raises(SystemExit, match=r"--times needs .* there is no .*rows\.json"):
        run.main(asked)
    models = [{"name": "other", "choices": {"layer": -1, "inside": {}}}]
    (tmp_path / run.ROWS).write_text(json.dumps({"models": models}))
    with pytest.raises(SystemExit, match=r"--model must be one of other, .* got tiny_vlm"):
        run.main(asked)


# Running


class Pool:
    """Runs jobs at once, in this process."""

    def submit(self, of: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(of(*arguments))
        return future


def test_a_run_that_was_killed_goes_on_where_it_was(tmp_path: Path, monkeypatch: Any) -> None:
    wanted = jobs("heldout", layer_rows(PROFILE))
    asked: list[Job] = []

    def of(job: Job) -> str:
        asked.append(job)
        return json.dumps([job.row.name, str(job.budget)])

    with AnswerStore(tmp_path, {"run": 1}) as store:
        add = store.add

        def killed_after_five(rows: list[Any]) -> None:
            if len(store.answers) == 5:
                raise KeyboardInterrupt
            add(rows)

        monkeypatch.setattr(store, "add", killed_after_five)
        with pytest.raises(KeyboardInterrupt):
            run.run_jobs(wanted, store, of, Pool())
    with AnswerStore(tmp_path, {"run": 1}) as store:
        kept = set(store.answers)
        assert len(kept) == 5
        del asked[:]
        run.run_jobs(wanted, store, of, Pool())
        assert {job.key for job in asked} == {job.key for job in wanted} - kept
        for job in wanted:
            assert json.loads(store.answers[job.key]) == [job.row.name, str(job.budget)]


def test_an_answer_is_right_if_it_equals_the_expected_one(tmp_path: Path) -> None:
    examples = draw("heldout", 1)
    answers = [question.answer for _, question in examples]
    answers[0] += "s"
    [job] = jobs("heldout", [Row(ALL, "whole")])
    with AnswerStore(tmp_path, {}) as store:
        store.add([(job.key, json.dumps(answers))])
        assert run.right(store, job, examples) == [False] + [True] * (len(examples) - 1)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--model", "nowhere"], r"--model must be a folder with model.safetensors, got nowhere"),
        (["--model", str(MODEL), "--profile", "nowhere"], "there is no nowhere: make it with"),
        (["--model", str(MODEL), str(MODEL)], "folders of different names"),
    ],
)
def test_what_cannot_be_run_is_refused_at_once(
    given: list[str], expected: str, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=expected):
        run.main([*given, "--out", str(tmp_path)])
