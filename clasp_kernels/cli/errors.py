"""Failures a person can act on, and how the command line shows them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console


class CommandError(Exception):
    """What was asked for cannot be done: a message and exit code 1, no traceback."""

    exit_code = 1


class UsageError(CommandError):
    """The command line itself is wrong: exit code 2, as for an unknown option."""

    exit_code = 2


def in_one_line(error: Exception) -> str:
    """
    >>> in_one_line(ValueError("two\\nlines")), in_one_line(KeyError())
    ('two lines', 'KeyError')
    """
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def reported_errors() -> Iterator[None]:
    """Show a CommandError, or a missing extra, as one message on stderr, and exit."""
    exit_code = 1
    try:
        yield
    except CommandError as error:
        message, exit_code = str(error), error.exit_code
    except ImportError as error:
        if error.name is None or error.name.split(".")[0] not in ("transformers", "PIL"):
            raise
        message = str(error)  # require_transformers says what is wrong and how to mend it
        if isinstance(error, ModuleNotFoundError):
            message = (
                f"{error.name} is not installed; this command needs the [cli] extra: "
                f'pip install "clasp-kernels[cli]"'
            )
    else:
        return
    console = Console(stderr=True)
    console.print("[bold red]Error:[/] ", end="")
    console.print(message, markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(exit_code)
