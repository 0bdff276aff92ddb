"""A JSONL file: an object with an image's path and a question on each line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

from clasp_kernels.batch.source import BadInput, Columns, Row, Shard, cut

# Of so many lines, one must have the columns, else the file has others.
_LOOKED_AT = 100


@dataclass(frozen=True)
class JsonLines:
    """A JSONL file. Blank lines are skipped, and no row."""

    path: Path
    columns: Columns
    rows: int
    fingerprint: str

    @classmethod
    def open(cls, path: Path, columns: Columns) -> JsonLines:
        digest, rows = sha256(), 0
        missing: set[str] | None = None
        with path.open("rb") as file:
            for line in file:
                digest.update(line)
                if not line.strip():
                    continue
                rows += 1
                if missing != set() and rows <= _LOOKED_AT:
                    lacks = set(columns.wanted) - _fields(line)
                    missing = lacks if missing is None else missing & lacks
        if missing:
            raise BadInput(
                f"{path} has no field {sorted(missing)[0]!r} in its first {min(rows, _LOOKED_AT)} "
                f"lines"
            )
        return cls(path.absolute(), columns, rows, digest.hexdigest())

    def shards(self, size: int) -> list[Shard]:
        """Return the shards; their place is the byte at which the first line begins."""
        starts, number = [], 0
        with self.path.open("rb") as file:
            while line := file.readline():
                if line.strip():
                    if number % size == 0:
                        starts.append(file.tell() - len(line))
                    number += 1
        return [
            Shard(index, first, rows, starts[index])
            for index, (first, rows) in enumerate(cut(number, size))
        ]

    def read(self, shard: Shard) -> list[Row]:
        with self.path.open("rb") as file:
            file.seek(shard.place)
            lines = islice((line for line in file if line.strip()), shard.rows)
            return [self._row(shard.first + number, line) for number, line in enumerate(lines)]

    def _row(self, position: int, line: bytes) -> Row:
        try:
            values: Any = json.loads(line)
            if not isinstance(values, dict):
                raise ValueError(f"it must be an object, got {type(values).__name__}")
            row = self.columns.row(position, "", values, self.path.parent)
            row.id.encode()  # a surrogate, which JSON can hold and a file name cannot
            row.image.encode()
            (row.question or "").encode()
            return row
        except (ValueError, RecursionError) as error:
            shown = line.strip().decode(errors="replace")[:200]
            return Row(position, "", None, shown, f"the line is not valid JSON: {error}")


def _fields(line: bytes) -> set[str]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return set()
    return set(values) if isinstance(values, dict) else set()
