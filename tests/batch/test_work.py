"""A shard is answered in batches, what fails is isolated, and it is written whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from echo import Echo, job, one

from clasp_kernels._run_folder import draft_of
from clasp_kernels.batch import (
    Answer,
    CannotWrite,
    Finished,
    Prepared,
    ShardWorker,
    StopsJob,
    shards,
)
from clasp_kernels.batch.output import OutputFolder
from clasp_kernels.batch.shards import Result, shard_path, write_shard
from clasp_kernels.batch.work import DeviceLost


class Died(BaseException):
    """Stands for the end of the process."""


def rows(folder: Path, shard: int = 0) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(shard_path(folder, shard)).to_pylist()
    return found


def test_rows_are_answered_in_batches_of_like_length_and_written_in_order(tmp_path: Path) -> None:
    echo = Echo()
    work = job(tmp_path, "a", "a wide one", "cccc", "bb", "dd", load=one(echo), shard_size=5)
    finished = ShardWorker(work, "cpu").run(work.shards[0])
    assert finished == Finished(5, 0, 50, 20)
    # Longest first; the wide one is of another kind.
    assert echo.batches == [["cccc", "bb", "dd"], ["a"], ["a wide one"]]
    found = rows(work.out)
    assert [row["answer"] for row in found] == ["A", "A WIDE ONE", "CCCC", "BB", "DD"]
    assert [row["id"] for row in found] == [row.id for row in work.source.read(work.shards[0])]
    assert found[2] | {"id": "", "seconds": 0} == {
        "id": "",
        "image": "2.png",
        "question": "cccc",
        "answer": "CCCC",
        "category": "general",
        "tokens_before": 10,
        "tokens_after": 4,
        "seconds": 0,
        "error": None,
    }
    assert all(row["seconds"] > 0 for row in found)


def test_what_fails_is_tried_alone_and_then_a_row_with_an_error(tmp_path: Path) -> None:
    echo = Echo()
    work = job(
        tmp_path, *("huge", "large", "fine", "unreadable", "", None), load=one(echo), shard_size=6
    )
    assert ShardWorker(work, "cpu").run(work.shards[0]).errors == 4
    assert echo.batches == [["large", "huge", "fine"], ["large"], ["huge"], ["fine"]]
    found = rows(work.out)
    assert [row["answer"] for row in found] == [None, "LARGE", "FINE", None, None, None]
    assert [row["error"] for row in found] == [
        "MemoryError: huge",
        None,
        None,
        "OSError: no picture",
        "question is empty",
        "question must be a text, got None",
    ]
    assert found[0]["tokens_before"] is None and found[0]["question"] == "huge"


def test_a_shard_that_is_there_is_not_answered_again(tmp_path: Path) -> None:
    echo = Echo()
    work = job(tmp_path, "a", "huge", load=one(echo))
    worker = ShardWorker(work, "cpu")
    first = worker.run(work.shards[0])
    before = list(echo.batches)
    assert worker.run(work.shards[0]) == first == Finished(2, 1, 10, 4)
    assert echo.batches == before


def test_a_long_error_is_cut(tmp_path: Path) -> None:
    class Talkative(Echo):
        def explain(self, error: Exception) -> str:
            return "x" * 5000

    work = job(tmp_path, "huge", load=one(Talkative()))
    ShardWorker(work, "cpu").run(work.shards[0])
    [row] = rows(work.out)
    assert row["error"] == "x" * 997 + "..."


def test_a_process_that_has_lost_its_device_goes_no_further(tmp_path: Path) -> None:
    class Lost(Echo):
        def recover(self) -> None:
            raise RuntimeError("an illegal memory access was encountered")

    work = job(tmp_path, "huge", "fine", load=one(Lost()))
    with pytest.raises(DeviceLost, match="illegal memory access"):
        ShardWorker(work, "cpu").run(work.shards[0])
    assert not shard_path(work.out, 0).exists()


class Fatal(Echo):
    """A process dies on every row with the word."""

    def answer(self, batch: Sequence[Prepared]) -> list[Answer]:
        if any("deadly" in each.inputs for each in batch):
            raise Died
        return super().answer(batch)


def test_a_row_that_kills_its_process_is_found_and_given_up(tmp_path: Path) -> None:
    echo = Fatal()
    work = job(tmp_path, "a", "b", "deadly", "c", load=one(echo))
    deaths = 0
    while not shard_path(work.out, 0).exists():
        try:
            ShardWorker(work, "cpu").run(work.shards[0])
        except Died:
            deaths += 1
        assert deaths < 5
    assert deaths == 4  # twice in batches, twice alone
    found = rows(work.out)
    assert [row["answer"] for row in found] == ["A", "B", None, "C"]
    assert found[2]["error"] == "every process that answered this row died"
    assert not list((work.out / ".attempts").iterdir())


def test_processes_that_are_killed_for_other_reasons_change_nothing(tmp_path: Path) -> None:
    """Each attempt dies on another row, as if the machine were taken away."""

    class Unlucky(Echo):
        def answer(self, batch: Sequence[Prepared]) -> list[Answer]:
            if batch[0].inputs.upper() == next_death[0]:
                next_death.pop(0)
                raise Died
            return super().answer(batch)

    next_death = ["DDD", "DDD", "A", "BB", "DDD", "never"]
    work = job(tmp_path, "a", "bb", "c", "ddd", load=one(Unlucky()))
    for _ in range(5):
        with pytest.raises(Died):
            ShardWorker(work, "cpu").run(work.shards[0])
    assert ShardWorker(work, "cpu").run(work.shards[0]).errors == 0


def test_a_shard_whose_reading_kills_stops_the_job(tmp_path: Path, monkeypatch: Any) -> None:
    work = job(tmp_path, "a")

    def die(self: Any, shard: Any) -> None:
        raise Died

    monkeypatch.setattr(type(work.source), "read", die)
    for _ in range(5):
        with pytest.raises(Died):
            ShardWorker(work, "cpu").run(work.shards[0])
    with pytest.raises(StopsJob, match="every process that began rows 0 to 0 of the input died"):
        ShardWorker(work, "cpu").run(work.shards[0])
    monkeypatch.undo()
    assert ShardWorker(work, "cpu").run(work.shards[0]).errors == 0  # it is really tried again


def test_deaths_of_whole_runs_are_not_counted(tmp_path: Path) -> None:
    """The row is found if its process dies four times in one run, and not if four runs do."""
    work = job(tmp_path, "a", "deadly", load=one(Fatal()))
    for number in range(10):
        with pytest.raises(Died):
            ShardWorker(replace(work, run=f"run {number}"), "cpu").run(work.shards[0])
    for _ in range(4):
        with pytest.raises(Died):
            ShardWorker(work.without_shards(), "cpu").run(work.shards[0])
    assert ShardWorker(work, "cpu").run(work.shards[0]).errors == 1


def test_every_job_is_a_run_of_its_own(tmp_path: Path) -> None:
    assert job(tmp_path, "a").run != job(tmp_path, "a").run


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: Any, call: str) -> None:
    work = job(tmp_path, "a")
    real = getattr(os, call)

    def full(*arguments: Any) -> None:
        if call == "replace" and ".attempts" in str(arguments[0]):
            return real(*arguments)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(CannotWrite, match=r"part-000000.parquet cannot be written: No space left"):
        ShardWorker(work, "cpu").run(work.shards[0])
    assert [path.name for path in work.out.rglob("*")] == [".attempts"]


def test_failures_that_are_no_deaths_are_not_counted_as_such(
    tmp_path: Path, monkeypatch: Any
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    work = job(tmp_path, "a")
    for target, name, error in (
        (shards, "write_whole", CannotWrite),
        (type(work.source), "read", StopsJob),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, full)
            for _ in range(7):
                with pytest.raises(error, match="No space left"):
                    ShardWorker(work, "cpu").run(work.shards[0])
    assert ShardWorker(work, "cpu").run(work.shards[0]).errors == 0


def test_a_note_that_cannot_be_written_leaves_no_draft(tmp_path: Path, monkeypatch: Any) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    work = job(tmp_path, "a")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(CannotWrite, match=r"000000\.json cannot be written: No space left"):
        ShardWorker(work, "cpu").run(work.shards[0])
    assert not list((work.out / ".attempts").iterdir())


def test_an_input_that_was_shortened_stops_the_job(tmp_path: Path) -> None:
    work = job(tmp_path, *"abc")
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    with pytest.raises(
        StopsJob, match=r"the input has changed since the run began: of rows 0 to 2 .* has 2 now"
    ):
        ShardWorker(work, "cpu").run(work.shards[0])
    assert not shard_path(work.out, 0).exists()


def test_text_that_is_not_utf8_is_written_with_escapes(tmp_path: Path) -> None:
    """A file name may hold any bytes: Python reads those that are not UTF-8 as surrogates."""
    results = [
        Result("0", "a\udcff.png", "What\udcff?", error="a\udcff.png is no image"),
        Result("1", "b.png", "What?", "It is ü"),
    ]
    assert write_shard(shard_path(tmp_path, 0), results).errors == 1
    found = rows(tmp_path)
    assert found[0]["image"] == "a\\udcff.png" and found[0]["question"] == "What\\udcff?"
    assert found[0]["error"] == "a\\udcff.png is no image"
    assert found[1]["answer"] == "It is ü"


def test_an_input_that_is_gone_is_not_an_input_of_bad_rows(tmp_path: Path) -> None:
    work = job(tmp_path, "a")
    (tmp_path / "questions.jsonl").unlink()
    with pytest.raises(StopsJob, match="the input cannot be read at row 0: No such file"):
        ShardWorker(work, "cpu").run(work.shards[0])


def test_drafts_are_tidied_away_and_readers_see_the_shards_alone(tmp_path: Path) -> None:
    work = job(tmp_path, *"abcdef", shard_size=2)
    worker = ShardWorker(work, "cpu")
    with OutputFolder(work.out, {"model": "a"}) as output:
        for shard in work.shards[:2]:
            worker.run(shard)
        draft_of(shard_path(work.out, 2)).write_bytes(b"half")
        draft_of(work.out / "_manifest.json").write_bytes(b"half")
        (work.out / ".attempts").mkdir(exist_ok=True)
        (work.out / ".attempts" / "000002.json").write_text("[]")
        assert [output.is_done(shard) for shard in work.shards] == [True, True, False]
    with OutputFolder(work.out, {"model": "a"}) as output:
        assert {path.name for path in work.out.iterdir()} == {
            *(".lock", "_manifest.json", "part-000000.parquet", "part-000001.parquet")
        }
        assert output.summary() == Finished(4, 0, 40, 16)
    assert pq.read_table(work.out).num_rows == 4  # neither manifest nor lock is in the way


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    names = {".mine.tmp", ".part-1.parquet.1.tmp", ".part-000000.parquet.bak", "notes.tmp"}
    for name in names:
        (tmp_path / name).touch()
    with OutputFolder(tmp_path, {}):
        assert names < {path.name for path in tmp_path.iterdir()}


def test_drafts_of_two_processes_never_share_a_name(tmp_path: Path) -> None:
    """Not even if two machines give them the same id."""
    path = shard_path(tmp_path, 0)
    assert len({draft_of(path) for _ in range(100)}) == 100
    assert f".{os.uname().nodename}.{os.getpid()}." in draft_of(path).name


def test_a_folder_is_used_by_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        OutputFolder(tmp_path / "out", {}),
        pytest.raises(ValueError, match="another process is writing to"),
    ):
        OutputFolder(tmp_path / "out", {})


def test_results_without_a_manifest_are_not_added_to(tmp_path: Path) -> None:
    (tmp_path / "mine.parquet").touch()
    with pytest.raises(ValueError, match=r"has Parquet files, but no _manifest\.json"):
        OutputFolder(tmp_path, {})
