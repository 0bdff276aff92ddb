"""``clasp batch``: from images and questions to Parquet, and what it says on the way.

The engine is a worker in this process, except where processes are what is tested.
"""

from __future__ import annotations

import errno
import inspect
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console
from running import SCENE, clasp, message, variant

from clasp_kernels._run_folder import draft_of
from clasp_kernels.batch import Finished, Job, ShardWorker, StopsJob, local
from clasp_kernels.bundled import tiny_vlm_path
from clasp_kernels.cli import batch_command, loading, progress
from clasp_kernels.cli.batch_model import load_answerer
from clasp_kernels.cli.checkpoint import Checkpoint
from clasp_kernels.integrations import ray
from clasp_kernels.policy import Profile

QUESTIONS = [
    "How many circles are there?",
    "What does the sign say?",
    "Is the circle to the left of the square?",
    "What color is the square?",
    "What is it?",
]
FEW = ("--max-new-tokens", 3, "--device", "cpu")


@pytest.fixture(scope="module")
def answerer() -> Callable[[Any, str], Any]:
    """Return ``load_answerer`` that loads each model once."""
    loaded: dict[str, Any] = {}

    def load(settings: Any, device: str) -> Any:
        key = repr(settings)
        if key not in loaded:
            for other in loaded.values():
                other._handle.remove()
            loaded.clear()
            loaded[key] = load_answerer(settings, device)
        return loaded[key]

    return load


@pytest.fixture(autouse=True)
def engine(monkeypatch: Any, answerer: Any) -> list[int]:
    """Have a worker in this process do the shards; return those that it has done."""
    done: list[int] = []

    def run(job: Job, workers: Any) -> Iterator[Finished]:
        worker = ShardWorker(job, job.device)
        for shard in job.shards:
            yield worker.run(shard)
            done.append(shard.index)

    monkeypatch.setattr(local, "run", run)
    monkeypatch.setattr("clasp_kernels.cli.batch_model.load_answerer", answerer)
    return done


@pytest.fixture(scope="module")
def data(tmp_path_factory: Any) -> Path:
    """Return a JSONL file of seven questions about pictures, of which one is broken."""
    folder: Path = tmp_path_factory.mktemp("data")
    rows = []
    with Image.open(SCENE) as scene:
        for number in range(7):
            scene.convert("RGB").rotate(20 * number).save(folder / f"{number}.png")
            question = QUESTIONS[number % len(QUESTIONS)]
            row = {"image": f"{number}.png", "question": question, "other": number}
            rows.append({**row, "picture": f"{6 - number}.png", "asked": "What is it?"})
    (folder / "3.png").write_bytes(b"no picture")
    rows[5]["question"] = ""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "rows.jsonl"


def batch(*arguments: object) -> Any:
    return clasp("batch", *arguments, *FEW)


def rows(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(folder).to_pylist()
    return [{**row, "seconds": None} for row in found]


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: Any) -> tuple[Path, Any]:
    """Return the folder of a run by a process of its own, and what the command said."""
    out = tmp_path_factory.mktemp("out") / "results"
    return out, batch(data, out, "--shard-size", 3)


def test_every_row_has_an_answer_or_an_error(finished: tuple[Path, Any]) -> None:
    out, result = finished
    assert result.exit_code == 0, message(result)
    assert [path.name for path in sorted(out.glob("*.parquet"))] == [
        "part-000000.parquet",
        "part-000001.parquet",
        "part-000002.parquet",
    ]
    found = rows(out)
    assert [row["id"][:9] for row in found] == [f"{n:09d}" for n in range(7)]
    assert [row["image"] for row in found] == [f"{n}.png" for n in range(7)]
    wrong = {3: "3.png is not an image that Pillow can read", 5: "question is empty"}
    for number, row in enumerate(found):
        if number in wrong:
            assert wrong[number] in row["error"] and row["answer"] is None
        else:
            assert row["error"] is None and row["answer"]
            assert (row["tokens_before"], row["tokens_after"]) == (144, 36)
    assert [found[n]["category"] for n in (0, 1, 2)] == ["counting", "ocr", "spatial"]
    assert "7 rows: 5 answers, 2 errors." in result.stdout
    assert "Visual tokens: 720 before, 180 after; 540 saved (75.0 %)." in result.stdout


def test_answers_are_those_of_clasp_ask(finished: tuple[Path, Any], data: Path) -> None:
    found = rows(finished[0])
    for number in (1, 2):
        result = clasp(
            *("ask", data.parent / f"{number}.png", QUESTIONS[number], "--keep", 36, "--json"),
            *("--out", data.parent / "map.png", *FEW),
        )
        answer = json.loads(result.stdout)
        assert answer["answer"]["kept"] == found[number]["answer"]
        assert answer["category"]["name"] == found[number]["category"]


def test_batches_and_shards_change_no_answer(
    finished: tuple[Path, Any], data: Path, tmp_path: Path
) -> None:
    assert batch(data, tmp_path, "--shard-size", 7, "--batch-size", 1).exit_code == 0
    assert rows(tmp_path) == rows(finished[0])


def test_images_in_parquet_give_the_same_answers(
    finished: tuple[Path, Any], data: Path, tmp_path: Path
) -> None:
    asked = [json.loads(line) for line in data.read_text().splitlines()]
    images = [(data.parent / row["image"]).read_bytes() for row in asked]
    prompts = [row["question"] for row in asked]
    pq.write_table(pa.table({"photo": images, "prompt": prompts}), tmp_path / "in.parquet")
    result = batch(
        *(tmp_path / "in.parquet", tmp_path / "out"),
        *("--image-column", "photo", "--question-column", "prompt"),
    )
    assert result.exit_code == 0, message(result)
    found = rows(tmp_path / "out")
    assert found[1]["image"] == "in.parquet#1"
    assert [row["answer"] for row in found] == [row["answer"] for row in rows(finished[0])]


def test_a_folder_of_images_is_asked_one_question(data: Path, tmp_path: Path) -> None:
    result = batch(data.parent, tmp_path, "--question", QUESTIONS[0], "--budget", 9)
    assert result.exit_code == 0, message(result)
    found = rows(tmp_path)
    assert {row["question"] for row in found} == {QUESTIONS[0]}
    assert {row["tokens_after"] for row in found} == {9, None}


def test_a_schedule_prunes_inside_the_llm(data: Path, tmp_path: Path) -> None:
    result = batch(data, tmp_path, "--schedule", "2:48,4:8")
    assert result.exit_code == 0, message(result)
    assert {row["tokens_after"] for row in rows(tmp_path)} == {8, None}


def test_rules_and_profiles_are_taken(data: Path, tmp_path: Path) -> None:
    profile = Profile.load(tiny_vlm_path() / "clasp_profile.json")
    counting = replace(profile.categories["counting"], budget_scale=0.5)
    replace(profile, categories={**profile.categories, "counting": counting}).save(
        tmp_path / "mine.json"
    )
    given = ("--profile", tmp_path / "mine.json", "--rule", "divprune")
    result = batch(data, tmp_path / "out", *given)
    assert result.exit_code == 0, message(result)
    found = rows(tmp_path / "out")
    assert [found[n]["tokens_after"] for n in (0, 1)] == [18, 36]  # one batch, two budgets
    said = message(batch(data, tmp_path / "out"))
    assert 'rule was "divprune", and is null now' in said and "profile was" in said


def test_a_finished_run_answers_nothing_again(
    finished: tuple[Path, Any], data: Path, engine: list[int]
) -> None:
    out, result = finished
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    again = batch(data, out, "--shard-size", 3)
    assert again.stdout == result.stdout and engine == []
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")} == before


def test_only_what_is_missing_is_answered(
    finished: tuple[Path, Any], data: Path, tmp_path: Path, engine: list[int]
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished[0], out)
    (out / "part-000001.parquet").unlink()
    assert batch(data, out, "--shard-size", 3).exit_code == 0
    assert engine == [1]
    assert rows(out) == rows(finished[0])


#: What says that an option has changed. "source", "model", "profile" and "device" need more than
#: a value, and have tests of their own below.
DIFFERENCES = {
    "budget": (36, "budget was 0.25, and is 36 now"),
    "rule": ("divprune", 'rule was null, and is "divprune" now'),
    "schedule": ("0:36", 'schedule was null, and is "0:36" now'),
    "shard_size": (4, "shard size was 3, and is 4 now"),
    "question": ("What?", 'question was null, and is "What?" now'),
    "question_column": ("asked", 'question column was "question", and is "asked" now'),
    "image_column": ("picture", 'image column was "image", and is "picture" now'),
    "max_new_tokens": (4, "longest answer was 3, and is 4 now"),
}
#: Where the results are, and who answers which rows together.
WITHOUT_EFFECT = {"out", "engine", "workers", "batch_size"}


def test_every_option_is_in_the_manifest_or_changes_no_answer() -> None:
    others = {"source", "model", "profile", "device"}
    options = set(inspect.signature(batch_command.batch).parameters)
    assert options == {*DIFFERENCES, *WITHOUT_EFFECT, *others}


@pytest.mark.parametrize("option", DIFFERENCES)
def test_it_does_not_go_on_with_something_else(
    finished: tuple[Path, Any], data: Path, option: str
) -> None:
    value, difference = DIFFERENCES[option]
    given = ("--" + option.replace("_", "-"), value)
    result = clasp("batch", data, finished[0], *FEW, "--shard-size", 3, *given)
    assert result.exit_code == 1
    assert "has the results of another run: " in message(result)
    assert difference in message(result)


def test_other_weights_and_other_rows_are_something_else(
    finished: tuple[Path, Any], data: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_vlm_path(), model)
    with open(model / "model.safetensors", "r+b") as weights:
        weights.seek(-3, os.SEEK_END)
        weights.write(b"\x01")
    said = message(batch(data, finished[0], "--shard-size", 3, "--model", model))
    assert "revision was" in said
    lines = data.read_text().splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_text("".join(lines[:6]))
    said = message(batch(tmp_path / "rows.jsonl", finished[0], "--shard-size", 3))
    assert "input was" in said and "rows was 7, and is 6 now" in said


def test_another_kind_of_device_is_something_else(
    finished: tuple[Path, Any], data: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(local, "device_type", lambda _: "cuda")
    said = message(batch(data, finished[0], "--shard-size", 3))
    assert 'device was "cpu", and is "cuda" now' in said


def test_other_processes_load_the_model_that_was_checked(
    data: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """They find its folder from any other, and the hub's newest commit may be another by then."""
    jobs: list[Job] = []
    monkeypatch.setattr(local, "run", lambda job, workers: iter(jobs.append(job) or ()))
    shutil.copytree(tiny_vlm_path(), tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    batch(data, "folder", "--model", "model")
    load_skeleton = loading.load_skeleton

    def from_the_hub(name: str) -> Any:
        loaded = load_skeleton(None)
        loaded.model.name_or_path, loaded.model.config._commit_hash = name, "c0ffee"
        return loaded

    monkeypatch.setattr(loading, "load_skeleton", from_the_hub)
    batch(data, "hub", "--model", "some/model")
    settings = [job.load.keywords["settings"] for job in jobs]  # type: ignore[attr-defined]
    assert [each.model for each in settings] == [str(tmp_path / "model"), "some/model"]
    assert [each.revision for each in settings] == [None, "c0ffee"]

    loads = []
    monkeypatch.setattr(loading, "find_checkpoint", lambda name: Checkpoint(name, True))

    def stop(*_: Any, **options: Any) -> None:
        loads.append(options)
        raise OSError("stop here")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", stop)
    for each in settings:
        with pytest.raises(StopsJob, match="stop here"):
            load_answerer(each, "cpu")
    assert [options.get("revision") for options in loads] == [None, "c0ffee"]


def test_ctrl_c_says_where_it_stands_and_the_same_command_goes_on(
    finished: tuple[Path, Any], data: Path, tmp_path: Path, monkeypatch: Any, engine: list[int]
) -> None:
    run = local.run

    def interrupted(job: Job, workers: Any) -> Iterator[Finished]:
        yield next(run(job, workers))
        draft_of(job.out / "part-000001.parquet").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(local, "run", interrupted)
        result = batch(data, tmp_path / "out", "--shard-size", 3)
    assert result.exit_code == 130
    assert "Stopped. 3 of 7 rows are done and kept in" in message(result)
    assert "the same command goes on from there" in message(result)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".lock",
        "_manifest.json",
        "part-000000.parquet",
    ]
    assert batch(data, tmp_path / "out", "--shard-size", 3).exit_code == 0
    assert rows(tmp_path / "out") == rows(finished[0])


def test_a_full_disk_is_a_sentence(data: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("clasp_kernels.batch.shards.write_whole", full)
    result = batch(data, tmp_path / "out")
    assert result.exit_code == 1
    assert (
        "part-000000.parquet cannot be written: No space left on device. 0 of 7 rows are done"
        in message(result)
    )


def test_a_folder_that_cannot_be_written_is_a_sentence(
    data: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    result = batch(data, tmp_path / "out")
    assert result.exit_code == 1
    assert f"OUT: {tmp_path / 'out'} cannot be written: no permission" in message(result)
    monkeypatch.undo()

    def read_only(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", read_only)
    result = batch(data, tmp_path / "out")
    assert result.exit_code == 1
    assert "cannot be used: Read-only file system" in message(result)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--budget", "0"), "--budget must be a number of tokens, such as 64, or a fraction"),
        (("--budget", "1.5"), "--budget must be .* got '1.5'"),
        (("--budget", "8", "--schedule", "2:8"), "--budget and --schedule exclude each other"),
        (("--schedule", "2"), "--schedule: "),
        (("--rule", "best"), "--rule must be one of clasp, .* got 'best'"),
        (("--engine", "spark"), "--engine must be local or ray, got 'spark'"),
        (("--workers", "0"), "--workers must be a number of processes from 1, .* got '0'"),
        (("--workers", "1:2"), "--workers must be one number with --engine local"),
        (("--question", " "), "--question must hold a word"),
        (("--question", "a", "--question-column", "b"), "--question and --question-column exclude"),
        (("--question-column", "prompt"), "has no field 'prompt' in its first 7 lines"),
        (("--image-column", "photo"), "has no field 'photo'"),
    ],
)
def test_bad_options_are_named(data: Path, tmp_path: Path, given: Any, said: str) -> None:
    result = batch(data, tmp_path / "out", *given)
    assert result.exit_code == 2, message(result)
    assert re.search(said, message(result)), message(result)
    assert not (tmp_path / "out").exists()


def test_bad_paths_are_named(data: Path, tmp_path: Path) -> None:
    assert "there is no file or folder" in message(batch(tmp_path / "none.jsonl", tmp_path / "o"))
    assert "OUT must be another folder than IN" in message(
        batch(data.parent, data.parent, "--question", "What?")
    )
    for out in (data.parent / "out", data.parent / "new" / "out"):
        assert f"OUT must be outside of the folder IN, whose files are the input, got {out}" in (
            message(batch(data.parent, out, "--question", "What?"))
        )
        assert not out.exists()
    assert "is no folder" in message(batch(data, data / "out"))
    assert "IN must name a file" in message(batch("", tmp_path / "out"))


def test_a_ray_cluster_without_a_gpu_is_a_sentence(
    data: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(ray, "_cluster", lambda: {"CPU": 4.0})
    result = clasp("batch", data, tmp_path / "out", "--engine", "ray", "--device", "cuda")
    assert result.exit_code == 1
    assert "--device cuda cannot be used: the Ray cluster has no GPU" in message(result)
    assert not (tmp_path / "out").exists()
    assert [ray.device_type(name) for name in ("auto", "cpu")] == ["cpu", "cpu"]


def test_pictures_that_cannot_be_named_or_found_are_errors_of_their_rows(
    data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(data.parent / "0.png", folder / os.fsdecode(b"a\xff.png"))
    (folder / os.fsdecode(b"b\xff.png")).write_bytes(b"no picture")
    (folder / "c.png").symlink_to("nothing.png")
    result = batch(folder, tmp_path / "out", "--question", "What is it?")
    assert result.exit_code == 0, message(result)
    found = rows(tmp_path / "out")
    assert [row["image"] for row in found] == ["a\\udcff.png", "b\\udcff.png", "c.png"]
    assert found[0]["answer"] and "b\\udcff.png is not an image" in found[1]["error"]
    assert "c.png" in found[2]["error"]


def test_a_model_that_does_not_fit_is_named_before_anything_is_written(
    data: Path, tmp_path: Path
) -> None:
    result = batch(data, tmp_path / "out", "--schedule", "9:8")
    assert result.exit_code == 1 and "CLASP cannot be applied to" in message(result)
    result = batch(data, tmp_path / "out", "--model", tmp_path)
    assert "the folder holds no config.json" in message(result)
    assert not (tmp_path / "out").exists()


def test_a_processor_that_fits_no_row_is_named_before_anything_is_written(
    data: Path, tmp_path: Path
) -> None:
    model = variant(tmp_path, "processor_config.json", {"patch_size": 4})
    result = batch(data, tmp_path / "out", "--model", model)
    assert result.exit_code == 1
    assert "image tokens of this image, the model" in message(result)
    assert not (tmp_path / "out").exists()


def test_the_bar_shows_rows_speed_tokens_saved_and_the_time_left(monkeypatch: Any) -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=120, color_system=None)
    monkeypatch.setattr(progress, "Console", lambda **_: console)
    with progress.rows_bar() as on_done:
        on_done(Finished(0, 0, 0, 0), 500, 1000)  # of an earlier run
        on_done(Finished(10, 1, 1440, 360), 510, 1000)
        on_done(Finished(20, 1, 2880, 720), 520, 1000)
    said = r"520/1000 +rows \(\d+\.\d/s, 2160 tokens saved\).*left +\d+:\d\d"
    assert re.search(said, shown.getvalue()), shown.getvalue()


def test_without_a_terminal_a_line_now_and_then_says_the_same(
    monkeypatch: Any, capsys: Any
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.rows_bar() as on_done:
        on_done(Finished(0, 0, 0, 0), 500, 1000)
        for rows, seconds in ((10, 110.0), (60, 140.0), (70, 145.0)):
            now[0] = seconds
            on_done(Finished(rows, 0, 100 * rows, 25 * rows), 500 + rows, 1000)
    assert capsys.readouterr().err == "560/1000 rows (1.5/s, 4500 tokens saved), 293 s left\n"
