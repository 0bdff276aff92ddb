"""The costs of a server's stages, fitted to prefills that `bench_prefill.py` has measured.

Each cost is zero or more, and relative errors weigh: a fit by plain squares is ruled by the largest
batch, and takes pruned prompts of a small one for faster than they are.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from numpy.typing import NDArray

WORST_RESIDUAL = 0.1
"""A fit that is further than this from any measured time is refused."""


@dataclass(frozen=True)
class Costs:
    """Seconds and bytes of the stages of one model on one machine."""

    prompt: float
    """Seconds of a step that prefills, whatever it prefills."""
    encode: float
    """Further seconds for each picture that is encoded, and its tokens selected."""
    prefill: float
    """Further seconds for each token that is prefilled."""
    step: float
    """Seconds of a step that gives tokens to running requests, whatever their number."""
    sequence: float
    """Further seconds for each running request."""
    cached: float
    """Further seconds for each token in the cache of a running request."""
    token_bytes: float
    """Bytes of keys and values of one token."""


@dataclass(frozen=True)
class Residual:
    """How far the fit is from one measured row, as fractions of what was measured."""

    batch: int
    columns: int
    first_token: float
    per_token: float
    spread: float
    """The interquartile range of the measured times to the first token, as a fraction of them."""

    @property
    def worst(self) -> float:
        return max(abs(self.first_token), abs(self.per_token))


def fit(rows: Sequence[dict[str, Any]]) -> tuple[Costs, list[Residual]]:
    """Fit the costs to measured prefills, unpruned and pruned before the decoder.

    >>> rows = [
    ...     {"method": "input", "ideal": False, "batch": b, "columns": [[0, c]],
    ...      "first_token": 0.2 + b * (0.5 + 0.01 * c), "first_token_iqr": 0.01,
    ...      "per_token": 0.1 + b * (0.02 + 0.001 * c), "kv_bytes": 8 * b * c}
    ...     for b, c in ((1, 100), (1, 300), (4, 100), (4, 300))
    ... ]
    >>> costs, residuals = fit(rows)
    >>> round(costs.prompt, 6), round(costs.encode, 6), round(costs.cached, 6), costs.token_bytes
    (0.2, 0.5, 0.001, 8.0)
    """
    used = [row for row in rows if row["method"] in ("unpruned", "input") and not row["ideal"]]
    batch = np.array([row["batch"] for row in used], dtype=float)
    columns = np.array([row["columns"][0][1] for row in used], dtype=float)
    design = np.stack([np.ones(len(used)), batch, batch * columns], 1)
    if len(used) < 4 or np.linalg.matrix_rank(design) < 3:
        raise ValueError(
            "rows must have unpruned and input-pruned prompts of at least two lengths and two "
            f"batch sizes, got {len(used)} such rows"
        )
    first, first_errors = _fitted(design, np.array([row["first_token"] for row in used]))
    later, later_errors = _fitted(design, np.array([row["per_token"] for row in used]))
    residuals = [
        Residual(
            row["batch"],
            row["columns"][0][1],
            float(one),
            float(other),
            row["first_token_iqr"] / row["first_token"],
        )
        for row, one, other in zip(used, first_errors, later_errors, strict=True)
    ]
    worst = max(residuals, key=lambda residual: residual.worst)
    if worst.worst > WORST_RESIDUAL:
        raise ValueError(
            f"rows must follow a cost for each step, picture and token within "
            f"{WORST_RESIDUAL:.0%}, got {worst.worst:.0%} at batch {worst.batch} and "
            f"{worst.columns} columns: measure on a quiet machine"
        )
    token_bytes = mean(
        row["kv_bytes"] / count for row, count in zip(used, batch * columns, strict=True)
    )
    return Costs(*map(float, (*first, *later, token_bytes))), residuals


def _fitted(
    design: NDArray[np.float64], times: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Non-negative least squares of relative errors: weights, and the errors.

    The best non-negative weights are the plain best ones of those columns that they do not leave at
    zero. Of three columns there are seven choices, and each is tried.
    """
    relative = design / times[:, None]
    found = []
    width = design.shape[1]
    for count in range(1, width + 1):
        for chosen in itertools.combinations(range(width), count):
            weights = np.zeros(width)
            weights[list(chosen)] = np.linalg.lstsq(
                relative[:, chosen], np.ones(len(times)), rcond=None
            )[0]
            errors = relative @ weights - 1
            if (weights >= 0).all():
                found.append((float(errors @ errors), weights, errors))
    _, weights, errors = min(found, key=lambda one: one[0])
    return weights, errors


@dataclass(frozen=True)
class Measured:
    """The costs of a file of measurements, how well they fit, and where it was measured."""

    costs: Costs
    residuals: list[Residual]
    environment: dict[str, Any]


def read(path: Path) -> Measured:
    """Fit the costs to the rows that `bench_prefill.py` wrote into a file."""
    try:
        report = json.loads(path.read_text())
        costs, residuals = fit(report["rows"])
        where = {name: report["environment"][name] for name in ("processor", "shape_name", "dtype")}
    except OSError as error:
        raise ValueError(f"must be a file, got {path}: {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"must be a file that bench_prefill.py wrote, got {path}: {type(error).__name__} "
            f"{error}"
        ) from None
    return Measured(costs, residuals, where)
