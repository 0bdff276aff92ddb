"""Answer one shard: prepare its rows, form batches by length, isolate what fails, write it."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from clasp_kernels.batch.attempts import Attempt
from clasp_kernels.batch.shards import (
    CannotWrite,
    Finished,
    Result,
    read_shard,
    shard_path,
    write_shard,
)
from clasp_kernels.batch.source import Row, Shard, Source

# An error is a sentence, not the megabytes that a library may print.
_LONGEST_ERROR = 1000


@dataclass(frozen=True)
class Prepared:
    """A row as the model takes it."""

    inputs: Any
    length: int
    """Tokens of its prompt: rows of equal length need no padding."""
    kind: Hashable
    """Rows of different kinds cannot share a batch."""
    category: str
    tokens: int
    """Visual tokens of its image."""


@dataclass(frozen=True)
class Answer:
    """What the model says about one row."""

    text: str
    tokens_after: int
    """Visual tokens that are left after the last stage of pruning."""


class Answerer(Protocol):
    """A model that answers rows, in the process that has loaded it.

    ``prepare`` and ``answer`` may raise any exception: it becomes the error of the row, or has the
    rows of the batch answered alone.
    """

    def prepare(self, row: Row) -> Prepared:
        """Load the image of a row and prepare its prompt."""

    def answer(self, batch: Sequence[Prepared]) -> list[Answer]:
        """Answer rows of one kind as one batch."""

    def explain(self, error: Exception) -> str:
        """Return an exception in words, for the row that it concerns."""

    def recover(self) -> None:
        """Free what a failed batch has left. Raises an exception if the device is lost."""


class StopsJob(Exception):
    """No shard can be done, so the job stops. The message is for the user."""


class DeviceLost(Exception):
    """The device does not work any more in this process: another process must go on."""


@dataclass(frozen=True)
class Job:
    """What an engine does. It can be sent to other processes."""

    source: Source
    shards: tuple[Shard, ...]
    """The shards that are not done yet."""
    out: Path
    """The folder of the results, absolute."""
    load: Callable[[str], Answerer]
    """Loads the model on a device, in the process that calls it."""
    device: str
    """``auto``, or the device of every process."""
    batch_size: int
    run: str = field(default_factory=lambda: uuid4().hex)
    """An id of this run. Another run counts the deaths of its processes anew."""

    @property
    def rows(self) -> int:
        """Rows of all shards."""
        return sum(shard.rows for shard in self.shards)

    def without_shards(self) -> Job:
        """Return the job for a process, which is sent its shards one by one."""
        return replace(self, shards=())


class ShardWorker:
    """Answers shards in this process.

    A shard depends on nothing but its rows and the job, so it does not matter which process answers
    it, or how often: a second time, it is there already.
    """

    def __init__(self, job: Job, device: str) -> None:
        self._job = job
        self._answerer = job.load(device)

    def run(self, shard: Shard) -> Finished:
        """Answer a shard and write it.

        Raises:
            StopsJob, CannotWrite: the job cannot go on.
            DeviceLost: this process cannot go on.
        """
        path = shard_path(self._job.out, shard.index)
        if path.exists():
            return read_shard(path)
        attempt = Attempt.begin(self._job.out, shard.index, self._job.run)
        try:
            finished = write_shard(path, self._attempted(shard, attempt))
        except (CannotWrite, StopsJob):
            attempt.done()  # nothing died
            raise
        attempt.done()
        return finished

    def _attempted(self, shard: Shard, attempt: Attempt) -> list[Result]:
        if attempt.is_hopeless:
            raise StopsJob(
                f"every process that began {_named(shard)} died before it answered one of them: "
                f"fewer --workers take less memory, and so does a smaller --shard-size, which "
                f"needs another OUT"
            )
        try:
            rows = self._job.source.read(shard)
        except OSError as error:
            raise StopsJob(
                f"the input cannot be read at row {shard.first}: {error.strerror or error}"
            ) from None
        if len(rows) != shard.rows:
            raise StopsJob(
                f"the input has changed since the run began: of {_named(shard)}, it has "
                f"{len(rows)} now"
            )
        done = _Results(rows)
        if attempt.one_by_one:
            for row in rows:
                if row.position in attempt.given_up:
                    done.fail(row, "every process that answered this row died")
                    continue
                attempt.at(row.position)
                self._answer([row], done)
            attempt.at(None)
        else:
            self._answer(rows, done)
        return done.in_order()

    def _answer(self, rows: Sequence[Row], done: _Results) -> None:
        ready: list[tuple[Row, Prepared]] = []
        for row in rows:
            if row.error is not None:
                done.fail(row, row.error)
                continue
            with done.timed(row):
                try:
                    ready.append((row, self._answerer.prepare(row)))
                except Exception as error:
                    done.fail(row, self._answerer.explain(error))
        for batch in in_batches(ready, self._job.batch_size):
            failure = self._answer_batch(batch, done)
            if failure is None:
                continue
            for row, prepared in batch:
                alone: Exception | None = failure
                if len(batch) > 1:
                    alone = self._answer_batch([(row, prepared)], done)
                if alone is not None:
                    done.fail(row, self._answerer.explain(alone))

    def _answer_batch(
        self, batch: Sequence[tuple[Row, Prepared]], done: _Results
    ) -> Exception | None:
        """Answer rows together. Returns what went wrong, if something did."""
        try:
            with done.timed(*(row for row, _ in batch)):
                answers = self._answerer.answer([prepared for _, prepared in batch])
            for (row, prepared), answer in zip(batch, answers, strict=True):
                done.succeed(row, prepared, answer)
            return None
        except Exception as error:
            failure = error.with_traceback(None)  # whose frames keep the batch in memory
        try:
            self._answerer.recover()
        except Exception as error:
            raise DeviceLost(str(error)) from error
        return failure


def _named(shard: Shard) -> str:
    return f"rows {shard.first} to {shard.first + shard.rows - 1} of the input"


def in_batches(
    ready: Sequence[tuple[Row, Prepared]], size: int
) -> Iterator[list[tuple[Row, Prepared]]]:
    """Yield batches of rows of one kind whose prompts are about equally long, longest first.

    The longest batch takes the most memory, so if it fits, all others do.
    """
    kinds: dict[Hashable, list[tuple[Row, Prepared]]] = {}
    for each in ready:
        kinds.setdefault(each[1].kind, []).append(each)
    for alike in kinds.values():
        alike.sort(key=lambda each: (-each[1].length, each[0].position))
        for start in range(0, len(alike), size):
            yield alike[start : start + size]


class _Results:
    """The results of the rows of a shard, in any order."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows
        self._seconds = {row.position: 0.0 for row in rows}
        self._results: dict[int, Result] = {}

    @contextmanager
    def timed(self, *rows: Row) -> Iterator[None]:
        """Add the seconds of a block to its rows, in equal parts."""
        started = time.perf_counter()
        try:
            yield
        finally:
            share = (time.perf_counter() - started) / len(rows)
            for row in rows:
                self._seconds[row.position] += share

    def fail(self, row: Row, error: str) -> None:
        """Give a row an error instead of an answer."""
        if len(error) > _LONGEST_ERROR:
            error = error[: _LONGEST_ERROR - 3] + "..."
        self._results[row.position] = Result(row.id, row.image, row.question, error=error)

    def succeed(self, row: Row, prepared: Prepared, answer: Answer) -> None:
        """Give a row its answer."""
        self._results[row.position] = Result(
            row.id,
            row.image,
            row.question,
            answer.text,
            prepared.category,
            prepared.tokens,
            answer.tokens_after,
        )

    def in_order(self) -> list[Result]:
        """Return one result for each row, in the order of the input."""
        return [
            replace(self._results[row.position], seconds=self._seconds[row.position])
            for row in self._rows
        ]
