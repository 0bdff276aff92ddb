"""``--schedule``: pruning at several stages, in the table, the JSON and the picture."""

import json
import sys
from io import BytesIO, TextIOWrapper

import numpy as np
import pytest
import torch
from PIL import Image
from running import QUESTION, SCENE, clasp, message

from clasp_kernels.bundled import bundled_path
from clasp_kernels.cli import demo, loading, picture, report
from clasp_kernels.cli.comparison import Comparison, Phases, Run, Stage, compare
from clasp_kernels.cli.loading import load_image, load_model
from clasp_kernels.models import apply_clasp
from clasp_kernels.models.families._views import grid_view
from clasp_kernels.policy import CategoryPolicy, Profile, Schedule
from clasp_kernels.visualize import COMPLETION_COLOR, PIVOT_COLOR

NUM_TOKENS, NUM_LAYERS = 144, 6
SCHEDULE = "2:0.5,4:0.2"
COUNTS = (72, 29)
MEAN = (2 * 144 + 2 * 72 + 2 * 29) / 6
DOT = (244, 244, 246)


@pytest.fixture(scope="module")
def loaded():
    return load_model(None, "cpu")


@pytest.fixture
def one_run(monkeypatch):
    monkeypatch.setattr("clasp_kernels.cli.comparison._MAX_RUNS", 1)


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Run ``clasp ask --json --schedule``; return its JSON and its picture."""
    path = tmp_path_factory.mktemp("schedule") / "map.png"
    result = clasp("ask", SCENE, QUESTION, "--schedule", SCHEDULE, "--out", path, "--json")
    assert result.exit_code == 0, result.output
    with Image.open(path) as page:
        return json.loads(result.stdout), page.convert("RGB")


def test_json_has_every_stage(asked):
    answer, _ = asked
    assert answer["schedule"] == SCHEDULE
    seen = NUM_TOKENS
    left = set(range(NUM_TOKENS))
    for stage, layer, count in zip(answer["stages"], (2, 4), COUNTS, strict=True):
        assert stage["layer"] == layer
        assert (stage["tokens_before"], stage["tokens_after"]) == (seen, count)
        assert stage["indices"] == sorted(stage["indices"])
        assert len(set(stage["indices"])) == len(stage["is_pivot"]) == count
        assert left.issuperset(stage["indices"])
        assert 1 <= sum(stage["is_pivot"]) < count
        seen, left = count, set(stage["indices"])


def test_the_keys_there_were_before_are_of_the_last_stage(asked):
    answer, _ = asked
    last = answer["stages"][-1]
    assert (answer["indices"], answer["is_pivot"]) == (last["indices"], last["is_pivot"])
    assert answer["visual_tokens"] == {
        "all": NUM_TOKENS,
        "kept": COUNTS[-1],
        "pivots": sum(last["is_pivot"]),
    }
    assert answer["mean_visual_tokens"] == pytest.approx(MEAN)


def test_each_layer_caches_what_its_stage_kept(asked, loaded):
    cache = asked[0]["kv_cache_bytes"]
    config = loaded.model.config.text_config
    a_token = 2 * config.num_key_value_heads * config.head_dim * 4
    saved = 2 * (NUM_TOKENS - COUNTS[0]) + 2 * (NUM_TOKENS - COUNTS[1])
    assert cache["all"] - cache["kept"] == saved * a_token


def test_the_picture_tells_the_stages_apart(asked):
    answer, page = asked
    side = 48
    top = next(y for y in range(page.height) if page.getpixel((616, y)) != (255, 255, 255))
    overlay = np.asarray(page.crop((608, top, 608 + 576, top + 576)))
    first, last = (set(stage["indices"]) for stage in answer["stages"])
    for number in range(NUM_TOKENS):
        row, column = number // 12 * side, number % 12 * side
        patch = overlay[row : row + side, column : column + side]
        framed = tuple(patch[-1, -1].tolist()) in (PIVOT_COLOR, COMPLETION_COLOR)
        dotted = tuple(patch[24, 24].tolist()) == DOT
        assert framed == (number in last)
        assert dotted == (number in first - last)
    legend = np.asarray(page.crop((0, top + 576, page.width, page.height)))
    assert (legend == DOT).all(-1).any()


def test_the_table_shows_every_count_and_their_mean(tmp_path, one_run):
    result = clasp("ask", SCENE, QUESTION, "--schedule", SCHEDULE, "--out", tmp_path / "map.png")
    assert result.exit_code == 0, result.output
    [row] = [line for line in result.stdout.splitlines() if line.startswith("visual tokens")]
    cells = " ".join(row.removeprefix("visual tokens").split())
    assert cells == "144 144 → 72 → 29 (mean 81.7 over 6 layers) -43 %"


def test_the_kept_tokens_are_those_of_apply_clasp(loaded, one_run):
    image, schedule = load_image(SCENE), Schedule.parse(SCHEDULE)
    comparison = compare(loaded, image, QUESTION, keep=schedule, max_new_tokens=1)
    inputs = loaded.processor(
        images=image, text=f"USER: <image>\n{QUESTION} ASSISTANT:", return_tensors="pt"
    )
    with apply_clasp(loaded.model, schedule=schedule, processor=loaded.processor) as handle:
        loaded.model.generate(**inputs, do_sample=False, max_new_tokens=1)
        record = handle.last
    for shown, stage in zip(comparison.stages, record.stages, strict=True):
        assert shown.layer == stage.layer
        assert shown.indices == tuple(stage.indices[0].tolist())
        assert shown.is_pivot == tuple(stage.is_pivot[0].tolist())
    assert comparison.kept_tokens.kv_cache_bytes == record.kv_cache_bytes
    assert comparison.mean_visual_tokens == pytest.approx(MEAN)


def test_times_add_up_with_stages_inside_the_decoder(loaded, one_run):
    kept = compare(
        loaded, load_image(SCENE), QUESTION, keep=Schedule.parse(SCHEDULE), max_new_tokens=4
    ).kept_tokens
    seconds = kept.seconds
    assert min(seconds.vision, seconds.selection, seconds.prefill, seconds.decode) > 0
    assert seconds.vision + seconds.selection + seconds.prefill + seconds.decode <= seconds.total


def test_the_schedule_is_announced(loaded, one_run):
    steps = []
    schedule = Schedule.parse(SCHEDULE)
    compare(
        *(loaded, load_image(SCENE), QUESTION),
        keep=schedule,
        max_new_tokens=1,
        on_step=steps.append,
    )
    assert steps == [
        "Warming up with the schedule 2:0.5,4:0.2",
        "Warming up with all 144 visual tokens",
        "Answering with the schedule 2:0.5,4:0.2, run 1",
        "Answering with all 144 visual tokens, run 1",
    ]


def test_a_category_stretches_the_schedule(loaded, one_run):
    half = CategoryPolicy((1.0,), 0.5, budget_scale=0.5)
    profile = Profile("half", "llava", (-1,), "test", {"general": half})
    comparison = compare(
        *(loaded, load_image(SCENE), QUESTION),
        keep=Schedule.parse(SCHEDULE),
        profile=profile,
        max_new_tokens=1,
    )
    assert report.stage_counts(comparison) == (36, 14)
    assert comparison.mean_visual_tokens == pytest.approx((2 * 144 + 2 * 36 + 2 * 14) / 6)


def answers_of(path, *options):
    result = clasp("ask", SCENE, QUESTION, "--out", path, "--json", *options)
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    del answer["seconds"], answer["timed_runs"]
    return answer, path.read_bytes()


def test_without_a_schedule_16_are_kept_before_the_llm(tmp_path, one_run):
    usual, _ = answers_of(tmp_path / "map.png")
    assert usual["schedule"] is None
    assert usual["mean_visual_tokens"] == 16
    [stage] = usual["stages"]
    assert stage == {
        "layer": None,
        "tokens_before": NUM_TOKENS,
        "tokens_after": 16,
        "indices": usual["indices"],
        "is_pivot": usual["is_pivot"],
    }
    assert answers_of(tmp_path / "map.png", "--keep", 16)[0] == usual
    scheduled, _ = answers_of(tmp_path / "map.png", "--schedule", "0:16")
    assert scheduled == {**usual, "schedule": "0:16"}


@pytest.mark.parametrize("command", [("ask", SCENE, QUESTION), ("demo",)], ids=["ask", "demo"])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--keep", 16, "--schedule", "2:8"), "--keep and --schedule exclude each other"),
        (("--schedule", "half"), "--schedule: "),
        (("--schedule", "2:8,4:9"), "--schedule: "),
        (("--schedule", ""), "--schedule: "),
    ],
)
def test_what_is_no_schedule_is_refused_before_any_work(command, options, said, monkeypatch):
    for module in (loading, demo):
        monkeypatch.setattr(module, "load_model", lambda *_: pytest.fail("worked first"))
    result = clasp(*command, *options)
    assert result.exit_code == 2
    assert message(result).startswith(f"Error: {said}")
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ("2:72,6:16", "--schedule does not fit the bundled tiny LLaVA: schedule 2:72,6:16"),
        ("2:10,4:0.5", "--schedule does not fit the bundled tiny LLaVA: schedule 2:10,4:0.5"),
        ("2:145", "--schedule must keep at most 144, the visual tokens the bundled tiny LLaVA"),
    ],
)
def test_a_schedule_that_does_not_fit_the_model_exits_with_2(schedule, said):
    result = clasp("ask", SCENE, QUESTION, "--schedule", schedule)
    assert result.exit_code == 2
    assert said in message(result)
    assert result.stdout == ""


def test_the_demo_takes_a_schedule(tmp_path, one_run):
    result = clasp("demo", "--schedule", "1:100,3:20", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    questions = json.loads(bundled_path("demo", "questions.json").read_text())
    assert result.stdout.count("100 → 20") == len(questions)
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        dots = (np.asarray(sheet.convert("RGB")) == DOT).all(-1)
    assert dots[:80].any()  # in the legend
    assert dots[80:].sum() > 1000


def comparison_of(num_tokens, *stages, views=()):
    run = Run("two", 1, num_tokens, 1000, Phases(1.0, 1.0, 1.0, 1.0, 4.0))
    return Comparison(
        question="How many?",
        category="counting",
        reason="matched 'how many'",
        all_tokens=run,
        kept_tokens=run,
        stages=stages,
        num_layers=NUM_LAYERS,
        timed_runs=1,
        schedule=Schedule.parse(SCHEDULE),
        views=views,
    )


def test_a_class_token_is_no_patch_at_any_stage(monkeypatch):
    monkeypatch.setattr(picture, "as_seen", lambda *_: Image.new("RGB", (64, 64)))
    view = grid_view(torch.zeros(3, 64, 64), 2, 2, first_token=1)
    first = Stage(2, 5, (0, 1, 4), (True, False, False))
    comparison = comparison_of(5, first, Stage(4, 3, (0, 4), (False, True)), views=(view,))
    *_, dropped = picture.overlay(None, comparison, 64)
    assert [(stage.when, list(stage.indices)) for stage in dropped] == [
        ("after layer 2", [1, 2]),
        ("after layer 4", [0]),
    ]
    comparison = comparison_of(5, first, Stage(4, 3, (4,), (True,)), views=(view,))
    *_, dropped = picture.overlay(None, comparison, 64)
    assert list(dropped[1].indices) == [0]


@pytest.mark.parametrize(("patches", "width"), [(4, 96), (24, 192), (30, 240), (40, 240)])
def test_small_patches_make_a_larger_picture(monkeypatch, patches, width):
    side = 8 * patches
    monkeypatch.setattr(picture, "as_seen", lambda *_: Image.new("RGB", (side, side)))
    monkeypatch.setattr(picture, "_LEAST_PATCH", 8)
    view = grid_view(torch.zeros(3, side, side), patches, patches, first_token=0)
    comparison = comparison_of(patches**2, Stage(2, patches**2, (0,), (True,)), views=(view,))
    _, drawn, _ = picture.overlay(None, comparison, 96)
    assert drawn.size == (width, width)


def test_the_caption_says_where_tokens_were_dropped():
    stages = Stage(None, 9, (1, 2, 5), (True,) * 3), Stage(2, 3, (5,), (True,))
    assert "Kept 3 before the LLM, then 1 after layer 2: two" in report.caption(
        comparison_of(9, *stages)
    )


@pytest.mark.parametrize(("encoding", "arrow"), [("ascii", "->"), ("cp1252", "->"), ("utf-8", "→")])
def test_the_arrow_is_one_that_the_terminal_has(monkeypatch, encoding, arrow):
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(BytesIO(), encoding=encoding))
    assert report.in_turn([144, 72, 29]) == f"144 {arrow} 72 {arrow} 29"
