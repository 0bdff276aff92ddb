"""``clasp calibrate``: from a file of questions to a profile, and what it says on the way."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console
from running import SCENE, clasp, message
from write_questions import write_questions

import clasp_kernels
from clasp_kernels.calibrate import Grid, read_questions
from clasp_kernels.calibrate.sweep import Sweep
from clasp_kernels.cli import calibrate as command
from clasp_kernels.cli import calibrate_options as options
from clasp_kernels.cli import progress
from clasp_kernels.cli.loading import load_model
from clasp_kernels.models import apply_clasp
from clasp_kernels.policy import Profile, Schedule, strategy_weights

#: One budget and two cells beside the default: fast.
FEW = ("--budgets", "3", "--strategies", "A", "--ratios", "0,1", "--device", "cpu")
#: The same inside the decoder, where two of six layers see all 144 tokens.
INSIDE = ("--stages", "2,4", "--budgets", "50", "--ratios", "0,1", "--device", "cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of eight questions about rendered scenes, some without a category."""
    path = write_questions(tmp_path_factory.mktemp("data"), 2, ["objects"])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        if row["category"] == "counting":
            del row["category"]
    rows = [row for row in rows if row.get("category") != "attribute"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Return the path of a profile, and the result of the command that made it."""
    out = tmp_path_factory.mktemp("out") / "mine.json"
    return out, clasp("calibrate", data, *FEW, "--rules", "clasp,random", "--out", out)


def test_it_writes_a_profile_that_says_where_it_comes_from(finished: tuple[Path, Any]) -> None:
    out, result = finished
    assert result.exit_code == 0, message(result)
    profile = Profile.load(out)
    assert profile.name == "mine" and profile.model_type == "llava"
    assert profile.source.startswith(
        f"clasp calibrate of clasp_kernels {clasp_kernels.__version__}: questions.jsonl, 8 "
        f"questions, budgets 3, tokens dropped before the LLM, score exact, rules clasp, random, "
        f"strategies A, pivot ratios 0, 1: "
    )
    for category in ("counting", "ocr", "spatial", "scene"):
        assert f"{category}: " in result.stdout
    assert "attribute, knowledge, general: the default is kept, as there are no questions." in (
        result.stdout
    )


@pytest.fixture(scope="module")
def inside(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Do the same with tokens dropped inside the decoder."""
    out = tmp_path_factory.mktemp("inside") / "mine.json"
    return out, clasp("calibrate", data, *INSIDE, "--out", out)


def test_what_was_calibrated_inside_the_decoder_is_said(inside: tuple[Path, Any]) -> None:
    out, result = inside
    assert result.exit_code == 0, message(result)
    source = (
        "questions.jsonl, 8 questions, budgets 50 (means over decoder layers), tokens dropped "
        "after layers 2 and 4 of 6, score exact, rules clasp, pivot ratios 0, 1: "
    )
    assert source in Profile.load(out).source
    schedule = Schedule.progressive(50, (2, 4), 6, 144)
    folder = out.with_suffix(".calibration")
    for said in (result.stdout, (folder / "report.md").read_text()):
        assert "Tokens were dropped after layers 2 and 4 of 6. A budget is the mean over" in said
        assert f"Budget 50 is --schedule {schedule}\n" in said
        assert "Mixtures of vision layers are not used there" in said
    with open(folder / "scores.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["stages"] for row in rows} == {"2,4"}
    assert {row["strategy"] for row in rows} == {"default", "own"}


def test_calibrations_of_other_stages_are_told_apart(
    inside: tuple[Path, Any],
    finished: tuple[Path, Any],
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Sweep, "_answers", lambda *_: pytest.fail("it was answered again"))
    out, before = inside
    assert clasp("calibrate", data, *INSIDE, "--out", out).stdout == before.stdout
    other = [option if option != "2,4" else "1,4" for option in INSIDE]
    result = clasp("calibrate", data, *other, "--out", out)
    assert result.exit_code == 1
    said = "has the answers of another calibration: stages was [2, 4], and is [1, 4] now."
    assert said in message(result)
    # Folders from before there were stages have none in their manifest, and go on.
    out, _ = finished
    result = clasp("calibrate", data, *FEW, "--stages", "0,3", "--budgets", "70", "--out", out)
    assert result.exit_code == 1 and "stages was not given, and is [0, 3] now" in message(result)
    assert "stages" not in json.loads(
        (out.with_suffix(".calibration") / "manifest.json").read_text()
    )


def test_it_writes_maps_scores_and_answers(finished: tuple[Path, Any]) -> None:
    out, _ = finished
    folder = out.with_suffix(".calibration")
    with open(folder / "answers.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 * 4  # the default, two ratios, and random
    assert {row["category"] for row in rows} == {"counting", "ocr", "spatial", "scene"}
    for name in ("heatmaps", "heatmap_counting", "heatmap_ocr"):
        with Image.open(folder / f"{name}.png") as page:
            page.verify()
    assert "mine" in (folder / "report.md").read_text()


def test_a_second_run_answers_nothing_and_writes_the_same(
    finished: tuple[Path, Any], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, result = finished
    folder = out.with_suffix(".calibration")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(
        "clasp_kernels.calibrate.sweep.Sweep._answers",
        lambda *_: pytest.fail("it was answered again"),
    )
    again = clasp("calibrate", data, *FEW, "--rules", "clasp,random", "--stages", "0", "--out", out)
    assert again.stdout == result.stdout
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    # Another score needs no new answers.
    other = clasp(
        "calibrate", data, *FEW, "--rules", "clasp,random", "--score", "anls", "--out", out
    )
    assert other.exit_code == 0, message(other)
    assert "score anls" in Profile.load(out).source


def test_it_does_not_go_on_with_something_else(finished: tuple[Path, Any], data: Path) -> None:
    out, _ = finished
    few = [option if option != "3" else "4" for option in FEW]
    result = clasp("calibrate", data, *few, "--rules", "clasp,random", "--out", out)
    assert result.exit_code == 1
    assert "has the answers of another calibration: budgets was [3], and is [4] now" in message(
        result
    )
    result = clasp("calibrate", data, *FEW, "--rules", "clasp,random", "--limit", 1, "--out", out)
    assert "number of questions was 8, and is 4 now" in message(result)


#: The options of a calibration, and the cell that is made the best.
PLANTED = {"before the LLM": (FEW, "clasp A 0"), "inside it": (INSIDE, "clasp own 0")}


@pytest.fixture(scope="module", params=PLANTED)
def rigged(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, tuple[str, ...], str]:
    """Return questions whose right answers are what one cell says: it is truly better."""
    given, winner = PLANTED[request.param]
    folder = tmp_path_factory.mktemp("rigged")
    path = write_questions(folder, 40, ["objects"])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [row for row in rows if row["category"] in ("attribute", "ocr")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "write_results", lambda *_: None)
        patch.setattr(command, "summary", lambda *_: [])
        assert clasp("calibrate", path, *given, "--out", folder / "p.json").exit_code == 0
    said = {}
    for line in (folder / "p.calibration" / "answers.jsonl").read_text().splitlines():
        question, _, cell, answer = json.loads(line)
        said[question, cell] = answer
        said.setdefault((question, "default"), answer)  # the first, whatever its name
    for row, question in zip(rows, read_questions(path), strict=True):
        cell = winner if row["category"] == "ocr" else "default"
        row["answer"] = said[question.key, cell]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path, given, winner


@pytest.mark.deep
def test_a_planted_winner_is_found_and_a_default_that_is_best_is_kept(
    rigged: tuple[Path, tuple[str, ...], str], tmp_path: Path
) -> None:
    path, given, winner = rigged
    out = tmp_path / "rigged.json"
    shutil.copytree(path.parent / "p.calibration", out.with_suffix(".calibration"))
    result = clasp("calibrate", path, *given, "--out", out)
    assert result.exit_code == 0, message(result)
    profile = Profile.load(out)
    assert profile.categories["ocr"].pivot_ratio == 0.0
    assert f"ocr: {winner} scores " in result.stdout
    assert "attribute: the default is kept: no other cell scores higher." in result.stdout
    model = load_model(None, "cpu").model
    before = apply_clasp(model, budget=3)
    before.remove()
    expected = before.profile.categories["ocr"].layer_weights
    if given is FEW:
        expected = strategy_weights("A", 4)
    assert profile.categories["ocr"].layer_weights == expected
    assert profile.categories["attribute"] == before.profile.categories["attribute"]
    with apply_clasp(model, budget=3, profile=profile) as handle:  # it can be used at once
        assert handle.profile is profile


def wrong(folder: Path, *rows: Any) -> Path:
    shutil.copy(SCENE, folder / "a.png")
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(**changes: Any) -> dict[str, Any]:
    return {"image": "a.png", "question": "What?", "answer": "this", **changes}


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (row(image="none.png"), "line 2: the image .*none.png cannot be read: No such file"),
        (row(image="text.png"), "line 2: IMAGE: .*text.png is not an image that Pillow can read"),
        (row(answer=""), "line 2: answer must be a string that is not blank"),
        (row(category="animals"), "line 2: category must be one of .*, got 'animals'"),
        (row(question="<image>?"), "line 2: QUESTION must not contain '<image>'"),
        (row(answer="that"), "line 2: it asks what line 1 asks"),
    ],
)
def test_bad_data_is_named_before_anything_is_answered(tmp_path: Path, bad: Any, said: str) -> None:
    (tmp_path / "text.png").write_text("no image")
    out = tmp_path / "p.json"
    result = clasp("calibrate", wrong(tmp_path, row(), bad), *FEW, "--out", out)
    assert result.exit_code == 2
    assert message(result).startswith("Error: DATA: ")
    assert re.search(said, message(result)), message(result)
    assert not out.exists() and not out.with_suffix(".calibration").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--budgets", "0"), "--budgets must be numbers of tokens, such as 64, or fractions"),
        (("--budgets", "1.5"), "--budgets must be .* got '1.5'"),
        (("--budgets", "nan"), "--budgets must be .* got 'nan'"),
        (("--budgets", "3,,4"), "--budgets must be a list with one comma between entries"),
        (("--budgets", "3,03"), "--budgets must name each entry once"),
        (("--ratios", "0,0.0"), "--ratios must name each entry once"),
        (("--strategies", "A,A"), "--strategies must name each entry once"),
        (("--budgets", "144"), "--budgets must be below 144, the most visual tokens"),
        (("--stages", "8,2"), "--stages must be ascending numbers .* such as 2,8, .* got '8,2'"),
        (("--stages", "2,2"), "--stages must be ascending .* got '2,2'"),
        (("--stages", "-1"), "--stages must be ascending .* got '-1'"),
        (("--stages", "2,"), "--stages must be a list with one comma between entries"),
        (("--stages", "2,6"), r"--stages must be in 0\.\.5, as .* has 6 decoder layers .* got 6"),
        (
            ("--stages", "2,4", "--budgets", "50,40"),
            r"^Error: --budgets 40 with --stages 2,4: average must be in 49\.\.143 visual tokens",
        ),
        (
            ("--stages", "2,4", "--budgets", "0.5,0.3"),
            "^Error: --budgets 0.3 with --stages 2,4: average as a fraction must be above 0.333333 "
            "and below 1, got 0.3",
        ),
        (
            ("--stages", "2,4", "--strategies", "A,E"),
            "^Error: --strategies must be left out with --stages 2,4, .* 'selection', .* got A,E",
        ),
        (("--ratios", "2"), "--ratios must be numbers from 0 to 1, got '2'"),
        (("--strategies", "F"), "--strategies must be letters of A, B, C, D, E, got 'F'"),
        (("--rules", "best"), "--rules must be rules, each one of clasp, .* got 'best'"),
        (("--score", "bleu"), "--score must be one of exact, vqa, relaxed, anls, got 'bleu'"),
        (("--out", "map.png"), "--out must be a .json file, as profiles are, got map.png"),
        (("--out", ""), "--out must name a file"),
    ],
)
def test_bad_options_are_named(data: Path, options: tuple[str, ...], said: str) -> None:
    result = clasp("calibrate", data, "--device", "cpu", *options)
    assert result.exit_code == 2, message(result)
    assert re.search(said, message(result)), message(result)


def test_a_rule_that_cannot_be_used_inside_the_decoder_is_refused_first(
    data: Path, tmp_path: Path
) -> None:
    result = clasp(
        "calibrate", data, *INSIDE, "--rules", "clasp,pool", "--out", tmp_path / "p.json"
    )
    assert result.exit_code == 1
    assert "schedule must prune only before the decoder" in message(result)
    assert "with rule='pool', which averages tokens" in message(result)
    assert not list(tmp_path.iterdir())


def test_what_is_read_is_not_overwritten(tmp_path: Path) -> None:
    path = wrong(tmp_path, row()).rename(tmp_path / "data.json")
    result = clasp("calibrate", path, "--out", path)
    assert "would overwrite a file that is read" in message(result)


def test_a_data_file_that_is_not_there(tmp_path: Path) -> None:
    result = clasp("calibrate", tmp_path / "none.jsonl")
    assert result.exit_code == 2
    assert "DATA: there is no file" in message(result)


def test_the_data_is_compared_with_the_router(tmp_path: Path) -> None:
    rows = [row(question=f"How many dogs are in box {n}?", category="ocr") for n in range(3)]
    path = wrong(tmp_path, *rows, rows[0], row(question="How many dogs?"))
    result = clasp("calibrate", path, *FEW, "--out", tmp_path / "p.json")
    assert "another category than the data gives: 3." in result.stdout, message(result)
    assert "Lines that repeat another one and were asked once: 1." in result.stdout


def process(data: Path, out: Path) -> subprocess.Popen[bytes]:
    root = str(Path(clasp_kernels.__file__).parents[1])
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "clasp_kernels.cli", "calibrate", str(data), *FEW),
            *("--batch-size", "1", "--out", str(out)),
        ],
        env={**os.environ, "PYTHONPATH": root, "HF_HUB_OFFLINE": "1"},
        # A shell's background job ignores Ctrl-C, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def wait_for_answers(running: subprocess.Popen[bytes], out: Path, count: int) -> None:
    path = out.with_suffix(".calibration") / "answers.jsonl"
    while running.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.002)
    pytest.fail(f"it ended before {count} answers: {running.communicate()}")


@pytest.fixture(scope="module")
def interrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """Interrupt a process after three answers. Return its path, its status and what it said."""
    out = tmp_path_factory.mktemp("interrupted") / "p.json"
    running = process(data, out)
    wait_for_answers(running, out, 3)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate()
    return out, running.returncode, errors.decode()


@pytest.mark.deep
def test_ctrl_c_says_what_is_kept(interrupted: tuple[Path, int, str]) -> None:
    out, status, errors = interrupted
    assert status == 130
    said = " ".join(errors.split())
    assert said.startswith("Stopped. ") and " of 24 answers are kept in " in said
    assert said.endswith("the same command goes on from there.")
    assert "Traceback" not in said
    assert not out.exists()


@pytest.mark.deep
def test_stopping_it_anywhere_loses_nothing(
    interrupted: tuple[Path, int, str], data: Path, tmp_path: Path
) -> None:
    """By Ctrl-C and then by `kill -9`. What was not stopped runs in this process, for time."""
    whole, stopped = tmp_path / "p.json", tmp_path / "stopped" / "p.json"
    shutil.copytree(interrupted[0].parent, stopped.parent)
    running = process(data, stopped)
    wait_for_answers(running, stopped, 12)
    running.kill()
    running.communicate()
    assert not stopped.exists()
    for path in (whole, stopped):
        result = clasp("calibrate", data, *FEW, "--batch-size", 1, "--out", path)
        assert result.exit_code == 0, message(result)
    for name in ("answers.jsonl", "answers.csv", "scores.csv", "report.md", "heatmaps.png"):
        one, other = (path.with_suffix(".calibration") / name for path in (whole, stopped))
        assert one.read_bytes() == other.read_bytes(), name
    assert whole.read_bytes() == stopped.read_bytes()


def test_ctrl_c_during_an_answer(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, calls = Sweep._answers, []

    def interrupted(*arguments: Any) -> list[str]:
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return answers(*arguments)

    monkeypatch.setattr(Sweep, "_answers", interrupted)
    out = tmp_path / "p.json"
    result = clasp("calibrate", data, *FEW, "--out", out)
    assert result.exit_code == 130
    assert message(result).startswith("Stopped. 6 of 24 answers are kept in ")
    assert not out.exists()


def test_the_bar_has_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=120)
    monkeypatch.setattr(progress, "Console", lambda **_: console)
    with progress.bar("Answering") as on_done:
        on_done(500, 1000)
        on_done(501, 1000)
    assert re.search(r"501/1000.*\d+:\d\d.*left", shown.getvalue())


def test_the_grid_is_the_default_of_the_command() -> None:
    grid = Grid(Profile.for_model_type("llava"))
    assert options.parsed_strategies("A,B,C,D,E") == grid.strategies
    assert options.parsed_ratios("0,0.25,0.5,0.75,1") == grid.pivot_ratios
