"""Tell differences between cells from chance.

Many cells are tried for many categories, and the best of many is better than the default by luck
alone. So the differences of all cells of all categories are tested as one family, by the
single-step max-T procedure of Westfall and Young (1993) with random sign flips. If a cell were no
better and no worse than the default, then swapping the two answers to the questions about an image
would change nothing: the signs of an image's differences could be flipped. Flipping the signs of
random images, the same in all cells, and taking the largest statistic of all cells gives the
distribution of the largest statistic under chance. A cell is significant if its own statistic is
above 95 % of these.

Why this and not the alternatives: choosing on one half of the questions and testing on the other
needs no correction but wastes half of them for each step. Holm's correction of one test a cell
ignores that neighbouring cells keep nearly the same tokens and answer alike; with a hundred cells
it demands about as much as from a hundred independent ones. The max-T procedure uses all questions
and accounts for cells that are alike. It controls the probability of *any* wrong finding in the
whole calibration at 5 %, as Holm's does.

Images are the units, not questions: answers to several questions about one image depend on each
other. The test is exact where differences are symmetric under chance, such as those of right and
wrong answers to one question an image; for soft scores and several questions an image it is an
approximation that gets better with the number of images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import torch

CONFIDENCE = 0.95
DRAWS = 10_000
# Draws that are computed at once, which bounds the memory.
_CHUNK = 500
# Sums of the same numbers in another order differ by rounding, which must not decide.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Differences:
    """The differences of a category's cells to its default, tested."""

    mean: torch.Tensor
    """[cells] float64."""
    low: torch.Tensor
    """[cells] float64: the lower ends of intervals that hold for all cells of all categories at
    once with probability 0.95."""
    high: torch.Tensor
    """[cells] float64: the upper ends."""
    p_value: torch.Tensor
    """[cells] float64: corrected for all cells of all categories. At most 0.05 if and only if 0 is
    outside the interval, but for ties."""


def tested(
    differences: Sequence[torch.Tensor],
    images: Sequence[torch.Tensor],
    *,
    seed: int = 0,
    draws: int = DRAWS,
) -> list[Differences]:
    """Test all cells of all categories as one family.

    Args:
        differences: for each category [questions, cells] float64, the score of each cell minus that
            of the default. There may be no cells.
        images: for each category [questions] int64, the number of each question's image. Equal
            numbers in two categories are the same image.
        seed: of the sign flips.
        draws: the number of sign flips. A p-value is at least 1 / (draws + 1).
    """
    num_images = 1 + max((int(numbers.max()) for numbers in images if len(numbers)), default=-1)
    sums = [
        torch.zeros(num_images, each.shape[1], dtype=torch.float64).index_add_(0, numbers, each)
        for each, numbers in zip(differences, images, strict=True)
    ]
    # Flips change no square, so every statistic has variance 1 under chance, and all are alike.
    scales = [each.square().sum(0).sqrt() for each in sums]
    units = [each / scale.clamp_min(1e-300) for each, scale in zip(sums, scales, strict=True)]
    observed = [each.sum(0).abs() for each in units]
    generator = torch.Generator().manual_seed(seed)
    everything = torch.cat(units, dim=1)
    largest = torch.cat(
        [
            _largest(everything, min(_CHUNK, draws - start), generator)
            for start in range(0, draws, _CHUNK)
        ]
    )
    largest = largest.sort().values
    # The observed statistics are one more draw, under chance.
    rank = min(draws, ceil(CONFIDENCE * (draws + 1))) - 1
    critical = float(largest[rank])
    answers = []
    for each, scale, statistic in zip(differences, scales, observed, strict=True):
        mean = each.mean(0)
        reach = critical * scale / max(1, len(each))
        at_least = draws - torch.searchsorted(largest, statistic - _ROUNDING)
        answers.append(
            Differences(mean, mean - reach, mean + reach, (1 + at_least.double()) / (1 + draws))
        )
    return answers


def _largest(units: torch.Tensor, draws: int, generator: torch.Generator) -> torch.Tensor:
    """Return the largest statistic of all cells for random sign flips, [draws]."""
    if units.shape[1] == 0:
        return torch.zeros(draws, dtype=torch.float64)
    signs = torch.randint(0, 2, (draws, len(units)), generator=generator)
    return ((2.0 * signs.double() - 1.0) @ units).abs().amax(1)


def intervals(
    scores: torch.Tensor, images: torch.Tensor, *, seed: int = 0, draws: int = 2_000
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ends [cells] of 95 % intervals of the mean scores, of each cell alone.

    They are percentiles of the bootstrap over images. ``scores`` are [questions, cells] float64,
    ``images`` [questions] int64. With few images, intervals are too short; where all answers score
    the same, they have no length.
    """
    _, unit = images.unique(return_inverse=True)
    count = int(unit.max()) + 1
    sums = torch.zeros(count, scores.shape[1], dtype=torch.float64).index_add_(0, unit, scores)
    sizes = torch.bincount(unit, minlength=count).double()
    generator = torch.Generator().manual_seed(seed)
    means = []
    for start in range(0, draws, _CHUNK):
        some = min(_CHUNK, draws - start)
        picks = torch.randint(0, count, (some, count), generator=generator)
        weights = torch.zeros(some, count, dtype=torch.float64)
        weights.scatter_add_(1, picks, torch.ones_like(weights))
        means.append((weights @ sums) / (weights @ sizes)[:, None])
    ends = torch.tensor([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], dtype=torch.float64)
    low, high = torch.cat(means).quantile(ends, dim=0)
    return low, high
