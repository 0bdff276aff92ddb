"""``clasp calibrate``: the options, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    rules: tuple[str, ...]
    strategies: tuple[str, ...]
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
