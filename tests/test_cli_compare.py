"""``clasp ask --compare``: several rules side by side."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from running import QUESTION, SCENE, clasp, message

from clasp_kernels.cli import comparison, loading, picture
from clasp_kernels.cli.comparison import PhaseClock, compare_rules
from clasp_kernels.cli.loading import load_image, load_model
from clasp_kernels.models import apply_clasp
from clasp_kernels.rules import rule_names
from clasp_kernels.visualize import COMPLETION_COLOR, PIVOT_COLOR

RULES = ("clasp", "divprune", "attention", "random")


@pytest.fixture(scope="module")
def loaded():
    return load_model(None, "cpu")


@pytest.fixture
def one_run(monkeypatch):
    monkeypatch.setattr(comparison, "_MAX_RUNS", 1)


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Run ``clasp ask --compare --json``; return its JSON and its picture."""
    path = tmp_path_factory.mktemp("compare") / "map.png"
    result = clasp(
        "ask", SCENE, QUESTION, "--keep", 9, "--compare", ",".join(RULES), "--out", path, "--json"
    )
    assert result.exit_code == 0, result.output
    with Image.open(path) as page:
        return json.loads(result.stdout), page.convert("RGB")


def test_each_rule_keeps_what_it_keeps_in_a_patched_model(asked, loaded):
    inputs = loaded.processor(
        images=load_image(SCENE), text=f"USER: <image>\n{QUESTION} ASSISTANT:", return_tensors="pt"
    )
    rows = asked[0]["rules"]
    assert [row["rule"] for row in rows] == list(RULES)
    for row in rows:
        with apply_clasp(loaded.model, budget=9, rule=row["rule"]) as handle:
            ids = loaded.model.generate(**inputs, do_sample=False, max_new_tokens=32)
            [stage] = handle.last.stages
        assert row["indices"] == stage.indices[0].tolist()
        assert row["is_pivot"] == stage.is_pivot[0].tolist()
        assert row["visual_tokens"] == 9
        new = ids[0, inputs["input_ids"].shape[1] :]
        assert row["answer"] == loaded.processor.decode(new, skip_special_tokens=True).strip()
        assert row["same_answer"] == (row["answer"] == asked[0]["all_tokens"]["answer"])


def test_times_of_a_rule_contain_each_other(asked):
    for row in (asked[0]["all_tokens"], *asked[0]["rules"]):
        seconds = row["seconds"]
        assert 0 < seconds["vision"] < seconds["first_token"] < seconds["total"]
    assert asked[0]["all_tokens"]["seconds"]["selection"] == 0
    assert all(row["seconds"]["selection"] > 0 for row in asked[0]["rules"])


def test_the_first_token_comes_after_the_prefill_and_before_the_other_tokens(loaded, monkeypatch):
    monkeypatch.setattr(comparison, "_MAX_RUNS", 1)
    clocks, phases = [], PhaseClock.phases

    def spied(clock, record):
        clocks.append((clock._started, clock._tokens_at))
        return phases(clock, record)

    monkeypatch.setattr(PhaseClock, "phases", spied)
    [one] = compare_rules(
        loaded, load_image(SCENE), QUESTION, rules=("dart",), keep=9, max_new_tokens=3
    )
    started, (_, first, *_) = clocks[0]
    assert one.kept_tokens.seconds.first_token == first - started


def test_every_rule_is_warmed_up_before_any_is_timed_and_they_take_turns(loaded, one_run):
    steps = []
    rules = ("random", "clasp")
    comparisons = compare_rules(
        *(loaded, load_image(SCENE), QUESTION),
        rules=rules,
        keep=9,
        max_new_tokens=1,
        on_step=steps.append,
    )
    assert steps == [
        "Warming up with 9 of 144 visual tokens, by random",
        "Warming up with 9 of 144 visual tokens, by clasp",
        "Warming up with all 144 visual tokens",
        "Answering with 9 of 144 visual tokens, by random, run 1",
        "Answering with 9 of 144 visual tokens, by clasp, run 1",
        "Answering with all 144 visual tokens, run 1",
    ]
    assert [one.rule for one in comparisons] == list(rules)
    first, second = comparisons
    assert first.all_tokens == second.all_tokens


def test_the_picture_shows_the_image_and_then_each_rule(asked):
    answer, page = asked
    pixels = np.asarray(page).astype(int)
    counts = []
    for number in range(1 + len(RULES)):
        left = 16 + number % 3 * (432 + 16)
        column = pixels[:, left : left + 432]
        tops = panels(column)
        panel = column[tops[number // 3] : tops[number // 3] + 432]
        counts.append(frames(panel))
    assert counts[0] == []
    for kept, row in zip(counts[1:], answer["rules"], strict=True):
        assert kept == list(zip(row["indices"], row["is_pivot"], strict=True))


def panels(column):
    """Return the first row of each picture in a column of the page."""
    filled = (column[:, 0] < 255).any(-1).astype(int)
    starts = np.flatnonzero(np.diff(np.concatenate([[0], filled])) == 1)
    return [top for top in starts if filled[top : top + 432].all()]


def frames(panel):
    """Return (token, is a pivot) of the framed patches of a picture."""
    side, found = 36, []
    for token in range(144):
        row, column = token // 12 * side, token % 12 * side
        corner = tuple(panel[row + side - 1, column + side - 1])
        if corner in (PIVOT_COLOR, COMPLETION_COLOR):
            found.append((token, corner == PIVOT_COLOR))
    return found


def test_the_table_has_a_row_for_all_tokens_and_one_for_each_rule(tmp_path, one_run):
    result = clasp(
        "ask", SCENE, QUESTION, "--schedule", "2:72,4:16", "--compare", "clasp, random", "--out",
        tmp_path / "map.png",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = {
        cells[0]: cells[1:]
        for cells in (re.split(r"\s{2,}", line.strip()) for line in result.stdout.splitlines())
        if cells[0] in ("(all tokens)", *rule_names())
    }
    assert list(rows) == ["(all tokens)", "clasp", "random"]
    assert rows["(all tokens)"][1:3] == ["144", "-"]
    for name in ("clasp", "random"):
        said = "yes" if rows[name][0] == rows["(all tokens)"][0] else "no"
        assert rows[name][1:3] == [said, "72 → 16"]
        assert all(re.fullmatch(r"[\d.]+ m?s", cell) for cell in rows[name][3:])
    assert "after a warm-up of every rule" in result.stdout


def test_every_registered_rule_can_be_compared(tmp_path, one_run):
    result = clasp(
        "ask", SCENE, QUESTION, "--compare", ",".join(rule_names()), "--json", "--out",
        tmp_path / "map.png",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert [row["rule"] for row in json.loads(result.stdout)["rules"]] == list(rule_names())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--compare", ""], "--compare must name rules, such as clasp,divprune, got an empty"),
        (
            ["--compare", " , "],
            "--compare must name rules, such as clasp,divprune, got only commas",
        ),
        (["--compare", "clasp,,dart"], "--compare must have one name between two commas"),
        (["--compare", "clasp,dart,clasp"], "must name each rule once, but clasp is named twice"),
        (
            ["--compare", "clasp,fastv"],
            "--compare must be rules, each one of clasp, clasp_clusters, ",
        ),
        (["--compare", "clasp", "--rule", "clasp"], "--rule and --compare exclude each other"),
        (["--rule", "fastv"], "--rule must be one of clasp, clasp_clusters, "),
    ],
)
def test_a_wrong_list_of_rules_is_refused_before_a_model_is_loaded(monkeypatch, options, said):
    monkeypatch.setattr(loading, "load_model", lambda *_: pytest.fail("worked first"))
    result = clasp("ask", SCENE, QUESTION, *options)
    assert result.exit_code == 2
    assert said in message(result)
    assert result.stdout == ""


def test_answers_without_a_picture_say_why(monkeypatch, tmp_path, one_run):
    def unknown(*_, **__):
        raise picture.NoPicture("nobody knows")

    monkeypatch.setattr(picture, "overlay", unknown)
    out = tmp_path / "map.png"
    result = clasp("ask", SCENE, QUESTION, "--compare", "clasp,random", "--out", out)
    assert result.exit_code == 0
    assert "No picture: nobody knows." in result.stdout and "random" in result.stdout
    assert not out.exists()
