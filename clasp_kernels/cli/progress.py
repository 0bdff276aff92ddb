"""Show on stderr what a command is doing, so that stdout has only the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


@contextmanager
def spinner(first_step: str) -> Iterator[Callable[[str], None]]:
    """Show a spinner beside the current step. Silent without a terminal."""
    console = Console(stderr=True)
    name = "dots" if console.encoding.startswith("utf") else "line"
    with console.status(first_step + " ...", spinner=name) as status:
        yield lambda step: status.update(step + " ...")


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar, which is told how much is done, of how much. Silent without a terminal.

    The time left counts from the first call: what was done before it took no time.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    silent = not console.is_terminal  # it would still print a line break
    with Progress(*columns, console=console, transient=True, disable=silent) as progress:
        task = progress.add_task(what, total=None)

        def show(done: int, total: int) -> None:
            if progress.tasks[0].total is None:
                progress.reset(task, total=total, completed=done)
            progress.update(task, completed=done)

        yield show
