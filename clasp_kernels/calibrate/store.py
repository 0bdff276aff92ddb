"""Keep answers on disk, so that a calibration that was stopped goes on where it was.

A folder holds two files. ``manifest.json`` says what is calibrated; a store that is opened for
something else refuses. ``answers.jsonl`` has a line for each answer and is only appended to: a
process that is killed while it writes leaves half a line at most, which the next one removes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from clasp_kernels._run_folder import OtherRun, claim, lock

OtherCalibration = OtherRun

_MANIFEST, _ANSWERS = "manifest.json", "answers.jsonl"


class AnswerKey(NamedTuple):
    """The question, the budget and the cell that an answer belongs to."""

    question: str
    """``Question.key``."""
    budget: str
    cell: str
    """``Cell.name``."""


class AnswerStore:
    """The answers of one calibration. A context manager: one process at a time may have it open.

    Args:
        folder: made if it does not exist.
        manifest: what is calibrated, as JSON data.

    Raises:
        OtherCalibration: the folder has the answers of another calibration.
        ValueError: the files are damaged, not just cut off, or another process has them open.
        OSError: they cannot be read or written.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self.folder = folder
        self.answers: dict[AnswerKey, str] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._file = open(folder / _ANSWERS, "ab")  # noqa: SIM115
        try:
            lock(self._file, folder)
            self._claim(manifest)
            self._read()
        except BaseException:
            self._file.close()
            raise

    def _claim(self, manifest: Mapping[str, Any]) -> None:
        """Compare the manifest with the one that is there, or write it."""
        path = self.folder / _MANIFEST
        if not path.exists() and os.path.getsize(self.folder / _ANSWERS):
            raise ValueError(f"{self.folder} has answers but no {_MANIFEST}")
        claim(path, manifest)

    def _read(self) -> None:
        path = self.folder / _ANSWERS
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:whole].splitlines(), start=1):
            try:
                question, budget, cell, answer = json.loads(line)
            except (ValueError, TypeError):
                raise ValueError(f"{path} is damaged at line {number}") from None
            self.answers[AnswerKey(question, budget, cell)] = answer
        if whole < len(content):
            os.truncate(path, whole)

    def add(self, answers: Iterable[tuple[AnswerKey, str]]) -> None:
        """Write answers, and wait until they are on the disk."""
        rows = list(answers)
        lines = (json.dumps([*key, answer]) + "\n" for key, answer in rows)
        self._file.write("".join(lines).encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self.answers.update(rows)

    def __enter__(self) -> AnswerStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
