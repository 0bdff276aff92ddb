"""The test of differences: exact on small cases, at its level under chance, and able to find."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from clasp_kernels.calibrate.statistics import intervals, tested

DRAWS = 400


def tensor(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def every_flip(differences: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the corrected p-values by all sign flips, for categories with images of their own."""
    units = [each / each.square().sum(0).sqrt() for each in differences]
    count = sum(len(each) for each in units)
    largest = []
    for signs in product((-1.0, 1.0), repeat=count):
        flips = torch.tensor(signs, dtype=torch.float64).split([len(each) for each in units])
        found = [(flip @ each).abs().max() for flip, each in zip(flips, units, strict=True)]
        largest.append(max(float(value) for value in found))
    return [
        torch.tensor(
            [
                sum(value >= float(statistic) - 1e-9 for value in largest) / len(largest)
                for statistic in each.sum(0).abs()
            ]
        )
        for each in units
    ]


def test_p_values_are_those_of_all_sign_flips() -> None:
    generator = torch.Generator().manual_seed(3)
    first = torch.randn(6, 3, generator=generator, dtype=torch.float64) + 0.5
    second = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    second[:, 1] = tensor([[1, 1, 1, 1, 1]])
    found = tested([first, second], [torch.arange(6), torch.arange(6, 11)], draws=20_000, seed=0)
    for one, expected in zip(found, every_flip([first, second]), strict=True):
        torch.testing.assert_close(one.p_value, expected.double(), atol=0.015, rtol=0)


def noise(generator: torch.Generator, questions: int, cells: int) -> torch.Tensor:
    """Return differences of cells that are alike: right or wrong, the same more often than not."""
    common = torch.rand(questions, 1, generator=generator)
    own = torch.rand(questions, cells + 1, generator=generator)
    keeps = torch.rand(questions, cells + 1, generator=generator) < 0.6
    right = (torch.where(keeps, common, own) < 0.5).double()
    return right[:, 1:] - right[:, :1]


def test_chance_is_taken_for_a_finding_at_the_nominal_rate() -> None:
    generator = torch.Generator().manual_seed(0)
    runs, wrong, uncorrected = 200, 0, 0
    for run in range(runs):
        differences = [noise(generator, 60, 12), noise(generator, 40, 12)]
        images = [torch.arange(60), torch.arange(60, 100)]
        found = tested(differences, images, seed=run, draws=DRAWS)
        wrong += any(bool((each.p_value <= 0.05).any()) for each in found)
        alone = [
            tested([differences[0][:, n : n + 1]], images[:1], seed=run, draws=100)
            for n in (0, 4, 8)
        ]
        uncorrected += any(float(one[0].p_value) <= 0.05 for one in alone)
    # 5 % and three standard errors of the runs.
    assert 0.01 < wrong / runs < 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5
    assert uncorrected / runs > 0.08  # three tests alone: what the correction is for


def test_a_cell_that_is_better_is_found_among_many() -> None:
    generator = torch.Generator().manual_seed(1)
    differences = noise(generator, 100, 25)
    differences[:, 7] = (torch.rand(100, generator=generator) < 0.3).double()
    [found] = tested([differences], [torch.arange(100)], draws=DRAWS)
    assert (found.p_value <= 0.05).nonzero().flatten().tolist() == [7]
    assert float(found.low[7]) > 0


def test_an_interval_excludes_zero_where_the_test_is_significant() -> None:
    generator = torch.Generator().manual_seed(2)
    for shift in (0.0, 0.2, 0.4, 0.6):
        differences = torch.randn(30, 10, generator=generator, dtype=torch.float64) + shift
        [found] = tested([differences], [torch.arange(30)], draws=DRAWS)
        excluded = (found.low > 0) | (found.high < 0)
        assert excluded.tolist() == (found.p_value <= 0.05).tolist()
        torch.testing.assert_close(found.mean, differences.mean(0))
        torch.testing.assert_close((found.low + found.high) / 2, found.mean)


def test_questions_about_one_image_are_one_observation() -> None:
    # Ten images with ten equal questions each are no more than ten questions.
    generator = torch.Generator().manual_seed(4)
    single = noise(generator, 10, 4)
    images = torch.arange(10)
    [once] = tested([single], [images], draws=DRAWS)
    [often] = tested([single.repeat_interleave(10, 0)], [images.repeat_interleave(10)], draws=DRAWS)
    torch.testing.assert_close(often.p_value, once.p_value)
    torch.testing.assert_close(often.low, once.low)
    low, high = intervals(single, images)
    lows, highs = intervals(single.repeat_interleave(10, 0), images.repeat_interleave(10))
    torch.testing.assert_close(lows, low)
    torch.testing.assert_close(highs, high)


def test_no_differences_and_no_cells() -> None:
    [same, none] = tested(
        [torch.zeros(5, 2, dtype=torch.float64), torch.zeros(3, 0, dtype=torch.float64)],
        [torch.arange(5), torch.arange(3)],
        draws=DRAWS,
    )
    assert same.p_value.tolist() == [1.0, 1.0] and same.mean.tolist() == [0.0, 0.0]
    assert none.p_value.shape == (0,)


def test_the_same_seed_gives_the_same_numbers() -> None:
    differences = noise(torch.Generator().manual_seed(5), 20, 3)
    [one], [two] = (
        tested([differences], [torch.arange(20)], seed=9, draws=DRAWS) for _ in range(2)
    )
    assert torch.equal(one.p_value, two.p_value) and torch.equal(one.low, two.low)


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_intervals_of_scores_cover(share: float) -> None:
    generator = torch.Generator().manual_seed(6)
    covered = 0
    for run in range(200):
        right = (torch.rand(80, 1, generator=generator) < share).double()
        low, high = intervals(right, torch.arange(80), seed=run, draws=400)
        covered += bool(low[0] <= share <= high[0])
    assert 0.88 < covered / 200 < 0.99
