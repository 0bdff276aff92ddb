"""Keep a folder of results for one run: write files whole, claim the folder, lock it."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from secrets import token_hex
from typing import IO, Any


class OtherRun(ValueError):
    """The folder holds the results of another run. The message names every difference."""


def draft_of(path: Path) -> Path:
    """Return a new name for the draft of a file, beside it: ``.NAME.HOST.PID.RANDOM.tmp``.

    Processes of several machines may write into one folder, where their ids may be equal.
    """
    return path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.{token_hex(4)}.tmp")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is on the disk whole, or not there at all, whenever the power goes.

    Raises:
        OSError: it cannot be written. The draft is removed.
    """
    draft = draft_of(path)
    try:
        with open(draft, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the name, too
    finally:
        os.close(folder)


def claim(path: Path, manifest: Mapping[str, Any]) -> None:
    """Compare the manifest of a run with the one at ``path``, or write it if there is none.

    Raises:
        OtherRun: the manifest there is another.
        ValueError: the file is damaged.
        OSError: it cannot be read or written.
    """
    manifest = json.loads(json.dumps(manifest))
    if not path.exists():
        write_whole(path, (json.dumps(manifest, indent=2) + "\n").encode())
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        names = [*before, *(name for name in manifest if name not in before)]
    except (ValueError, TypeError):
        raise ValueError(f"{path} is damaged") from None
    differences = [
        f"{name} was {_short(before, name)}, and is {_short(manifest, name)} now"
        for name in names
        if before.get(name) != manifest.get(name)
    ]
    if differences:
        raise OtherRun("; ".join(differences))


def lock(file: IO[bytes], folder: Path) -> None:
    """Lock a folder by an open file in it, until the file is closed or the process ends.

    Raises:
        ValueError: another process has locked it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(
            f"another process is writing to {folder}: wait for it, or stop it"
        ) from None


def _short(manifest: Mapping[str, Any], name: str) -> str:
    text = json.dumps(manifest[name]) if name in manifest else "not given"
    return text if len(text) <= 80 else text[:77] + "..."
