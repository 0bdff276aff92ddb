"""Errors that a user can act on, and how the command line shows them."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# This module must not import Typer or heavy packages: it reports errors before they are imported.
_PACKAGE = str(Path(__file__).parents[1])
# The extra that brings each package.
_EXTRAS = {"transformers": "cli", "PIL": "cli", "pyarrow": "batch", "ray": "ray"}


class CommandError(Exception):
    """The command cannot be carried out. Shown as a message without traceback, exit code 1."""

    exit_code = 1


class UsageError(CommandError):
    """The command line is invalid. Exit code 2, as for an unknown option."""

    exit_code = 2


def in_one_line(error: Exception) -> str:
    """Return an error's message on one line.

    >>> in_one_line(ValueError("two\\nlines")), in_one_line(KeyError())
    ('two lines', 'KeyError')
    >>> in_one_line(FileNotFoundError(2, "No such file or directory", "a/long/path"))
    'No such file or directory'
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror  # the caller's message names the path
    if isinstance(error, MemoryError):
        return "there is not enough memory for it"
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, and the second if the first ends with a colon.

    >>> first_line(ValueError("\\nno such device\\nDebug: ...")), first_line(KeyError())
    ('no such device', 'KeyError')
    >>> first_line(ValueError("Error in field 'x':\\n  must be a number"))
    "Error in field 'x': must be a number"
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1])


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error means out of memory, in Python, on a GPU or in torch on the CPU.

    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: ..."))
    True
    """
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


@contextmanager
def applying_clasp(name: str) -> Iterator[None]:
    """Turn the errors of ``apply_clasp``, for the model ``name``, into a CommandError."""
    try:
        yield
    # TypeError: unsupported model class. RuntimeError: unsupported transformers.
    except (TypeError, ValueError, RuntimeError) as error:
        raise CommandError(f"CLASP cannot be applied to {name}: {error}") from None


@contextmanager
def refusing_as(said: str) -> Iterator[None]:
    """Turn errors of libraries and checkpoint files into a CommandError that begins with ``said``.

    Errors raised by this package pass through, except ValueErrors, which it raises on purpose. Any
    other error of this package is a bug, so its traceback is shown.
    """
    try:
        yield
    except CommandError:
        raise
    # A checkpoint's template, processor, tokenizer and configs can raise errors of any type.
    except Exception as error:
        if is_out_of_memory(error):
            raise CommandError(f"{said}: out of memory ({first_line(error)})") from None
        raised_by = traceback.extract_tb(error.__traceback__)[-1].filename
        if raised_by.startswith(_PACKAGE) and not isinstance(error, ValueError):
            raise
        raise CommandError(f"{said}: {_named(error)}") from None


def _named(error: Exception) -> str:
    """Return the first line of a library's message, with the error type if that is needed."""
    line = first_line(error)
    if isinstance(error, (LookupError, TypeError, AttributeError)):
        return f"{type(error).__name__}: {line}"
    return line


@contextmanager
def reported_errors() -> Iterator[None]:
    """Show a CommandError, or a missing extra, as one message on stderr, and exit."""
    import typer

    exit_code = 1
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except CommandError as error:
        message, exit_code = str(error), error.exit_code
    except ImportError as error:
        missing = (error.name or "").split(".")[0]
        if missing not in _EXTRAS:
            raise
        message = str(error)  # the message of require_transformers has the fix
        if isinstance(error, ModuleNotFoundError):
            extra = _EXTRAS[missing]
            message = (
                f"{error.name} is not installed; this command needs the [{extra}] extra: "
                f'pip install "clasp-kernels[{extra}]"'
            )
    else:
        return
    report(message)
    raise typer.Exit(exit_code)


def report(message: str) -> None:
    """Print an error message to stderr, without markup and without wrapping."""
    from rich.console import Console

    console = Console(stderr=True, emoji=False)
    console.print("[bold red]Error:[/] ", end="")
    console.print(message, markup=False, highlight=False, soft_wrap=True)
