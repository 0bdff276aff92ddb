"""Check the files named on the command line before they are opened."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from clasp_kernels.cli.errors import CommandError, UsageError, in_one_line

if TYPE_CHECKING:
    from PIL import Image


def as_text(argument: str, value: str) -> str:
    """Decode the bytes of ``value`` as UTF-8, independent of the locale.

    >>> as_text("QUESTION", "caf\\udcc3\\udca9?")  # read in the C locale
    'café?'
    """
    try:
        value.encode()
        return value
    except UnicodeEncodeError:  # has surrogates: the locale could not decode some bytes
        pass
    try:
        return os.fsencode(value).decode()
    except UnicodeError:
        raise UsageError(f"{argument} is not valid UTF-8: {value!a}") from None


def check_readable(argument: str, name: str) -> Path:
    """Return the path if it is a regular file. Reading a pipe or device might never end."""
    if not name:
        raise UsageError(f"{argument} must name a file, got an empty argument")
    try:
        mode = os.stat(name).st_mode
    except (FileNotFoundError, NotADirectoryError):
        if "://" in name:
            raise UsageError(
                f"{argument} must be a file here, as URLs are not fetched: download {name} first"
            ) from None
        raise UsageError(f"{argument}: there is no file {name}") from None
    except OSError as error:
        raise CommandError(f"{argument}: {name} cannot be read: {in_one_line(error)}") from None
    if stat.S_ISDIR(mode):
        raise UsageError(f"{argument}: {name} is a folder, not a file")
    if not stat.S_ISREG(mode):
        raise UsageError(f"{argument}: {name} is a device or a pipe, not a file")
    return Path(name)


def check_writable(name: str, *, not_over: tuple[str | None, ...] = (), page: bool = False) -> Path:
    """Return the path of a picture, or raise a CommandError if it cannot be written.

    ``not_over`` are the files that the command reads, which must not be overwritten. With ``page``,
    the file is an HTML page.
    """
    from clasp_kernels.visualize import check_format

    if not name:
        raise UsageError("--out must name a file, got an empty argument")
    path = Path(name)
    try:
        (_check_page if page else check_format)(path)
        if path.is_dir():
            raise OSError("it is a folder")
        # The file if it exists, else the nearest existing folder above it.
        there = next(place for place in (path, *path.absolute().parents) if place.exists())
        if there != path and not there.is_dir():
            raise OSError(f"{there} is no folder")
        if there.is_fifo() or there.is_socket():
            raise OSError("it is a pipe or a socket")
        if not os.access(there, os.W_OK):
            raise OSError(f"no permission to write {there}")
        read = next((one for one in not_over if one and is_same_file(name, one)), None)
    except ImportError:
        raise
    except Exception as error:  # Pillow's formats raise errors of many types
        raise CommandError(f"--out {name} cannot be written: {in_one_line(error)}") from None
    if read:
        raise UsageError(f"--out {name} would overwrite {read}, which is read")
    return path


def _check_page(path: Path) -> None:
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError("the suffix of a page must be .html or .htm")


def is_same_file(name: str, other: str) -> bool:
    """Return whether both exist and are one file."""
    return os.path.exists(name) and os.path.exists(other) and os.path.samefile(name, other)


def save(picture: Image.Image, path: Path) -> None:
    """Write a picture, or raise a CommandError with the reason."""
    from clasp_kernels.visualize import save_picture

    try:
        save_picture(picture, path)
    except ImportError:
        raise
    except Exception as error:  # as above; the disk may also be full
        raise CommandError(f"--out {path} cannot be written: {in_one_line(error)}") from None


def save_page(text: str, path: Path) -> None:
    """Write an HTML page, or raise a CommandError with the reason."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CommandError(f"--out {path} cannot be written: {in_one_line(error)}") from None
