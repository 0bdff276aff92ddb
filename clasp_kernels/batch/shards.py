"""The results: a Parquet file for each shard, which is there whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clasp_kernels._run_folder import write_whole

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("image", pa.string(), nullable=False),
        pa.field("question", pa.string()),
        pa.field("answer", pa.string()),
        pa.field("category", pa.string()),
        pa.field("tokens_before", pa.int32()),
        pa.field("tokens_after", pa.int32()),
        pa.field("seconds", pa.float64()),
        pa.field("error", pa.string()),
    ]
)


@dataclass(frozen=True)
class Result:
    """One row of the results: an answer, or an error."""

    id: str
    image: str
    question: str | None
    answer: str | None = None
    category: str | None = None
    tokens_before: int | None = None
    """Visual tokens of the image."""
    tokens_after: int | None = None
    """Visual tokens that are left after the last stage of pruning."""
    seconds: float | None = None
    """To prepare the row, and its share of the time of its batch."""
    error: str | None = None


@dataclass(frozen=True)
class Finished:
    """What became of the rows of one shard, or of several."""

    rows: int
    errors: int
    tokens_before: int
    tokens_after: int

    @classmethod
    def of(cls, table: pa.Table | pa.RecordBatch) -> Finished:
        """Sum up a table of results."""

        def total(name: str) -> int:
            return pc.sum(table.column(name)).as_py() or 0

        errors = table.num_rows - table.column("error").null_count
        return cls(table.num_rows, errors, total("tokens_before"), total("tokens_after"))

    def __add__(self, other: Finished) -> Finished:
        return Finished(
            self.rows + other.rows,
            self.errors + other.errors,
            self.tokens_before + other.tokens_before,
            self.tokens_after + other.tokens_after,
        )


class CannotWrite(Exception):
    """The results cannot be written. The message names the file and the reason."""


def shard_path(folder: Path, index: int) -> Path:
    """Return the file of a shard."""
    return folder / f"part-{index:06d}.parquet"


def write_shard(path: Path, results: Sequence[Result]) -> Finished:
    """Write the results of a shard, and wait until they are on the disk.

    What Parquet cannot hold, as a byte of a file name that is not UTF-8, is written as an escape,
    such as ``\\udcff``.

    Raises:
        CannotWrite: the disk is full, or the folder cannot be written.
    """
    rows = [{name: _as_utf8(value) for name, value in asdict(result).items()} for result in results]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    try:
        write_whole(path, buffer.getvalue().to_pybytes())
    except OSError as error:
        raise CannotWrite(f"{path} cannot be written: {error.strerror or error}") from None
    return Finished.of(table)


def _as_utf8(value: object) -> object:
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    return value


def read_shard(path: Path) -> Finished:
    """Sum up a shard that is there."""
    columns = ["error", "tokens_before", "tokens_after"]
    return Finished.of(pq.read_table(path, columns=columns, partitioning=None))
