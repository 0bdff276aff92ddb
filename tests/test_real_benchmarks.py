"""The tables of real models, with a stand-in for the harness that writes results in its format."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from real import run, settings
from real.settings import MODELS, TASKS, rows
from real.table import score

from clasp_kernels.integrations.lmms_eval.settings import parse_settings
from clasp_kernels.policy import Schedule
from clasp_kernels.rules import rule_names

ROOT = Path(__file__).resolve().parent.parent

# Takes what the harness takes. `calls` has a line for every call, and the files beside it, named by
# a rule, say how the call for that rule ends.
HARNESS = """\
import json, pathlib, sys
here = pathlib.Path(__file__).parent
given = dict(zip(sys.argv[3::2], sys.argv[4::2]))
with open(here / "calls", "a") as calls:
    print(given["--model_args"], file=calls)
rule = given["--model_args"].rpartition("rule=")[2]
if (here / f"{rule}.dies").exists():
    sys.exit(3)
if (here / f"{rule}.stays_silent").exists():
    sys.exit(0)
if (here / f"{rule}.scores_an_error").exists():
    print("ERROR - Error out of memory in generating", file=sys.stderr)
accuracy = 0.8 if given["--model"] == "llava_hf" else 0.6
folder = pathlib.Path(given["--output_path"], "weights")
folder.mkdir(parents=True)
metrics = {} if (here / f"{rule}.scores_nothing").exists() else {"exact_match,none": accuracy}
(folder / "20260101_results.json").write_text(
    json.dumps({"results": {given["--tasks"]: {"alias": "?", **metrics}}})
)
"""


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: Any) -> Path:
    """The folder of the stand-in."""
    monkeypatch.setattr(run, "_version", lambda package: "1.0")
    folder = tmp_path / "harness"
    folder.mkdir()
    (folder / "harness.py").write_text(HARNESS)
    return folder


def evaluate(harness: Path, *more: str, methods: str = "divprune,attention") -> int:
    return run.main(
        [
            *("bundled", "--out", str(harness.parent / "out"), "--methods", methods),
            *("--launch", f"{sys.executable} {harness / 'harness.py'}"),
            *more,
        ]
    )


def calls(harness: Path) -> list[str]:
    log = harness / "calls"
    return log.read_text().splitlines() if log.exists() else []


@pytest.mark.parametrize("name", MODELS)
def test_a_table_has_every_rule_at_every_budget(name: str) -> None:
    model = MODELS[name]
    unpruned, *pruned = rows(model)
    assert (unpruned.budget, unpruned.harness, unpruned.model_args) == (None, model.harness, "")
    assert [(row.budget, row.method) for row in pruned] == [
        (budget, method) for budget in model.budgets for method in ("clasp inside", *rule_names())
    ]
    assert len({row.name for row in rows(model)}) == 1 + len(pruned)


@pytest.mark.parametrize("name", MODELS)
def test_a_schedule_keeps_its_budget_on_average(name: str) -> None:
    model = MODELS[name]
    for row in rows(model):
        if row.method == "clasp inside":
            assert row.budget is not None
            stages = row.model_args.removeprefix("schedule=")
            args = {"budget": None, "rule": None, "profile": None}
            read = parse_settings(**args, schedule=stages, positions="original", merge=False)
            schedule: Schedule = read["schedule"]
            assert schedule.layers == model.stages
            # A float is a fraction of any number of tokens.
            tokens = model.num_tokens if isinstance(row.budget, int) else 10_000
            wanted = row.budget if isinstance(row.budget, int) else row.budget * tokens
            assert abs(schedule.average(tokens, model.num_layers) - wanted) <= 0.5


def test_the_paper_s_budgets_are_those_that_its_page_states() -> None:
    paper = {name: model.budgets for name, model in MODELS.items() if model.in_paper}
    assert paper == {
        "llava-1.5-7b": (192, 128, 64),
        "llava-next-7b": (320,),
        "qwen2.5-vl-7b": (0.3333, 0.2222, 0.1111),
    }
    assert set(settings.USUAL_TASKS) < set(TASKS)


def test_a_dry_run_prints_commands_and_runs_nothing(harness: Path, capfd: Any) -> None:
    assert evaluate(harness, "--dry-run", "--limit", "7", "--harness-args=--log_samples") == 0
    printed = capfd.readouterr().out.splitlines()
    assert len(printed) == 1 + 2 * len(MODELS["bundled"].budgets)
    assert all("--limit 7 --log_samples" in line for line in printed)
    assert "--model llava_hf " in printed[0] and "--model clasp_llava_hf " in printed[1]
    assert "dtype=float32,budget=72,rule=attention " in printed[1]
    assert not calls(harness) and not (harness.parent / "out").exists()


def test_one_process_is_told_its_device(capfd: Any) -> None:
    assert run.main(["qwen2.5-vl-7b", "--dry-run", "--tasks", "pope", "--device", "cpu"]) == 0
    first = capfd.readouterr().out.splitlines()[0]
    assert "pretrained=Qwen/Qwen2.5-VL-7B-Instruct,device_map=cpu " in first
    assert first.startswith(f"{sys.executable} -m lmms_eval --model qwen2_5_vl ")
    assert "--tasks pope " in first and "--device cpu" in first


def test_what_is_finished_is_not_run_again(harness: Path, capfd: Any) -> None:
    (harness / "attention.dies").touch()
    assert evaluate(harness) == 1
    assert "# failed: exit status 3" in capfd.readouterr().out
    assert len(calls(harness)) == 5

    (harness / "attention.dies").unlink()
    assert evaluate(harness) == 0
    again = calls(harness)[5:]
    assert [args.rpartition("rule=")[2] for args in again] == ["attention", "attention"]
    assert evaluate(harness) == 0
    assert len(calls(harness)) == 7
    capfd.readouterr()
    assert evaluate(harness, "--dry-run") == 0
    assert all(line.startswith("# finished: ") for line in capfd.readouterr().out.splitlines())


@pytest.mark.parametrize(
    ("ending", "message"),
    [
        ("stays_silent", "wrote no results"),
        ("scores_nothing", "has no number for exact_match"),
        ("scores_an_error", "scored an empty answer where generate failed"),
    ],
)
def test_no_valid_score_is_a_failure_though_the_harness_exits_with_0(
    ending: str, message: str, harness: Path, capfd: Any
) -> None:
    (harness / f"divprune.{ending}").touch()
    assert evaluate(harness, methods="divprune") == 1
    assert message in capfd.readouterr().out
    assert evaluate(harness, methods="divprune") == 1
    assert len(calls(harness)) == 5  # the unpruned one once


def test_results_of_another_run_are_refused(harness: Path) -> None:
    assert evaluate(harness) == 0
    with pytest.raises(SystemExit, match="has a result with limit None, not 5"):
        evaluate(harness, "--limit", "5")
    with pytest.raises(SystemExit, match="has a result with model_args"):
        evaluate(harness, "--model-args", "revision=other")
    assert len(calls(harness)) == 5


def test_the_table_says_what_is_retained(harness: Path) -> None:
    (harness / "attention.dies").touch()
    evaluate(harness, "--limit", "5")
    table = (harness.parent / "out" / "bundled" / "table.md").read_text()
    assert "The first 5 questions of each task: a trial, not a result." in table
    assert "With clasp-kernels 1.0, lmms_eval 1.0, torch 1.0, transformers 1.0." in table
    assert table.splitlines()[-7:] == [
        "| kept | method | scenes | retained |",
        "| --- | --- | ---: | ---: |",
        "| all | unpruned | 80.0 | 100.0 % |",
        "| 72 | attention |  |  |",
        "| 72 | divprune | 60.0 | 75.0 % |",
        "| 36 | attention |  |  |",
        "| 36 | divprune | 60.0 | 75.0 % |",
    ]


def test_scores_are_read_as_each_task_gives_them() -> None:
    results = {
        "mme": {"mme_perception_score,none": 1500.0, "mme_cognition_score,none": 350.0},
        "pope": {"pope_accuracy,none": 0.86, "pope_f1_score,none": 0.85},
    }
    assert score("mme", {"results": results}) == 1850.0
    assert score("pope", {"results": results}) == pytest.approx(86.0)
    with pytest.raises(ValueError, match="gqa has no number for exact_match"):
        score("gqa", {"results": results})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["llama"], "MODEL must be some of llava-1.5-7b, .* got llama"),
        (["bundled", "--tasks", "imagenet"], "--tasks must be some of gqa, .* got imagenet"),
        (["bundled", "--methods", "best"], "--methods must be some of attention, .* got 'best'"),
        (["--pretrained", "here"], "--pretrained goes with one model"),
    ],
)
def test_wrong_arguments_are_named(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        run.main([*arguments, "--dry-run"])


def test_the_script_runs_from_anywhere(tmp_path: Path) -> None:
    script = ROOT / "benchmarks" / "real" / "run.sh"
    ended = subprocess.run(
        [script, "bundled", "--dry-run", "--methods", "divprune"],
        cwd=tmp_path,
        env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert len(ended.stdout.splitlines()) == 3
