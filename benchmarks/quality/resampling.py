"""Retained accuracy, and its 95 % intervals by a bootstrap over questions.

All rows answer the same questions, so one resample of the questions serves all rows: differences of
rows are paired. Questions are resampled within each cell, because the plan sets the cells' sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from words import CATEGORIES

from quality.names import ALL, NUM_TOKENS
from quality.questions import Label

DRAWS = 2000
CONFIDENCE = 0.95
COUNTS_FROM = 0.20  # what a cell's accuracy must be above the best guess without the picture

Key = tuple[str, int]
"""A row's name and a budget."""
Floats = NDArray[np.float64]
Where = Callable[[Label], bool]


def anywhere(label: Label) -> bool:
    return True


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Floats) -> Estimate:
        """Take the first sample for the value, and percentiles of the others for the interval."""
        ends = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
        low, high = np.quantile(samples[1:], ends)
        return cls(float(samples[0]), float(low), float(high))

    def times(self, factor: float) -> Estimate:
        return Estimate(factor * self.value, factor * self.low, factor * self.high)


def simultaneous(samples: Sequence[Floats]) -> list[Estimate]:
    """Return intervals that all hold at once with 95 % confidence, one for each [1 + draws].

    Each reaches the same number of standard errors to both sides of its value: the number that the
    largest deviation of a resample, over all of ``samples``, exceeds in 5 % of the resamples.
    """
    every = np.stack(samples)
    values, drawn = every[:, :1], every[:, 1:]
    errors = drawn.std(1, keepdims=True)
    deviations = np.abs(drawn - values)
    scaled = np.divide(deviations, errors, out=np.zeros_like(drawn), where=errors > 0)
    reach = np.quantile(scaled.max(0), CONFIDENCE) * errors
    ends = np.concatenate([values, values - reach, values + reach], axis=1)
    return [Estimate(*map(float, each)) for each in ends]


def accuracy_by_cell(labels: Sequence[Label], correct: Floats) -> dict[str, float]:
    """Return the share of right answers in each cell. ``correct`` is [questions]."""
    cells = np.array([label.cell for label in labels])
    return {
        cell: float(correct[cells == cell].mean())
        for cell in dict.fromkeys(label.cell for label in labels)
    }


def counting_cells(labels: Sequence[Label], seeing: Floats, guesses: Sequence[Floats]) -> list[str]:
    """Return the cells in which seeing beats the best of the guesses by at least 20 points."""
    guessed = [accuracy_by_cell(labels, guess) for guess in guesses]
    return [
        cell
        for cell, accuracy in accuracy_by_cell(labels, seeing).items()
        # Shares of equally many questions; the tolerance is for their rounding.
        if accuracy - max(each[cell] for each in guessed) >= COUNTS_FROM - 1e-9
    ]


class Resampled:
    """The numbers of right answers in all resamples, of the cells that count.

    Args:
        labels: of each question.
        correct: for each row and budget [questions] in 0..1, the share of its seeds or models that
            are right. Must have the row of all tokens.
        cells: the cells that count. The questions of others are left out.
    """

    def __init__(
        self,
        labels: Sequence[Label],
        correct: Mapping[Key, Floats],
        cells: Sequence[str],
        *,
        draws: int = DRAWS,
        seed: int = 0,
    ) -> None:
        generator = np.random.default_rng(seed)
        self._keys = {key: number for number, key in enumerate(correct)}
        answers = np.stack(list(correct.values()), axis=1)
        self._groups: list[Label] = []
        sums, sizes = [], []
        for cell in cells:
            numbers = np.array([n for n, label in enumerate(labels) if label.cell == cell])
            count = len(numbers)
            # Sample 0 is the questions themselves.
            picks = generator.multinomial(count, np.full(count, 1 / count), size=draws)
            weights = np.concatenate([np.ones((1, count)), picks])
            mine = np.array([labels[n].needs for n in numbers])
            for needs in sorted(set(mine)):
                some = mine == needs
                kind, category = cell.split("/")
                self._groups.append(Label(kind, category, needs))
                sums.append(weights[:, some] @ answers[numbers[some]])
                sizes.append(weights[:, some].sum(1))
        self._sums = np.stack(sums).transpose(2, 0, 1).copy()  # [keys, groups, 1 + draws]
        self._sizes = np.stack(sizes)

    def has(self, key: Key) -> bool:
        """Return whether the row has answers at the budget."""
        return key in self._keys

    def categories(self, where: Where = anywhere) -> list[str]:
        """Return the categories with questions ``where`` that count, in the plan's order."""
        having = {group.category for group in self._groups if where(group)}
        return [category for category in CATEGORIES if category in having]

    def retained(self, key: Key, where: Where = anywhere) -> Floats:
        """Return retained accuracy, [1 + draws]: the mean of the categories.

        That of a category is accuracy over accuracy with all tokens, each over its questions
        ``where``. A resample in which all tokens answer none of a category's leaves it out.
        """

        def share(category: str) -> Floats:
            whole = self._accuracy((ALL, NUM_TOKENS), category, where)
            mine = self._accuracy(key, category, where)
            return np.divide(mine, whole, out=np.full_like(whole, np.nan), where=whole > 0)

        return self._mean(share, where)

    def accuracy(self, key: Key, where: Where = anywhere) -> Floats:
        """Return accuracy, [1 + draws]: the mean of the categories."""
        return self._mean(lambda category: self._accuracy(key, category, where), where)

    def _mean(self, of: Callable[[str], Floats], where: Where) -> Floats:
        """Return the mean over categories of what is known, [1 + draws]."""
        values = np.stack([of(category) for category in self.categories(where)])
        known = ~np.isnan(values)
        mean: Floats = np.where(known, values, 0).sum(0) / np.maximum(known.sum(0), 1)
        return mean

    def _accuracy(self, key: Key, category: str, where: Where) -> Floats:
        mine = [
            n for n, group in enumerate(self._groups) if group.category == category and where(group)
        ]
        sizes = self._sizes[mine].sum(0)
        # A resample may have none of the few questions ``where``.
        accuracy: Floats = self._sums[self._keys[key], mine].sum(0) / np.maximum(sizes, 1)
        return accuracy


def merged(seeds: Sequence[Floats]) -> Floats:
    """Return the share of seeds, or of models, that answer each question right."""
    mean: Floats = np.mean(np.stack(seeds), axis=0)
    return mean
