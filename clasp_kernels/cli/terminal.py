"""Terminal handling: invalid sizes, encodings, and a stdout that cannot be written."""

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

# Below 20 columns, Rich prints tables without their contents. The upper bounds limit the length of
# rules.
_WIDTHS = range(20, 1001)
_HEIGHTS = range(1, 10001)


class ResultOutput(io.TextIOWrapper):
    """stdout that raises a CommandError if it cannot be written, so that no result is lost.

    BrokenPipeError passes through: the reader (such as ``head``) does not want the rest.
    """

    escaped = False
    """Whether a character was written as an escape."""

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
            # Redirect to devnull, so that the interpreter's flush at exit does not fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            if isinstance(error, BrokenPipeError):
                raise
            raise CommandError(_lost(error.strerror)) from None


class Messages(io.TextIOWrapper):
    """stderr that ignores write errors, because the result on stdout may still arrive."""

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
    """Return ``text``, or ``otherwise`` if stdout's encoding cannot represent it."""
    # The encoding of an in-memory stdout is None.
    return text if _fits(text, sys.stdout.encoding or "utf-8") else otherwise


def _lost(reason: str | None) -> str:
    return f"the result cannot be written to stdout: {reason}"


@contextmanager
def prepared_terminal() -> Iterator[None]:
    """Let stdout and stderr print any text, and report a result that could not be written."""
    _forget_impossible_sizes()
    if sys.stderr is None:  # the parent process has closed it
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:
        sys.exit("Error: " + _lost("it is closed"))
    before = sys.stdout, sys.stderr
    # Both escape characters that the encoding does not have; by default only stderr does.
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
            stream.detach()  # otherwise the wrapper would close the underlying buffer
    sys.exit(exit_code)


def _forget_impossible_sizes() -> None:
    """Unset invalid terminal sizes in the environment, such as COLUMNS=0 from a shell in a job.

    Rich and Typer would use them or fail. Without them they ask the terminal, and use 80 columns if
    there is none.
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
    """Return the console for results. Emoji codes in the text are not replaced."""
    from rich.console import Console

    return Console(emoji=False)
