"""Remember on the disk in which shard, and on which row, a process died.

A row may end the process that answers it: the system kills what takes too much memory, and a
library may crash. The next attempt at its shard must not die of it again, whichever process of the
run makes it. So every attempt leaves a note when it begins. It removes the note when the shard is
written, and when the job stops for a reason that is not a death:

- a first and a second attempt answer in batches;
- a later one answers row by row, and notes each row before it begins;
- a row on which two of those died is given up.

A note has the id of its run, and a run takes no account of the notes of others. If the whole job
is killed, with the process that started it, no death is counted. The death of a worker alone is
counted whatever killed it. So a sound row is given up only if its worker is killed from outside
twice, in two attempts of one run, while that row is answered alone.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from clasp_kernels._run_folder import draft_of
from clasp_kernels.batch.shards import CannotWrite

_FOLDER = ".attempts"
_IN_BATCHES = 2
_DEATHS_OF_A_ROW = 2
_DEATHS_ELSEWHERE = 3


@dataclass
class Attempt:
    """An attempt at one shard, with the note that earlier ones of the run have left."""

    path: Path
    run: str
    """The id of the run."""
    begun: int = 0
    """Attempts that began, with this one."""
    row: int | None = None
    """Position of the row that is being answered alone."""
    died: dict[int, int] = field(default_factory=dict)
    """How often a process died while it answered a row alone."""
    died_elsewhere: int = 0
    """How often one died in an attempt row by row, but on none of them."""

    @classmethod
    def begin(cls, folder: Path, shard: int, run: str) -> Attempt:
        """Note that a shard is begun. Raises CannotWrite, as ``at`` does."""
        path = folder / _FOLDER / f"{shard:06d}.json"
        attempt = cls(path, run)
        try:
            noted_by, begun, row, died, elsewhere = json.loads(path.read_text())
            if noted_by == run:
                attempt = cls(path, run, int(begun), row, dict(died), int(elsewhere))
        except FileNotFoundError:
            pass
        except (ValueError, TypeError):  # cut off when the power went
            path.unlink(missing_ok=True)
        if attempt.one_by_one:  # the last one was, too
            if attempt.row is None:
                attempt.died_elsewhere += 1
            else:
                attempt.died[attempt.row] = attempt.died.get(attempt.row, 0) + 1
        attempt.begun += 1
        attempt.at(None)
        return attempt

    @property
    def one_by_one(self) -> bool:
        """Whether rows are to be answered alone."""
        return self.begun > _IN_BATCHES

    @property
    def given_up(self) -> frozenset[int]:
        """Positions of rows that are not tried again."""
        return frozenset(row for row, times in self.died.items() if times >= _DEATHS_OF_A_ROW)

    @property
    def is_hopeless(self) -> bool:
        """Whether processes die before they come to a row."""
        return self.died_elsewhere >= _DEATHS_ELSEWHERE

    def at(self, row: int | None) -> None:
        """Note that a row is being answered alone; None when no row is."""
        self.row = row
        noted = [self.run, self.begun, row, list(self.died.items()), self.died_elsewhere]
        draft = draft_of(self.path)
        try:
            self.path.parent.mkdir(exist_ok=True)
            draft.write_text(json.dumps(noted))
            os.replace(draft, self.path)
        except OSError as error:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            raise CannotWrite(f"{self.path} cannot be written: {error.strerror or error}") from None

    def done(self) -> None:
        """Remove the note: the shard is written, or the job stops, and the process lives."""
        with suppress(OSError):  # the disk is read-only now, and no other run heeds the note
            self.path.unlink(missing_ok=True)


def forget(folder: Path) -> None:
    """Remove the notes of all runs."""
    notes = folder / _FOLDER
    with suppress(OSError):  # none is there, or none can be removed: no other run heeds them
        for path in notes.iterdir():
            path.unlink(missing_ok=True)
        notes.rmdir()
