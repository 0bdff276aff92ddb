"""Show on stderr what a command is doing, so that stdout has only the result."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from clasp_kernels.batch import Finished

# Of a long job without a terminal, whose stderr may be a log.
_SECONDS_BETWEEN_LINES = 30.0
# A shard of a large model may take minutes, and its end is what is measured.
_SECONDS_ESTIMATED_FROM = 1800.0


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


@contextmanager
def rows_bar() -> Iterator[Callable[[Finished, int, int], None]]:
    """Show the rows that are done, rows a second, visual tokens saved, and the time left.

    The bar is told what became of the rows of this run, how many rows are done with those of
    earlier runs, and how many there are. Without a terminal, it prints a line now and then, for a
    log.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("Answering"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rows {task.fields[said]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    silent = not console.is_terminal
    started = said_at = time.monotonic()
    with Progress(
        *columns,
        console=console,
        transient=True,
        disable=silent,
        speed_estimate_period=_SECONDS_ESTIMATED_FROM,
    ) as progress:
        task = progress.add_task("Answering", total=None, said="")

        def show(finished: Finished, done: int, total: int) -> None:
            nonlocal said_at
            now = time.monotonic()
            if progress.tasks[0].total is None:
                progress.reset(task, total=total, completed=done, said="")
            rate = finished.rows / max(now - started, 1e-9)
            saved = finished.tokens_before - finished.tokens_after
            said = f"({rate:.1f}/s, {saved} tokens saved)" if finished.rows else ""
            progress.update(task, completed=done, said=said)
            if silent and finished.rows and now - said_at >= _SECONDS_BETWEEN_LINES:
                said_at = now
                left = (total - done) / rate
                print(f"{done}/{total} rows {said}, {left:.0f} s left", file=sys.stderr)

        yield show
