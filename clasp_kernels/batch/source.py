"""The input: rows with an image and a question, cut into shards before anything runs.

Row n of the input is row n of the results, whoever answers it and when. Its id is its position and
a hash of what the input says there: the image's path as it is written, or the image's bytes, and
the question.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Row:
    """One row of the input."""

    position: int
    """Rows before it in the input."""
    image: str
    """The image as the input names it. For bytes in a Parquet file, the file and the row there."""
    content: Path | bytes | None
    """The image; None if the row has none."""
    question: str | None
    error: str | None = None
    """Why the row cannot be asked, if that is known from the input alone."""

    @property
    def id(self) -> str:
        """The position, and 12 hexadecimal digits that depend on the content of the row.

        >>> Row(7, "a.png", Path("/data/a.png"), "What is it?").id
        '000000007-73cc03f316bc'
        """
        image = sha256(self.content).hexdigest() if isinstance(self.content, bytes) else self.image
        digest = sha256(json.dumps([image, self.question]).encode()).hexdigest()
        return f"{self.position:09d}-{digest[:12]}"


@dataclass(frozen=True)
class Shard:
    """Neighbouring rows of the input, which are answered and written together."""

    index: int
    first: int
    """Position of the first row."""
    rows: int
    place: Any
    """Where its rows are, in the words of the source's reader."""


class Source(Protocol):
    """An input. It can be sent to other processes, which read its files themselves."""

    @property
    def rows(self) -> int:
        """Number of rows."""

    @property
    def fingerprint(self) -> str:
        """A hash of the input, which another input does not have."""

    def shards(self, size: int) -> list[Shard]:
        """Return the shards, of ``size`` rows each; the last may have fewer."""

    def read(self, shard: Shard) -> list[Row]:
        """Read the rows of a shard. What is wrong with a row is in its ``error``.

        Raises:
            OSError: the input cannot be read.
        """


class BadInput(ValueError):
    """The input cannot be used. The message says why, and names the input."""


def open_source(
    path: str, *, question: str | None, question_column: str, image_column: str
) -> Source:
    """Open the input of a run: a JSONL file, a Parquet file or a folder of either kind.

    Args:
        path: a ``.jsonl`` or ``.parquet`` file, or a folder of Parquet files or images.
        question: the question about every image, or None if the input has a column of them.
        question_column, image_column: names of the columns.

    Raises:
        BadInput: it is none of these, has no rows, or lacks a column.
        OSError: it cannot be read.
    """
    from clasp_kernels.batch.images import ImageFolder
    from clasp_kernels.batch.jsonl import JsonLines
    from clasp_kernels.batch.parquet import ParquetFiles

    given = Path(path)
    columns = Columns(question, question_column, image_column)
    source: Source
    if given.is_dir():
        tables = [path for path in files_below(given, hidden="._") if path.suffix == ".parquet"]
        pictures = ImageFolder.names(given)
        if tables and pictures:
            raise BadInput(
                f"{path} must be a folder of Parquet files or of images, but it has both: "
                f"{tables[0].relative_to(given)} and {pictures[0]}"
            )
        if tables:
            source = ParquetFiles.open(sorted(tables), columns)
        elif question is None:
            raise BadInput(f"{path} is a folder of images, which has no questions: give --question")
        else:
            source = ImageFolder.open(given, pictures, question)
    elif given.suffix.lower() in (".jsonl", ".ndjson"):
        source = JsonLines.open(given, columns)
    elif given.suffix.lower() in (".parquet", ".pq"):
        source = ParquetFiles.open([given], columns)
    else:
        raise BadInput(
            f"{path} must be a .parquet file, a .jsonl file, or a folder of Parquet files or images"
        )
    if not source.rows:
        raise BadInput(f"{path} has no rows")
    return source


@dataclass(frozen=True)
class Columns:
    """Where a table has the question and the image of a row."""

    question: str | None
    """The question about every image, or None to take ``question_column``."""
    question_column: str
    image_column: str

    @property
    def wanted(self) -> tuple[str, ...]:
        """The names of the columns that are read."""
        return (self.image_column, *(() if self.question is not None else (self.question_column,)))

    def row(self, position: int, where: str, values: dict[str, Any], folder: Path) -> Row:
        """Return a row of a table. Paths start at ``folder``; ``where`` names an image in bytes."""
        asked = self.question if self.question is not None else values.get(self.question_column)
        image = values.get(self.image_column)
        error = None
        if not isinstance(asked, str):
            error = f"{self.question_column} must be a text, got {_short(asked)}"
            asked = None
        elif not asked.strip():
            error = f"{'--question' if self.question else self.question_column} is empty"
        if isinstance(image, dict):  # as the library datasets writes images
            image = image.get("bytes") or image.get("path")
        if isinstance(image, bytes):
            return Row(position, where, image, asked, error)
        if not isinstance(image, str) or not image or "\0" in image:
            error = f"{self.image_column} must be a path or bytes, got {_short(image)}"
            return Row(position, image if isinstance(image, str) else "", None, asked, error)
        return Row(position, image, folder / image, asked, error)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def files_below(folder: Path, *, hidden: str) -> Iterator[Path]:
    """Yield the files in a folder and its subfolders, in any order.

    Args:
        hidden: names that begin with one of these characters are passed over.

    Raises:
        OSError: a folder cannot be read. The message names it.
    """

    def refuse(error: OSError) -> None:
        raise OSError(f"{error.filename}: {error.strerror}") from None

    for root, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if name[0] not in hidden]
        yield from (Path(root, name) for name in files if name[0] not in hidden)


def cut(rows: int, size: int) -> list[tuple[int, int]]:
    """Return (first row, number of rows) of each shard.

    >>> cut(5, 2)
    [(0, 2), (2, 2), (4, 1)]
    """
    return [(first, min(size, rows - first)) for first in range(0, rows, size)]
