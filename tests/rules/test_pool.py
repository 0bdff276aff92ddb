"""Average pooling against PyTorch's own, and a description of its algorithm in fractions."""

from __future__ import annotations

import random
from fractions import Fraction
from itertools import groupby, pairwise

import pytest
import torch
from torch import Tensor

from clasp_kernels import rules
from clasp_kernels.rules import PooledSelection

# (frame, y, x), exactly.
Place = tuple[int, Fraction, Fraction]


def grid(
    rows: int, columns: int, frame: int = 0, size: tuple[int, int] | None = None
) -> list[Place]:
    """The places of a view's tokens, row by row. ``size`` is that of the image, by default such
    that tokens are square."""
    height, width = size or (rows, columns)
    longer = max(height, width)
    return [
        (
            frame,
            Fraction((2 * row + 1) * height, 2 * rows * longer),
            Fraction((2 * column + 1) * width, 2 * columns * longer),
        )
        for row in range(rows)
        for column in range(columns)
    ]


def pooled(
    images: list[list[Place]], budget: list[int], valid: Tensor | None = None
) -> PooledSelection:
    """The rule's answer for images, which are padded at the end."""
    most = max(map(len, images))
    places = torch.zeros(len(images), most, 3)
    for row, image in zip(places, images, strict=True):
        row[: len(image)] = torch.tensor([[float(along) for along in place] for place in image])
    is_token = torch.tensor([[n < len(image) for n in range(most)] for image in images])
    valid = is_token if valid is None else is_token & valid
    features = torch.zeros(len(images), most, 2)
    selection = rules.find_rule("pool")(
        features, features[..., 0], budget, places=places, valid=valid
    )
    assert isinstance(selection, PooledSelection)
    return selection


def groups_of(selection: PooledSelection, image: int = 0) -> dict[int, list[int]]:
    """The tokens of each kept token of an image."""
    groups = selection.groups[image].tolist()
    kept = selection.indices[image, : selection.counts[image]].tolist()
    return {
        index: [token for token, group in enumerate(groups) if group == place]
        for place, index in enumerate(kept)
    }


def described(image: dict[int, Place], budget: int, aspect: Fraction) -> dict[int, list[int]]:
    """The groups as the docstring describes them; ``aspect`` is height / width of the image."""
    cells = min(budget, len(image))
    groups = []
    part: list[int] = []
    seen = earned = 0
    by_time = sorted(image, key=lambda token: image[token][0])
    for _, frame in groupby(by_time, key=lambda token: image[token][0]):
        part += frame
        more = (seen + len(part)) * cells // len(image) - earned
        if more:
            groups += in_bands(part, image, more, aspect)
            seen, earned, part = seen + len(part), earned + more, []
    assert not part and len(groups) == cells
    return dict(sorted((nearest(group, image), sorted(group)) for group in groups))


def in_bands(
    part: list[int], image: dict[int, Place], cells: int, aspect: Fraction
) -> list[list[int]]:
    number = min(cells, max(1, round(float(cells * aspect) ** 0.5)))
    until = [cells * band // number for band in range(number + 1)]
    rows = sorted(part, key=lambda token: (*image[token][1:], token))
    groups = []
    for first, last in pairwise(until):
        band = rows[len(part) * first // cells : len(part) * last // cells]
        band.sort(key=lambda token: (image[token][2], image[token][1], token))
        share = last - first
        edges = [len(band) * cell // share for cell in range(share + 1)]
        groups += [band[start:stop] for start, stop in pairwise(edges)]
    return groups


def nearest(group: list[int], image: dict[int, Place]) -> int:
    mean = [sum(Fraction(image[token][axis]) for token in group) / len(group) for axis in range(3)]
    return min(
        group,
        key=lambda token: (
            sum((Fraction(image[token][axis]) - mean[axis]) ** 2 for axis in range(3)),
            token,
        ),
    )


@pytest.mark.parametrize(("budget", "side"), [(576, 1), (144, 2), (64, 3), (36, 4), (1, 24)])
def test_squares_are_those_of_average_pooling(budget: int, side: int) -> None:
    features = torch.randn(2, 576, 5, generator=torch.Generator().manual_seed(0))
    selection = pooled([grid(24, 24)] * 2, [budget] * 2)
    means = rules.pool_tokens(features, selection.groups, budget)
    picture = features.mT.unflatten(2, (24, 24))
    expected = torch.nn.functional.avg_pool2d(picture, side).flatten(2).mT
    torch.testing.assert_close(means, expected)
    # The places of the kept tokens are in the order of the cells.
    rows, columns = selection.indices // 24, selection.indices % 24
    if side % 2:
        assert torch.equal(rows % side, torch.full_like(rows, side // 2))
    else:  # four tokens are nearest
        assert torch.equal(rows % side, torch.full_like(rows, side // 2 - 1))
    assert torch.equal(columns % side, rows % side)


@pytest.mark.parametrize(("rows", "columns"), [(8, 16), (16, 8), (2, 12), (30, 6)])
def test_squares_of_an_oblong_image_are_too(rows: int, columns: int) -> None:
    features = torch.randn(1, rows * columns, 5, generator=torch.Generator().manual_seed(0))
    selection = pooled([grid(rows, columns)], [rows * columns // 4])
    means = rules.pool_tokens(features, selection.groups, rows * columns // 4)
    picture = features.mT.unflatten(2, (rows, columns))
    expected = torch.nn.functional.avg_pool2d(picture, 2).flatten(2).mT
    torch.testing.assert_close(means, expected)


SHAPES = [(6, 6), (5, 9), (9, 4), (1, 7), (7, 1), (3, 14)]


@pytest.mark.parametrize("budget", [1, 2, 3, 5, 7, 10, 13, 29, 36, 99])
def test_any_budget_of_any_grid_is_as_described(budget: int) -> None:
    images = [grid(*shape) for shape in SHAPES]
    selection = pooled(images, [budget] * len(images))
    assert selection.indices.shape == (len(images), budget)
    assert not selection.is_pivot.any()
    for number, (image, (rows, columns)) in enumerate(zip(images, SHAPES, strict=True)):
        expected = described(dict(enumerate(image)), budget, Fraction(rows, columns))
        assert groups_of(selection, number) == expected
        assert list(expected) == sorted(expected)
        assert (selection.groups[number, len(image) :] == -1).all()
        assert (selection.indices[number, len(expected) :] == -1).all()


@pytest.mark.parametrize("seed", range(20))
def test_budgets_views_and_holes_of_all_kinds_are_as_described(seed: int) -> None:
    chance = random.Random(seed)
    images, aspects = [], []
    for _ in range(4):
        size = chance.randint(2, 9), chance.randint(2, 9)
        image = []
        if chance.random() < 0.5:  # the whole, squeezed to a square, and tiles
            image += grid(4, 4, size=size)
            image += grid(2 * size[0], 2 * size[1], size=size)
        else:
            for frame in range(chance.randint(1, 5)):
                image += grid(*size, frame=frame)
        images.append(image)
        aspects.append(Fraction(*size))
    most = max(map(len, images))
    valid = torch.rand(4, most, generator=torch.Generator().manual_seed(seed)) < 0.8
    # The size of an image shows in its first and last tokens.
    for row, image in zip(valid, images, strict=True):
        row[[0, len(image) - 1]] = True
    budgets = [chance.randint(1, 60) for _ in images]
    selection = pooled(images, budgets, valid)
    for number, (image, budget, aspect) in enumerate(zip(images, budgets, aspects, strict=True)):
        tokens = {n: place for n, place in enumerate(image) if valid[number, n]}
        assert groups_of(selection, number) == described(tokens, budget, aspect)
        assert selection.counts[number] == min(budget, len(tokens))
        alone = pooled([image], [budget], valid[number : number + 1, : len(image)])
        assert groups_of(alone) == groups_of(selection, number)


def test_cells_of_a_band_differ_by_one_token_at_most() -> None:
    for budget in range(1, 577, 23):
        selection = pooled([grid(24, 24)], [budget])
        sizes = [len(group) for group in groups_of(selection).values()]
        assert sum(sizes) == 576 and min(sizes) >= 1
        assert max(sizes) - min(sizes) <= 2


def test_the_whole_and_its_tiles_are_pooled_by_where_they_lie() -> None:
    image = grid(2, 2, size=(1, 1)) + grid(4, 4)
    selection = pooled([image], [4])
    assert groups_of(selection) == {
        0: [0, 4, 5, 8, 9],
        1: [1, 6, 7, 10, 11],
        2: [2, 12, 13, 16, 17],
        3: [3, 14, 15, 18, 19],
    }


@pytest.mark.parametrize("budget", [12, 8, 4])
def test_a_video_is_pooled_within_its_frames(budget: int) -> None:
    video = [place for frame in range(4) for place in grid(4, 4, frame=frame)]
    groups = groups_of(pooled([video], [budget]))
    frames = [{token // 16 for token in group} for group in groups.values()]
    assert all(len(of_group) == 1 for of_group in frames)
    assert [frames.count({frame}) for frame in range(4)] == [budget // 4] * 4


def test_frames_are_pooled_together_only_if_there_are_too_many() -> None:
    video = [place for frame in range(6) for place in grid(2, 2, frame=frame)]
    groups = groups_of(pooled([video], [3]))
    assert list(groups.values()) == [list(range(n, n + 8)) for n in (0, 8, 16)]


def test_the_time_between_frames_does_not_matter() -> None:
    video = [place for frame in (0, 1, 2) for place in grid(3, 3, frame=frame)]
    slow = [(frame * 40, y, x) for frame, y, x in video]
    assert torch.equal(pooled([video], [8]).groups, pooled([slow], [8]).groups)


def test_an_image_without_a_budget_is_in_no_group() -> None:
    selection = pooled([grid(2, 2), grid(2, 2)], [0, 1])
    assert selection.indices.tolist() == [[-1], [0]]
    assert selection.groups.tolist() == [[-1] * 4, [0] * 4]


@pytest.mark.parametrize("places", [None, torch.zeros(1, 9, 2), torch.zeros(2, 9, 3)])
def test_places_are_needed(places: Tensor | None) -> None:
    got = None if places is None else list(places.shape)
    message = rf"places must be given to rule 'pool', .* \[1, 9, 3\], got {got}"
    with pytest.raises(ValueError, match=message.replace("got [", r"got \[")):
        rules.find_rule("pool")(torch.zeros(1, 9, 2), torch.zeros(1, 9), [4], places=places)
