"""The process's border to its terminal: sizes that are none, encodings, a stdout that is lost."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from clasp_kernels.cli.errors import CommandError

if TYPE_CHECKING:
    from rich.console import Console

# Below the least, Rich prints a table without its contents; the most keeps its rules finite.
_WIDTHS = range(20, 1001)
_HEIGHTS = range(1, 10001)


class ResultOutput(io.TextIOWrapper):
    """stdout, which cannot lose a result unnoticed: what it cannot write is a CommandError.

    A reader that has gone, as ``head`` does, stays a BrokenPipeError: nobody wants the rest.
    """

    escaped = False
    """Whether a character was shown as an escape."""

    def write(self, text: str, /) -> int:
        self.escaped = self.escaped or not _fits(text, self.encoding)
        with self._refusing():
            return super().write(text)

    def flush(self) -> None:
        with self._refusing():
            super().flush()

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # What is still in the buffer must not be tried again when the interpreter ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            if isinstance(error, BrokenPipeError):
                raise
            raise CommandError(_lost(error.strerror)) from None


class Messages(io.TextIOWrapper):
    """stderr: where it is full or gone, nobody can be told, but the result may still arrive."""

    def write(self, text: str, /) -> int:
        with suppress(OSError):
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


def _fits(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def shown(text: str, *, otherwise: str) -> str:
    """``text``, or ``otherwise`` where stdout's encoding does not have it."""
    return text if _fits(text, sys.stdout.encoding or "utf-8") else otherwise  # None: in memory


def _lost(reason: str | None) -> str:
    return f"the result cannot be written to stdout: {reason}"


@contextmanager
def prepared_terminal() -> Iterator[None]:
    """Make stdout and stderr fit to print anything on, and report a result that stdout refused."""
    _forget_impossible_sizes()
    if sys.stderr is None:  # closed by whoever started us, who wants no messages
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:
        sys.exit("Error: " + _lost("it is closed"))
    before = sys.stdout, sys.stderr
    # Both show as an escape what the encoding does not have, as Python lets only stderr do.
    output = ResultOutput(sys.stdout.buffer, sys.stdout.encoding, "backslashreplace")
    messages = Messages(
        sys.stderr.buffer, sys.stderr.encoding, "backslashreplace", line_buffering=True
    )
    sys.stdout, sys.stderr = output, messages
    exit_code: int | str | None = 0
    try:
        try:
            yield
        except SystemExit as request:
            exit_code = request.code
        output.flush()
        if output.escaped:
            messages.write(
                f"Note: stdout is {output.encoding}, and what that cannot show is printed as "
                f"escapes; PYTHONIOENCODING=utf-8 changes it.\n"
            )
    except (CommandError, BrokenPipeError) as error:
        if isinstance(error, CommandError):
            messages.write(f"Error: {error}\n")
        exit_code = 1
    finally:
        sys.stdout, sys.stderr = before
        for stream in (output, messages):
            stream.detach()  # or it would close what it writes to
    sys.exit(exit_code)


def _forget_impossible_sizes() -> None:
    """Unset what Rich and Typer would believe or fail at, e.g. the COLUMNS=0 of a shell in a job.

    They then ask the terminal, and take 80 columns where there is none.
    """
    for name, possible in (
        ("COLUMNS", _WIDTHS),
        ("TERMINAL_WIDTH", _WIDTHS),
        ("LINES", _HEIGHTS),
    ):
        value = os.environ.get(name)
        if value is not None and not _is_size(value, possible):
            del os.environ[name]


def _is_size(value: str, possible: range) -> bool:
    try:
        return int(value) in possible
    except ValueError:
        return False


def result_console() -> Console:
    """Where a result is printed. Nothing in it is markup or an emoji code unless it says so."""
    from rich.console import Console

    return Console(emoji=False)
