"""A folder of images, one row each, with one question for all."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from clasp_kernels.batch.source import Row, Shard, cut, files_below


@dataclass(frozen=True)
class ImageFolder:
    """The images below a folder, in the order of their names."""

    folder: Path
    files: tuple[str, ...]
    question: str
    fingerprint: str

    @staticmethod
    def names(folder: Path) -> list[str]:
        """Return the files whose suffix is that of an image, relative to the folder, sorted.

        Hidden files and folders are left out. Raises an OSError if a folder cannot be read.
        """
        from PIL import Image

        suffixes = set(Image.registered_extensions())
        return sorted(
            path.relative_to(folder).as_posix()
            for path in files_below(folder, hidden=".")
            if path.suffix.lower() in suffixes
        )

    @classmethod
    def open(cls, folder: Path, files: list[str], question: str) -> ImageFolder:
        folder = folder.absolute()
        sizes = [[name, _size(folder / name)] for name in files]
        digest = sha256(json.dumps(sizes).encode()).hexdigest()
        return cls(folder, tuple(files), question, digest)

    @property
    def rows(self) -> int:
        return len(self.files)

    def shards(self, size: int) -> list[Shard]:
        return [
            Shard(index, first, rows, self.files[first : first + rows])
            for index, (first, rows) in enumerate(cut(self.rows, size))
        ]

    def read(self, shard: Shard) -> list[Row]:
        os.stat(self.folder)  # a folder that is gone is not a folder of bad images
        return [
            Row(shard.first + number, name, self.folder / name, self.question)
            for number, name in enumerate(shard.place)
        ]

    def __getstate__(self) -> dict[str, object]:
        # Shards carry the names: the list, which may be long, does not go to every process.
        return {**self.__dict__, "files": ()}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # a link to nothing, for example: that is an error of its row
        return -1
