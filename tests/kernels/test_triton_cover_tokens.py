"""The Triton kernels of cover_tokens: tiles of similarities, waves of images, blocks of candidates,
and similarities that do not fit and are computed again in each step."""

from __future__ import annotations

from typing import Any

import oracle
import pytest
import small_tiles
import torch
from inputs import (
    DTYPES,
    dyadic_features,
    exact_weights,
    generator,
    random_features,
    random_mask,
)
from small_tiles import apart, small
from torch import Tensor

from clasp_kernels import cover_tokens
from clasp_kernels.triton import configs
from clasp_kernels.triton.configs import Completion

OP = "cover_tokens"
NAN, INF = float("nan"), float("inf")


# All similarities of as many images as fit are stored, or none.
WAYS = {"one wave": small(100), "waves of 2": small(2), "computed again": small(0)}
EVERY_WAY = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS, indirect=True)
STORED_OR_NOT = pytest.mark.parametrize(
    "way", [WAYS["waves of 2"], WAYS["computed again"]], ids=["stored", "not"], indirect=True
)


@pytest.fixture
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Completion:
    small_tiles.use(monkeypatch, request.param)
    return request.param


def cover(device: str, features: Tensor, selected: Tensor, *counts: Any, **options: Any) -> Tensor:
    there = {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in options.items()
    }
    return cover_tokens(features.to(device), selected.to(device), *counts, **there).cpu()


def everything(tokens: int, batch: int = 4) -> dict[str, Tensor]:
    """All options, whose gains are exact; the last image has equal weights."""
    valid = random_mask(tokens, batch, tokens)
    valid[-1] = True
    weights = exact_weights(tokens, batch, tokens)
    weights[-1] = 3.0
    preference = exact_weights(tokens + 1, batch, tokens)
    return {"weights": weights, "preference": preference, "valid": valid}


@EVERY_WAY
@pytest.mark.parametrize("tokens", [1, 16, 17, 33])
def test_any_number_of_tokens(device, way, tokens) -> None:
    """Up to three blocks, so pairs of each with itself, its neighbour, and round the circle."""
    features = dyadic_features(tokens, 3, tokens)
    selected = torch.tensor([[0, -1], [tokens - 1, -1], [-1, -1]])
    counts = [min(tokens, 3), 4, tokens // 8]
    expected = oracle.cover_tokens(features, selected, counts)
    assert torch.equal(cover(device, features, selected, counts), expected)
    options = everything(tokens, 3)
    expected = oracle.cover_tokens(features, selected, 3, **options)
    assert torch.equal(cover(device, features, selected, 3, **options), expected)


@STORED_OR_NOT
@pytest.mark.parametrize(
    ("dtype", "width"), [(torch.float32, 1), *((dtype, 37) for dtype in DTYPES)], ids=str
)
def test_any_width_is_certified(device, way, dtype, width) -> None:
    features = random_features(width, 1, 35, width, dtype)
    selected = torch.tensor([[34, -1, 2]])
    weights, preference = torch.rand(2, 1, 35, generator=generator(width)).unbind()
    for options in ({}, {"weights": weights, "preference": preference}):
        picks = cover(device, features, selected, 3, **options)
        oracle.certify_cover(features, selected, picks, **options)


@EVERY_WAY
def test_everything_differs_from_image_to_image(device, way) -> None:
    """No picks, more than tokens, nothing selected, one valid, none valid: in one batch."""
    features = dyadic_features(3, 5, 20)
    options = everything(20, 5)
    options["valid"][3] = torch.arange(20) == 17
    options["valid"][4] = False
    selected = torch.tensor([[2, 19, -1], [0, -1, -1], [-1, -1, -1], [3, 18, 1], [4, -1, 16]])
    counts = [0, 22, 3, 5, 4]
    expected = oracle.cover_tokens(features, selected, counts, **options)
    assert torch.equal(cover(device, features, selected, counts, **options), expected)


@STORED_OR_NOT
def test_counts_that_nothing_clamped_and_a_list_that_nothing_checked(device, way) -> None:
    """Repeated tokens count once; what is out of range, of this image or of any, not at all."""
    features = dyadic_features(6, 3, 20)
    selected = torch.tensor(
        [[3, 3, 20, 3], [-7, 2**40, -1, 31], [2**63 - 1, -(2**63), 19, 2**32 + 1]]
    )
    counts = torch.tensor([2**40, 5, -3])
    given = (features, selected, 7, counts, None, None, None)
    there = [value.to(device) if isinstance(value, Tensor) else value for value in given]
    picks = torch.ops.clasp_kernels.cover_tokens.triton(*there).cpu()
    proper = torch.tensor([[3, -1], [-1, -1], [19, -1]])
    expected = oracle.cover_tokens(features, proper, [7, 5, 0])
    assert torch.equal(picks, expected)


@EVERY_WAY
def test_how_images_go_through_does_not_matter(device, way) -> None:
    """Neither the wave an image is in nor its place there, to the last pick of random features."""
    features = random_features(5, 5, 20, 23, torch.float32)
    selected = torch.tensor([[4], [-1], [19], [0], [7]])
    weights = torch.rand(5, 20, generator=generator(5))
    together = cover(device, features, selected, 4, weights=weights)
    for image in (0, 3, 4):
        one = slice(image, image + 1)
        alone = cover(device, features[one], selected[one], 4, weights=weights[one])
        assert torch.equal(alone, together[one])


@EVERY_WAY
def test_a_row_per_image_need_not_be_contiguous(device, way) -> None:
    features, selected = dyadic_features(10, 3, 20), torch.tensor([[1, 8], [19, -1], [-1, -1]])
    counts, options = torch.tensor([4, 3, 5]), everything(20, 3)
    expected = oracle.cover_tokens(features, selected, counts.tolist(), **options)
    given = (features, selected, counts, *options.values())
    features, selected, counts, *rest = (apart(value.to(device)) for value in given)
    op = torch.ops.clasp_kernels.cover_tokens.triton
    assert torch.equal(op(features, selected, 5, counts, *rest).cpu(), expected)


@STORED_OR_NOT
def test_one_row_for_all_images(device, way) -> None:
    features, selected = dyadic_features(10, 3, 20), torch.tensor([[1, 8], [19, -1], [-1, -1]])
    rows = {name: value[:1].expand(3, -1) for name, value in everything(20).items()}
    expected = oracle.cover_tokens(features, selected, 3, **rows)
    assert torch.equal(cover(device, features, selected, 3, **rows), expected)


@STORED_OR_NOT
def test_equal_tokens_tie(device, way) -> None:
    """Whichever tile they are in: each token has an equal, and the lower of two is picked."""
    # Exact, because a product of the interpreter may round by the place in the tile.
    features = dyadic_features(12, 1, 20).repeat(1, 2, 1)
    order = torch.rand(40, generator=generator(12)).argsort()
    features[:, order] = features.clone()
    other = torch.empty(40, dtype=torch.int64)
    other[order] = order.roll(20)
    picks = cover(device, features, torch.tensor([[-1]]), 5)[0]
    assert (picks < other[picks]).all()


@STORED_OR_NOT
def test_what_is_picked_adds_nothing_more(device, way) -> None:
    """Nor does its equal: once every direction is represented, the rest comes by index."""
    features = torch.eye(3)[None, [0, 1, 0, 2, 1, 2, 0, 1, 2] * 2]  # exact
    picks = cover(device, features, torch.tensor([[0]]), 6)[0].tolist()
    assert sorted(picks[:2]) == [1, 3]
    assert picks[2:] == [2, 4, 5, 6]


@STORED_OR_NOT
def test_garbage_adds_nothing(device, way) -> None:
    features = random_features(9, 1, 20, 5, torch.float32)
    features[0, [1, 16], 2] = torch.tensor([NAN, INF])
    features[0, 7] = -INF
    features[0, 18] = 0
    selected = torch.tensor([[16]])
    picks = cover(device, features, selected, 19)
    assert sorted(picks[0].tolist()) == [n for n in range(20) if n != 16]
    assert picks[0, -3:].tolist() == [1, 7, 18]
    oracle.certify_cover(features, selected, picks)


@STORED_OR_NOT
def test_equal_weights_change_no_bit(device, way) -> None:
    features = random_features(13, 2, 20, 5, torch.float32)
    selected = torch.tensor([[3], [-1]])
    equal = torch.tensor([[0.3], [0.0]]).expand(2, 20)
    expected = cover(device, features, selected, 5)
    picks = cover(device, features, selected, 5, weights=equal, preference=2 * equal)
    assert torch.equal(picks, expected)


@pytest.mark.parametrize("batch", [1, 5])
def test_memory_is_bounded_whatever_the_batch(device, monkeypatch, batch) -> None:
    """The similarities in flight stay within what configs allows for them."""
    monkeypatch.setattr(configs, "SIMILARITY_BYTES", 2 * 4 * 32 * 32)
    sizes = []
    new_empty = Tensor.new_empty

    def spy(tensor: Tensor, size, **options) -> Tensor:
        result = new_empty(tensor, size, **options)
        sizes.append(result.nbytes)
        return result

    monkeypatch.setattr(Tensor, "new_empty", spy)
    features = dyadic_features(11, batch, 20)
    selected = torch.full((batch, 1), -1)
    picks = cover(device, features, selected, 4)
    assert max(sizes) == min(batch, 2) * 4 * 32 * 32
    assert torch.equal(picks, oracle.cover_tokens(features, selected, 4))

    # Not even one image fits.
    monkeypatch.setattr(configs, "SIMILARITY_BYTES", 4 * 32 * 32 - 1)
    sizes.clear()
    assert torch.equal(cover(device, features, selected, 4), picks)
    assert max(sizes) <= batch * 4 * 32


def test_blocks_of_candidates_fill_the_padding() -> None:
    for tokens in (1, 17, 33, 100, 576, 577, 2880, 8192):
        config = configs.completion(tokens, 1024, 2)
        assert config.padded % configs.covering_step(config.rows, config.padded).rows == 0
