"""Inputs and answerers that need no model."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from clasp_kernels.batch import Answer, Job, Prepared, Row, StopsJob, open_source


class Echo:
    """Answers with the question. Words of a question make it fail, or end its process.

    "deadly once: PATH" ends it as long as there is no file at PATH, which it makes.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.batches: list[list[str]] = []

    def prepare(self, row: Row) -> Prepared:
        assert row.question is not None
        if "unreadable" in row.question:
            raise OSError("no picture")
        return Prepared(row.question, len(row.question), "wide" in row.question, "general", 10)

    def answer(self, batch: Sequence[Prepared]) -> list[Answer]:
        self.batches.append([each.inputs for each in batch])
        for each in batch:
            if "huge" in each.inputs or ("large" in each.inputs and len(batch) > 1):
                raise MemoryError(each.inputs)
            _, is_deadly, path = each.inputs.partition("deadly once: ")
            if is_deadly and not os.path.exists(path):
                Path(path).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return [Answer(each.inputs.upper(), 4) for each in batch]

    def explain(self, error: Exception) -> str:
        return f"{type(error).__name__}: {error}"

    def recover(self) -> None:
        pass


class Unloadable(Echo):
    """A model that cannot be loaded."""

    def __init__(self, device: str) -> None:
        raise StopsJob("there is no such model")


def questions_file(folder: Path, *questions: Any) -> Path:
    """Write a JSONL file with these questions about pictures that are not there."""
    path = folder / "questions.jsonl"
    rows = [
        {"image": f"{number}.png", "question": question}
        for number, question in enumerate(questions)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def job(
    folder: Path,
    *questions: Any,
    load: Callable[[str], Any] = Echo,
    shard_size: int = 4,
    batch_size: int = 3,
) -> Job:
    """Return a job about these questions, whose results go into a new folder."""
    path = questions_file(folder, *questions)
    source = open_source(str(path), question=None, question_column="question", image_column="image")
    out = folder / "out"
    out.mkdir(exist_ok=True)
    return Job(source, tuple(source.shards(shard_size)), out, load, "cpu", batch_size)


def one(answerer: Any) -> Callable[[str], Any]:
    """Return a function that loads this answerer."""
    return partial(_given, answerer)


def _given(answerer: Any, device: str) -> Any:
    return answerer
