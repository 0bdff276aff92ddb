"""``clasp calibrate``: the options, checked before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from clasp_kernels.cli.errors import UsageError
from clasp_kernels.cli.files import is_same_file
from clasp_kernels.cli.options import count_or_fraction
from clasp_kernels.policy import STRATEGIES

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Settings:
    """The options of the command."""

    data: Path
    out: Path
    budgets: tuple[int | float, ...]
    stages: tuple[int, ...]
    rules: tuple[str, ...]
    strategies: tuple[str, ...] | None
    """None for all, or for none where they change nothing."""
    pivot_ratios: tuple[float, ...]
    scorer: str
    limit: int | None
    seed: int
    max_new_tokens: int
    batch_size: int

    @property
    def folder(self) -> Path:
        """Where answers, scores and maps go."""
        return self.out.with_suffix(".calibration")


def check_profile_path(name: str, *, not_over: Sequence[str | None]) -> Path:
    """Return the path of --out, if a profile and its folder can be written there."""
    if not name:
        raise UsageError("--out must name a file, got an empty argument")
    path = Path(name)
    if path.suffix.lower() != ".json":
        raise UsageError(f"--out must be a .json file, as profiles are, got {name}")
    if path.is_dir():
        raise UsageError(f"--out {name} is a folder, not a file")
    if any(read and is_same_file(name, read) for read in not_over):
        raise UsageError(f"--out {name} would overwrite a file that is read")
    return path


def parsed_budgets(text: str) -> tuple[int | float, ...]:
    """Return the budgets of a list with commas: counts, or fractions with a point.

    >>> parsed_budgets("0.33, 64")
    (0.33, 64)
    """
    budgets: list[int | float] = []
    for part in _parts("--budgets", text):
        budget = count_or_fraction(part)
        if not (budget >= 1 if isinstance(budget, int) else 0 < budget < 1):
            raise UsageError(
                f"--budgets must be numbers of tokens, such as 64, or fractions between 0 and 1, "
                f"such as 0.25, got {part!r}"
            )
        budgets.append(budget)
    return _each_once("--budgets", text, budgets)


def parsed_stages(text: str) -> tuple[int, ...]:
    """Return the layers of a list with commas.

    >>> parsed_stages("2, 8")
    (2, 8)
    """
    parts = _parts("--stages", text)
    layers = tuple(int(part) for part in parts if re.fullmatch(r"\d+", part, re.ASCII))
    if len(layers) < len(parts) or any(after <= before for before, after in pairwise(layers)):
        raise UsageError(
            f"--stages must be ascending numbers of decoder layers, such as 2,8, with 0 for before "
            f"the LLM, got {text!r}"
        )
    return layers


def parsed_ratios(text: str) -> tuple[float, ...]:
    """Return the pivot ratios of a list with commas.

    >>> parsed_ratios("0,0.5,1")
    (0.0, 0.5, 1.0)
    """
    ratios = []
    for part in _parts("--ratios", text):
        try:
            ratio = float(part)
        except ValueError:
            ratio = -1.0
        if not 0 <= ratio <= 1:
            raise UsageError(f"--ratios must be numbers from 0 to 1, got {part!r}")
        ratios.append(ratio)
    return _each_once("--ratios", text, ratios)


def parsed_strategies(text: str) -> tuple[str, ...]:
    """Return the strategies of a list with commas.

    >>> parsed_strategies("A,E")
    ('A', 'E')
    """
    letters = _each_once("--strategies", text, _parts("--strategies", text))
    for letter in letters:
        if letter not in STRATEGIES:
            raise UsageError(
                f"--strategies must be letters of {', '.join(STRATEGIES)}, got {letter!r}"
            )
    return letters


def checked_scorer(name: str) -> str:
    """Return the name of a scorer."""
    from clasp_kernels.calibrate import SCORERS

    if name not in SCORERS:
        raise UsageError(f"--score must be one of {', '.join(SCORERS)}, got {name!r}")
    return name


def _parts(option: str, text: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in text.split(","))
    if not all(parts):
        raise UsageError(f"{option} must be a list with one comma between entries, got {text!r}")
    return parts


def _each_once(option: str, text: str, values: Sequence[_Value]) -> tuple[_Value, ...]:
    if len(set(values)) < len(values):
        raise UsageError(f"{option} must name each entry once, got {text!r}")
    return tuple(values)
