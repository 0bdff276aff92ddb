"""The folder of the results, which belongs to one run and to one process at a time."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow.dataset as ds

from clasp_kernels._run_folder import claim, lock
from clasp_kernels.batch.attempts import forget
from clasp_kernels.batch.shards import Finished, shard_path
from clasp_kernels.batch.source import Shard

# Readers of Parquet pass over names that begin with an underscore or a point.
_MANIFEST, _LOCK = "_manifest.json", ".lock"
_DRAFT = re.compile(rf"\.(part-\d{{6,}}\.parquet|{re.escape(_MANIFEST)})\..+\.tmp")


class OutputFolder:
    """The results of one run. A context manager: one process at a time may have it open.

    Args:
        folder: made if it does not exist.
        manifest: what the results depend on, as JSON data.

    Raises:
        OtherRun: the folder has the results of another run; the message names the differences.
        ValueError: it has results but no manifest, or another process has it open.
        OSError: it cannot be written.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self.folder = folder.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        self._file = open(folder / _LOCK, "ab")  # noqa: SIM115
        try:
            lock(self._file, folder)
            if not (folder / _MANIFEST).exists() and any(folder.glob("*.parquet")):
                raise ValueError(f"{folder} has Parquet files, but no {_MANIFEST}")
            claim(folder / _MANIFEST, manifest)
            self.tidy()
        except BaseException:
            self._file.close()
            raise

    def is_done(self, shard: Shard) -> bool:
        """Return whether a shard is written."""
        return shard_path(self.folder, shard.index).exists()

    def tidy(self) -> None:
        """Remove drafts that were never finished, and notes about processes that died."""
        with suppress(OSError):  # the disk is read-only or gone: the run's own error says so
            for path in self.folder.iterdir():
                if _DRAFT.fullmatch(path.name):
                    path.unlink(missing_ok=True)
        forget(self.folder)

    def summary(self) -> Finished:
        """Sum up all shards that are written."""
        files = sorted(str(path) for path in self.folder.glob("part-*.parquet"))
        found = Finished(0, 0, 0, 0)
        for batch in ds.dataset(files).to_batches(
            columns=["error", "tokens_before", "tokens_after"]
        ):
            found = found + Finished.of(batch)
        return found

    def __enter__(self) -> OutputFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
