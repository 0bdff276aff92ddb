"""``clasp ask --rule``."""

import json

import pytest
from running import QUESTION, SCENE, clasp, message

from clasp_kernels import visualize
from clasp_kernels.bundled import tiny_vlm_path
from clasp_kernels.policy import Profile
from clasp_kernels.rules import rule_names


@pytest.fixture
def one_run(monkeypatch):
    monkeypatch.setattr("clasp_kernels.cli.comparison._MAX_RUNS", 1)


def test_a_rule_selects(tmp_path, one_run):
    result = clasp(
        "ask", SCENE, QUESTION, "--keep", 9, "--rule", "uniform", "--out", tmp_path / "map.png",
        "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["rule"] == "uniform"
    assert answer["indices"] == list(range(15, 144, 16))
    assert not any(answer["is_pivot"])
    assert (tmp_path / "map.png").is_file()


def test_without_one_it_is_clasp(tmp_path, one_run):
    result = clasp("ask", SCENE, QUESTION, "--out", tmp_path / "map.png", "--json")
    answer = json.loads(result.stdout)
    assert answer["rule"] == "clasp" and any(answer["is_pivot"]) and not all(answer["is_pivot"])


def test_the_rule_of_the_profile_selects_unless_another_is_named(tmp_path, one_run):
    data = Profile.load(tiny_vlm_path() / "clasp_profile.json").to_dict()
    data["format"] = 2
    data["categories"]["ocr"]["rule"] = "uniform"
    Profile.from_dict(data).save(tmp_path / "profile.json")

    def asked(*options):
        result = clasp(
            "ask", SCENE, QUESTION, "--keep", 9, "--profile", tmp_path / "profile.json", *options,
            "--out", tmp_path / "map.png", "--json",
        )  # fmt: skip
        answer = json.loads(result.stdout)
        return answer["rule"], answer["indices"] == list(range(15, 144, 16))

    assert asked() == ("uniform", True)
    assert asked("--rule", "clasp") == ("clasp", False)
    assert asked("--category", "scene") == ("clasp", False)


def test_a_name_that_no_rule_has_is_refused(tmp_path):
    result = clasp("ask", SCENE, QUESTION, "--rule", "fastv", "--out", tmp_path / "map.png")
    assert result.exit_code == 2
    assert "--rule must be one of clasp, clasp_clusters, " in message(result)
    assert "got 'fastv'" in message(result)
    assert not (tmp_path / "map.png").exists()


def test_the_legend_says_what_a_frame_means(tmp_path, one_run, monkeypatch):
    seen = []

    def spied(*_, kept, **__):
        seen.append(kept[1])
        return visualize.Image.new("RGB", (9, 9))

    monkeypatch.setattr(visualize, "selection_picture", spied)
    for rule in ("clasp", "divprune", "pool"):
        result = clasp(
            "ask", SCENE, QUESTION, "--keep", 9, "--rule", rule, "--out", tmp_path / "map.png"
        )
        assert result.exit_code == 0, result.output
    assert seen == [
        "completion: least covered", "kept for another reason", "takes the mean of its group"
    ]  # fmt: skip


def test_pooling_inside_the_llm_is_refused(tmp_path):
    result = clasp(
        "ask", SCENE, QUESTION, "--schedule", "2:72", "--rule", "pool", "--out",
        tmp_path / "map.png",
    )  # fmt: skip
    assert result.exit_code == 1
    assert "schedule must prune only before the decoder" in message(result)
    assert "rule='pool', which averages tokens" in message(result)


def test_help_names_the_rules():
    text = clasp("ask", "--help").stdout
    option = text[text.index("--rule") :]
    assert len(rule_names()) >= 12
    for name in rule_names():
        assert name in option
