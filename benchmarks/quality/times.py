"""How long selecting takes: all rows in turn, many times, apart from the answers.

The machine must have nothing else to do. `times.json` holds what was measured.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
from tqdm import tqdm

from quality.rows import RANDOM_SEEDS, Row, random_name

SEEDS = [random_name(seed) for seed in RANDOM_SEEDS]


def interleaved(
    rows: Sequence[Row], rounds: int, seconds: Callable[[Row, int], float]
) -> dict[str, dict[str, list[float]]]:
    """Time every row at every budget once a round, in another order each round.

    Noise that lasts for a while then meets all rows alike. The seeds of random tokens are one row.

    Args:
        rows: those that choose tokens.
        rounds: how often each is timed.
        seconds: returns the seconds of a row at a budget. It has to warm up before it measures.

    Returns:
        The median and the quartiles in microseconds, by row and budget.
    """
    turns = [(row, budget) for row in rows for budget in row.budgets]
    measured: dict[str, dict[int, list[float]]] = {}
    for row, budget in turns:
        measured.setdefault(_name(row), {})[budget] = []
    for number in tqdm(range(rounds), desc="rounds"):
        random.Random(number).shuffle(turns)
        for row, budget in turns:
            measured[_name(row)][budget].append(1e6 * seconds(row, budget))
    return {
        name: {
            str(budget): [round(float(each), 1) for each in np.quantile(times, (0.5, 0.25, 0.75))]
            for budget, times in by_budget.items()
        }
        for name, by_budget in measured.items()
    }


def _name(row: Row) -> str:
    return "random" if row.name in SEEDS else row.name
