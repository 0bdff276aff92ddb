"""The benchmark of whole models measures what it says, tried on a tiny one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models import measuring, methods, prefill, prefill_table, shapes
from models.ideal import InputIdeal, ProgressiveIdeal
from models.methods import INPUT, PROGRESSIVE, UNPRUNED, Method, Runner, WholeModel
from torch import Tensor

TINY = shapes.SHAPES["tiny"]
CPU = torch.device("cpu")
BATCH = 2


@pytest.fixture(scope="module")
def model() -> Any:
    return shapes.build(TINY, CPU, torch.float32)


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    with torch.no_grad():
        measured = prefill.measure("tiny", CPU, (BATCH,), rounds=2)
    return json.loads(json.dumps(measured))


def rows_by_method(content: dict[str, Any]) -> dict[Method, dict[str, Any]]:
    rows = content["rows"]
    return {Method(row["method"], row["budget"], row["ideal"]): row for row in rows}


def test_every_method_has_a_row_of_positive_numbers(content: dict[str, Any]) -> None:
    rows = rows_by_method(content)
    assert len(rows) == len(content["rows"]) and set(rows) == set(methods.methods(TINY))
    measured = ("first_token", "first_token_min", "per_token", "peak_bytes", "kv_bytes", "rounds")
    for method, row in rows.items():
        assert all(row[name] > 0 for name in measured), method
        assert (row["ideal_ratio"] is None) == (method.ideal or method.name == UNPRUNED)
        assert row["ideal_ratio"] is None or row["ideal_ratio"] > 0
    assert content["environment"]["parameters"] > 0


def test_layers_have_the_columns_of_the_stages_and_the_ideal_has_the_same(
    content: dict[str, Any],
) -> None:
    rows = rows_by_method(content)
    text = TINY.text_before + TINY.text_after
    for method, row in rows.items():
        kept = dict(row["stages"])
        start = {0: TINY.num_tokens} if 0 not in kept else {}
        assert row["columns"] == [[layer, text + n] for layer, n in {**start, **kept}.items()]
        assert row["columns"] == rows[Method(method.name, method.budget)]["columns"]
        if method.name != UNPRUNED:
            assert row["kv_bytes"] < rows[Method(UNPRUNED, TINY.num_tokens)]["kv_bytes"]


def test_an_ideal_that_is_given_other_columns_is_no_result(model: Any) -> None:
    prompt = shapes.make_prompt(TINY, model, 1)
    runners = {
        Method(INPUT, 9): methods.make_runner(model, TINY, prompt, Method(INPUT, 9)),
        Method(INPUT, 9, ideal=True): InputIdeal(model, TINY, prompt, 8),
    }
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"input R9 leaves .* has \[16"):
        prefill.caches_of(runners)


@pytest.mark.parametrize("steps", [0, 2])
def test_ideals_that_are_given_every_token_are_the_unpruned_model(model: Any, steps: int) -> None:
    prompt = shapes.make_prompt(TINY, model, BATCH)
    runners: list[Runner] = [
        WholeModel(model, prompt),
        InputIdeal(model, TINY, prompt, TINY.num_tokens),
        ProgressiveIdeal(model, TINY, prompt, {}),
    ]
    answers = []
    with torch.no_grad():
        for runner in runners:
            logits, cache = runner.prefill()
            for step in range(steps):
                tokens = torch.full((BATCH, 1), step)
                logits = runner.step(tokens, cache, TINY.prompt_length + step)
            answers.append(logits)
    for answer in answers[1:]:
        torch.testing.assert_close(answer, answers[0], atol=1e-5, rtol=0)


def test_the_model_that_is_not_pruned_stays_unpatched(model: Any) -> None:
    prompt = shapes.make_prompt(TINY, model, 1)
    pruned = methods.make_runner(model, TINY, prompt, Method(INPUT, 9))
    with torch.no_grad():
        assert measuring.columns(WholeModel(model, prompt).prefill()[1])[0] == TINY.prompt_length
        assert measuring.columns(pruned.prefill()[1])[0] == TINY.prompt_length - 36 + 9


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_stages_are_the_papers_in_proportion_and_have_the_mean(name: str) -> None:
    shape = shapes.SHAPES[name]
    expected = {"7b": (2, 6, 15), "0.4b": (1, 3, 8), "tiny": (1, 2, 3)}
    for budget in shape.budgets:
        kept = methods.stages(shape, Method(PROGRESSIVE, budget))
        assert tuple(kept) == expected[name]
        tokens, total = shape.num_tokens, 0
        for layer in range(shape.text.layers):
            tokens = kept.get(layer, tokens)
            total += tokens
        assert total / shape.text.layers == pytest.approx(budget, abs=0.5)


def test_the_first_stage_moves_forward_where_the_mean_needs_it() -> None:
    assert shapes.stage_layers(shapes.SHAPES["7b"], 20) == (1, 6, 15)
    with pytest.raises(ValueError, match="16 of 576 tokens on average over 32 layers"):
        shapes.stage_layers(shapes.SHAPES["7b"], 16)


class Logged:
    """A runner that only says when it ran."""

    def __init__(self, log: list[int], number: int) -> None:
        self.log, self.number = log, number

    def prefill(self) -> tuple[Tensor, Any]:
        self.log.append(self.number)
        return torch.zeros(1, 4), None

    def step(self, tokens: Tensor, cache: Any, seen: int) -> Tensor:
        return torch.zeros(1, 4)


def test_every_round_runs_every_method_and_begins_elsewhere() -> None:
    log: list[int] = []
    runners = {Method(INPUT, number): Logged(log, number) for number in range(5)}
    times = measuring.time_rounds(runners, CPU, 8, rounds=4)
    rounds = [log[start : start + 5] for start in range(0, 20, 5)]
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in rounds)
    assert len({order[0] for order in rounds}) == len(rounds)
    # Of neighbours, such as a method and its ideal, each goes first.
    assert {order.index(2) < order.index(1) for order in rounds} == {False, True}
    assert all(len(it.first_token) == len(it.per_token) == 4 for it in times.values())


def test_ratios_are_taken_within_rounds() -> None:
    """The machine halves its speed after the first of three rounds."""
    ideal = measuring.Times([0.9, 1.8, 1.8], [])
    assert measuring.ratio_of(ideal, measuring.Times([1.0, 2.0, 2.0], [])) == pytest.approx(0.9)


def test_the_readme_has_a_line_for_each_budget(content: dict[str, Any]) -> None:
    text = prefill_table.whole_model(content, "a machine")
    assert (
        "its 6 layers, dropped once 1, 2 and 3 have run" in text
        and "36 visual tokens and 8 of text" in text
    )
    lines = [line for line in text.splitlines() if line.startswith(f"| {BATCH} ")]
    assert len(lines) == len(TINY.budgets)
    row = rows_by_method(content)[Method(INPUT, TINY.budgets[0])]
    assert f"| {row['ideal_ratio']:.2f} |" in lines[0]


@pytest.mark.parametrize(
    ("options", "is_recorded"),
    [([], True), (["--batches", "1"], False), (["--shape", "tiny"], False)],
)
def test_only_the_whole_benchmark_is_recorded(
    options: list[str],
    is_recorded: bool,
    content: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prefill, "measure", lambda *_: content)
    monkeypatch.setattr(prefill, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(prefill, "RECORDED", tmp_path / "prefill.json")
    monkeypatch.setattr("sys.argv", ["bench_prefill.py", *options])
    prefill.main("")
    assert (tmp_path / "prefill.json").exists() == is_recorded
    monkeypatch.setattr("sys.argv", ["bench_prefill.py", *options, "--out", str(tmp_path / "it")])
    prefill.main("")
    assert json.loads((tmp_path / "it").read_text()) == content
