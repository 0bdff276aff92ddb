"""The benchmark of whole models, run on a tiny model, measures what it claims."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import readme_tables
import torch
from models import measuring, methods, prefill, prefill_table
from models.ideal import Ideal
from models.methods import INPUT, PROGRESSIVE, UNPRUNED, Method, Runner, WholeModel
from models.shape import Shape, build, make_prompt, stage_layers, twin
from models.shapes import RECORDED, SHAPES
from torch import Tensor

from clasp_kernels import Selection, apply_clasp
from clasp_kernels.models import selection
from clasp_kernels.policy import Schedule

TINY = ("tiny", "qwen2.5-vl-tiny")
NUM_TOKENS = 36  # per image, in both shapes
CPU = torch.device("cpu")
BATCH = 2


@pytest.fixture(scope="module", params=TINY)
def shape(request: pytest.FixtureRequest) -> Shape:
    return SHAPES[request.param]


@pytest.fixture(scope="module")
def model(shape: Shape) -> Any:
    """Build a model with weights large enough that a misplaced token changes the logits."""
    built = build(shape, CPU, torch.float32)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for parameter in built.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 1.6 / parameter[0].numel() ** 0.5)
    return built


@pytest.fixture(scope="module")
def content(shape: Shape) -> dict[str, Any]:
    [name] = [name for name in TINY if SHAPES[name] is shape]
    with torch.no_grad():
        *_, measured = prefill.measure(name, CPU, (BATCH,), rounds=1)
    return json.loads(json.dumps(measured))


def rows_by_method(content: dict[str, Any]) -> dict[Method, dict[str, Any]]:
    rows = content["rows"]
    return {Method(row["method"], row["budget"], row["ideal"]): row for row in rows}


def test_every_method_has_a_row_of_positive_numbers(shape: Shape, content: dict[str, Any]) -> None:
    rows = rows_by_method(content)
    assert len(rows) == len(content["rows"]) and set(rows) == set(methods.methods(shape))
    measured = ("first_token", "first_token_min", "per_token", "peak_bytes", "kv_bytes", "rounds")
    for method, row in rows.items():
        assert all(row[name] > 0 for name in measured), method
        assert (row["ideal_ratio"] is None) == (method.ideal or method.name == UNPRUNED)
        assert row["ideal_ratio"] is None or row["ideal_ratio"] > 0
        assert (row["selection_share"] is None) == (row["ideal_ratio"] is None)
        if row["selection_share"] is not None:
            assert 0 < row["selection_share"] < 1 and 0 < row["selection"] < row["first_token"]
    assert content["environment"]["parameters"] > 0


def test_layers_have_the_columns_of_the_stages_and_the_ideal_has_the_same(
    shape: Shape,
    content: dict[str, Any],
) -> None:
    rows = rows_by_method(content)
    text = shape.text_before + shape.text_after
    for method, row in rows.items():
        kept = dict(row["stages"])
        start = {0: shape.num_tokens} if 0 not in kept else {}
        assert row["columns"] == [[layer, text + n] for layer, n in {**start, **kept}.items()]
        assert row["columns"] == rows[Method(method.name, method.budget)]["columns"]
        if method.name != UNPRUNED:
            assert row["kv_bytes"] < rows[Method(UNPRUNED, shape.num_tokens)]["kv_bytes"]


def test_an_ideal_that_is_given_other_columns_is_no_result(shape: Shape, model: Any) -> None:
    prompt = make_prompt(shape, model, 1)
    runners = {
        Method(INPUT, 9): methods.make_runner(model, shape, prompt, Method(INPUT, 9)),
        Method(INPUT, 9, ideal=True): Ideal(model, shape, prompt, {0: 8}),
    }
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"input R9 leaves .* has \[16"):
        prefill.caches_of(runners)


@pytest.mark.parametrize("steps", [0, 2])
def test_ideals_that_are_given_every_token_are_the_unpruned_model(
    shape: Shape, model: Any, steps: int
) -> None:
    prompt = make_prompt(shape, model, BATCH)
    everything = shape.num_tokens
    runners: list[Runner] = [
        WholeModel(model, prompt),
        *(Ideal(model, shape, prompt, {layer: everything}) for layer in (0, 1)),
    ]
    answers = []
    with torch.no_grad():
        for runner in runners:
            logits, cache = runner.prefill()
            for step in range(steps):
                tokens = torch.full((BATCH, 1), step)
                logits = runner.step(tokens, cache, shape.prompt_length + step)
            answers.append(logits)
    for answer in answers[1:]:
        torch.testing.assert_close(answer, answers[0], atol=1e-5, rtol=0)


def test_the_model_that_is_not_pruned_stays_unpatched(shape: Shape, model: Any) -> None:
    prompt = make_prompt(shape, model, 1)
    pruned = methods.make_runner(model, shape, prompt, Method(INPUT, 9))
    with torch.no_grad():
        assert measuring.columns(WholeModel(model, prompt).prefill()[1])[0] == shape.prompt_length
        assert measuring.columns(pruned.prefill()[1])[0] == shape.prompt_length - NUM_TOKENS + 9


def test_an_ideal_of_fewer_tokens_is_the_model_without_the_others(shape: Shape, model: Any) -> None:
    """A pruned model that keeps the first tokens gives the same logits."""
    prompt = make_prompt(shape, model, BATCH)
    stages = {0: 20, 2: 9}
    pruned = twin(model)
    apply_clasp(pruned, schedule=Schedule(stages))
    answers = []
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "select_tokens", first_tokens)
        for runner in (
            WholeModel(pruned, prompt, categories="general"),
            Ideal(model, shape, prompt, stages),
        ):
            logits, cache = runner.prefill()
            tokens = torch.full((BATCH, 1), 1)
            answers.append((logits, runner.step(tokens, cache, shape.prompt_length)))
    for ours, ideal in zip(*answers, strict=True):
        torch.testing.assert_close(ours, ideal, atol=1e-5, rtol=0)


def first_tokens(
    features: Tensor, salience: Tensor, counts: list[int], pivots: list[int], *, valid: None
) -> Selection:
    indices = torch.arange(counts[0]).repeat(len(features), 1)
    return Selection(indices, torch.ones_like(indices, dtype=torch.bool), torch.tensor(counts))


@pytest.mark.parametrize("name", SHAPES)
def test_stages_are_the_papers_in_proportion_and_have_the_mean(name: str) -> None:
    shape = SHAPES[name]
    expected = {
        "7b": (2, 6, 15),
        "0.4b": (1, 3, 8),
        "tiny": (1, 2, 3),
        "qwen2.5-vl-7b": (2, 5, 13),
        "qwen2.5-vl-1b": (1, 3, 7),
        "qwen2.5-vl-tiny": (1, 2, 3),
    }
    for budget in shape.budgets:
        kept = methods.stages(shape, Method(PROGRESSIVE, budget))
        assert tuple(kept) == expected[name]
        tokens, total = shape.num_tokens, 0
        for layer in range(shape.text.layers):
            tokens = kept.get(layer, tokens)
            total += tokens
        assert total / shape.text.layers == pytest.approx(budget, abs=0.5)


def test_the_first_stage_moves_forward_where_the_mean_needs_it() -> None:
    assert stage_layers(SHAPES["7b"], 20) == (1, 6, 15)
    with pytest.raises(ValueError, match="16 of 576 tokens on average over 32 layers"):
        stage_layers(SHAPES["7b"], 16)


class Logged:
    """A runner that only logs when it ran."""

    def __init__(self, log: list[int], number: int) -> None:
        self.log, self.number = log, number

    def prefill(self) -> tuple[Tensor, Any]:
        self.log.append(self.number)
        return torch.zeros(1, 4), None

    def step(self, tokens: Tensor, cache: Any, seen: int) -> Tensor:
        return torch.zeros(1, 4)

    def selection_seconds(self) -> float:
        return float(self.number)


def test_every_round_runs_every_method_and_begins_elsewhere() -> None:
    log: list[int] = []
    runners = {Method(INPUT, number): Logged(log, number) for number in range(5)}
    times = measuring.time_rounds(runners, CPU, 8, rounds=4)
    rounds = [log[start : start + 5] for start in range(0, 20, 5)]
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in rounds)
    assert len({order[0] for order in rounds}) == len(rounds)
    # Of two neighbours, such as a method and its ideal, each runs first in some rounds.
    assert {order.index(2) < order.index(1) for order in rounds} == {False, True}
    assert all(len(it.first_token) == len(it.per_token) == 4 for it in times.values())
    assert [it.selection for it in times.values()] == [[number] * 4 for number in range(5)]


def test_ratios_are_taken_within_rounds() -> None:
    """The machine becomes half as fast after the first of three rounds."""
    ideal = measuring.Times([0.9, 1.8, 1.8], [], [])
    ours = measuring.Times([1.0, 2.0, 2.0], [], [0.02, 0.04, 0.1])
    assert measuring.ratio_of(ideal, ours) == pytest.approx(0.9)
    assert measuring.selection_share(ours) == pytest.approx(0.02)


def test_the_readme_has_a_line_for_each_budget(shape: Shape, content: dict[str, Any]) -> None:
    text = prefill_table.whole_model(content, "a machine")
    assert text.startswith(f"**{shape.family}'s shape on a CPU** (a machine), cut to 0 M")
    assert "dropped once 1, 2 and 3 of its 6 layers have run" in text
    assert "36 visual tokens and 8 of text" in text
    lines = [line for line in text.splitlines() if line.startswith(f"| {BATCH} ")]
    assert len(lines) == len(shape.budgets)
    row = rows_by_method(content)[Method(INPUT, shape.budgets[0])]
    assert f"| {row['ideal_ratio']:.2f} |" in lines[0]
    assert f"| {row['selection_share']:.1%}, " in lines[0]


def test_a_record_without_the_time_of_selection_has_no_column_of_it(
    content: dict[str, Any],
) -> None:
    times = ("selection", "selection_share")
    older = [
        {name: value for name, value in row.items() if name not in times} for row in content["rows"]
    ]
    assert "selection of the time" in prefill_table.prefill_table(content["rows"])
    assert "selection of the time" not in prefill_table.prefill_table(older)


def test_what_a_batch_took_is_recorded_before_the_next(
    shape: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The fixture `content` measures peaks in processes of their own, most of the time it takes.
    peaks = {str(method): 1 for method in methods.methods(shape)}
    monkeypatch.setattr(prefill, "peaks_in_fresh_process", lambda *_: peaks)
    [name] = [name for name in TINY if SHAPES[name] is shape]
    with torch.no_grad():
        first = next(prefill.measure(name, CPU, (1, BATCH), rounds=1))
    assert {row["batch"] for row in first["rows"]} == {1}


def test_the_readme_shows_every_file_that_is_there(
    content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readme_tables, "RESULTS", tmp_path)
    assert readme_tables.prefill() == ""
    for shown, file in enumerate(RECORDED.values(), start=1):
        (tmp_path / file).write_text(json.dumps(content))
        text = readme_tables.prefill()
        assert text.count("'s shape on a CPU**") == text.count("| B | R |") == shown
        assert text.count("**Whole models.**") == 1


@pytest.fixture
def run_main(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., list[str]]:
    """Return a function that runs the command line without measuring, and returns its files."""

    def run(*options: str) -> list[str]:
        monkeypatch.setattr("sys.argv", ["bench_prefill.py", *options])
        prefill.main("")
        return sorted(path.name for path in tmp_path.iterdir())

    def measure(name: str, *_: Any) -> Iterator[dict[str, Any]]:
        yield {"name": name, "rows": []}

    monkeypatch.setattr(prefill, "measure", measure)
    monkeypatch.setattr(prefill, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(prefill, "RESULTS", tmp_path)
    return run


@pytest.mark.parametrize(
    ("options", "recorded"),
    [
        ([], ["prefill.json", "prefill_qwen2_5_vl.json"]),
        (["--shape", "0.4b"], ["prefill.json"]),
        (["--shape", "qwen2.5-vl-1b"], ["prefill_qwen2_5_vl.json"]),
        (["--batches", "1"], []),
        (["--rounds", "1"], []),
        (["--shape", "tiny"], []),
    ],
)
def test_only_the_whole_benchmark_of_a_shape_is_recorded(
    options: list[str], recorded: list[str], run_main: Callable[..., list[str]], tmp_path: Path
) -> None:
    assert run_main(*options) == recorded
    names = {file: name for name, file in RECORDED.items()}
    for file in recorded:
        assert json.loads((tmp_path / file).read_text())["name"] == names[file]


def test_one_shape_can_go_to_a_file_of_ones_own(
    run_main: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "it")]
    assert run_main("--shape", "0.4b", *out) == ["it"]
    assert run_main("--shape", "tiny", "--batches", "1", *out) == ["it"]
    with pytest.raises(SystemExit):
        run_main(*out)
    assert "say which with --shape" in capsys.readouterr().err
