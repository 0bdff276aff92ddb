"""Parquet files: a column of images, as paths or as bytes, and a column of questions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clasp_kernels.batch.source import BadInput, Columns, Row, Shard, cut

# Rows that are decoded at once. They may hold images.
_DECODED = 16


@dataclass(frozen=True)
class ParquetFiles:
    """Parquet files in the order of their names, as one table."""

    paths: tuple[Path, ...]
    counts: tuple[int, ...]
    """Rows of each file."""
    columns: Columns
    fingerprint: str

    @classmethod
    def open(cls, paths: list[Path], columns: Columns) -> ParquetFiles:
        """Read the footers alone: they have the columns, the number of rows and their places.

        The fingerprint has their bytes: their statistics may hold text that is not UTF-8.
        """
        digest, counts = sha256(), []
        for path in paths:
            try:
                with pq.ParquetFile(path) as file:
                    there = file.schema_arrow.names
                    counts.append(file.metadata.num_rows)
                footer = _footer(path)
            except UnicodeEncodeError:  # by Arrow
                raise BadInput(f"{path} must have a name that is valid UTF-8") from None
            except (pa.ArrowInvalid, OSError) as error:
                if isinstance(error, OSError) and error.errno:
                    raise
                raise BadInput(f"{path} is not a Parquet file that can be read: {error}") from None
            for name in columns.wanted:
                if name not in there:
                    raise BadInput(
                        f"{path} has no column {name!r}; its columns are {', '.join(there)}"
                    )
            digest.update(repr((path.name, path.stat().st_size, footer)).encode())
        absolute = tuple(path.absolute() for path in paths)
        return cls(absolute, tuple(counts), columns, digest.hexdigest())

    @property
    def rows(self) -> int:
        return sum(self.counts)

    def shards(self, size: int) -> list[Shard]:
        """Return the shards; their place is a list of (file, first row there, rows)."""
        begins = [sum(self.counts[:number]) for number in range(len(self.counts))]
        shards = []
        for index, (first, rows) in enumerate(cut(self.rows, size)):
            place = []
            for number, (begin, count) in enumerate(zip(begins, self.counts, strict=True)):
                start, stop = max(first, begin), min(first + rows, begin + count)
                if start < stop:
                    place.append((number, start - begin, stop - start))
            shards.append(Shard(index, first, rows, tuple(place)))
        return shards

    def read(self, shard: Shard) -> list[Row]:
        rows: list[Row] = []
        for number, first, count in shard.place:
            path = self.paths[number]
            begin = shard.first + len(rows)
            found: list[Row] = []
            try:
                for values in self._values(path, first, count):
                    where = f"{path.name}#{first + len(found)}"
                    position = begin + len(found)
                    found.append(
                        Row(position, where, None, None, values)
                        if isinstance(values, str)
                        else self.columns.row(position, where, values, path.parent)
                    )
            except (pa.ArrowInvalid, OSError) as error:  # damaged pages raise an OSError, too
                if isinstance(error, OSError) and error.errno:
                    raise
                found += [
                    Row(
                        begin + lost,
                        f"{path.name}#{first + lost}",
                        None,
                        None,
                        f"{path.name} cannot be read here: {error}",
                    )
                    for lost in range(len(found), count)
                ]
            rows += found
        return rows

    def _values(self, path: Path, first: int, count: int) -> Iterator[dict[str, Any] | str]:
        """Yield ``count`` rows of a file, or what is wrong with one.

        Only their row groups are read.
        """
        with pq.ParquetFile(path, memory_map=True) as file:
            groups, before, passed = [], 0, 0
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if before + rows <= first:
                    passed = before + rows
                elif before < first + count:
                    groups.append(group)
                before += rows
            skip = first - passed
            for batch in file.iter_batches(_DECODED, groups, columns=list(self.columns.wanted)):
                here = batch.slice(min(skip, batch.num_rows), count)
                skip -= min(skip, batch.num_rows)
                count -= here.num_rows
                yield from (_decoded(here, number) for number in range(here.num_rows))
                if not count:
                    return


def _decoded(batch: pa.RecordBatch, number: int) -> dict[str, Any] | str:
    """Return a row of a batch, or what is wrong with it."""
    values = {}
    for name in batch.schema.names:
        try:
            values[name] = batch.column(name)[number].as_py()
        except UnicodeDecodeError as error:
            return f"{name} must be valid UTF-8, got the byte {error.object[error.start]:#04x}"
    return values


def _footer(path: Path) -> bytes:
    """Return the metadata at the end of a Parquet file that has been opened once."""
    with path.open("rb") as file:
        file.seek(-8, os.SEEK_END)  # the length of the metadata, and four magic bytes
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, os.SEEK_END)
        return file.read(length)
