"""``clasp batch``: the options, checked before anything is loaded."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from clasp_kernels.cli.errors import CommandError, UsageError, in_one_line
from clasp_kernels.cli.files import is_same_file
from clasp_kernels.cli.options import count_or_fraction
from clasp_kernels.policy import Profile, Schedule

#: Where each engine is. Integrations are imported by name, and only when they are asked for.
ENGINES = {"local": "clasp_kernels.batch.local", "ray": "clasp_kernels.integrations.ray"}
DEFAULT_BUDGET = 0.25


@dataclass(frozen=True)
class ModelSettings:
    """What the answers depend on, beside the rows."""

    model: str | None
    profile: Profile | None
    rule: str | None
    budget: int | float | None
    schedule: Schedule | None
    max_new_tokens: int
    revision: str | None = None
    """The commit of a model on the hub. None: that of a folder, or the newest."""


def checked_engine(name: str) -> str:
    """Return the name of an engine."""
    if name not in ENGINES:
        raise UsageError(f"--engine must be {' or '.join(ENGINES)}, got {name!r}")
    return name


def parsed_budget(text: str) -> int | float:
    """Return a budget: a count, or a fraction with a point.

    >>> parsed_budget("0.25"), parsed_budget("64"), parsed_budget("1.0")
    (0.25, 64, 1.0)
    """
    budget = count_or_fraction(text)
    if not (budget >= 1 if isinstance(budget, int) else 0 < budget <= 1):
        raise UsageError(
            f"--budget must be a number of tokens, such as 64, or a fraction up to 1.0, such as "
            f"0.25, got {text!r}"
        )
    return budget


def parsed_workers(text: str | None, engine: str) -> tuple[int, int] | None:
    """Return the least and the largest number of processes, or None for the engine's default.

    >>> parsed_workers("4", "local"), parsed_workers("2:8", "ray")
    ((4, 4), (2, 8))
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)(?::(\d+))?", text)
    least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= least <= most:
        raise UsageError(
            f"--workers must be a number of processes from 1, or with --engine ray two of them, "
            f"such as 2:8, got {text!r}"
        )
    if least < most and engine != "ray":
        raise UsageError(
            f"--workers must be one number with --engine {engine}, which does not change it while "
            f"it runs, got {text!r}"
        )
    return least, most


def absolute_model(model: str | None) -> str | None:
    """Return the path of a model's folder as other processes find it; ids of the hub stay."""
    return os.path.abspath(model) if model and os.path.isdir(model) else model


def check_folder(name: str, read: str) -> Path:
    """Return the path of OUT, if it is a folder that can be written, or can be made one."""
    if not name:
        raise UsageError("OUT must name a folder, got an empty argument")
    path = Path(name)
    if path.is_dir() and is_same_file(name, read):
        raise UsageError(f"OUT must be another folder than IN, got {name} for both")
    if os.path.isdir(read) and path.resolve().is_relative_to(Path(read).resolve()):
        raise UsageError(
            f"OUT must be outside of the folder IN, whose files are the input, got {name}, which "
            f"is in {read}"
        )
    try:
        there = next(place for place in (path, *path.absolute().parents) if place.exists())
        if not there.is_dir():
            raise OSError(f"{there} is no folder")
        if not os.access(there, os.W_OK | os.X_OK):
            raise OSError(f"no permission to write {there}")
    except OSError as error:
        raise CommandError(f"OUT: {name} cannot be written: {in_one_line(error)}") from None
    return path
