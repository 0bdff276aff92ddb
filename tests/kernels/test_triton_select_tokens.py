"""What only the Triton kernels of complete_tokens and select_tokens have: tiles of similarities,
waves of images, a way for more tokens than fit, and lists that nothing has checked."""

from __future__ import annotations

import numpy
import oracle
import pytest
import small_tiles
import torch
from inputs import (
    DTYPES,
    dyadic_features,
    exact_features,
    exact_weights,
    generator,
    random_features,
    random_mask,
)
from small_tiles import apart, small
from torch import Tensor

from clasp_kernels import complete_tokens, select_tokens
from clasp_kernels.triton import configs
from clasp_kernels.triton.configs import Completion

OP = "select_tokens"
NAN, INF = float("nan"), float("inf")


# One launch for as many images as fit, or a launch a step.
WAYS = {"one wave": small(100), "waves of 2": small(2), "by steps": small(0)}
EVERY_WAY = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS, indirect=True)
BY_TILES_OR_STEPS = pytest.mark.parametrize(
    "way", [WAYS["waves of 2"], WAYS["by steps"]], ids=["by tiles", "by steps"], indirect=True
)


@pytest.fixture
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Completion:
    small_tiles.use(monkeypatch, request.param)
    return request.param


def select(device: str, features: Tensor, salience: Tensor, *counts, valid=None) -> tuple:
    there = None if valid is None else valid.to(device)
    selection = select_tokens(features.to(device), salience.to(device), *counts, valid=there)
    return tuple(part.cpu() for part in selection)


def unchecked(device: str, features: Tensor, selected: Tensor, picks: int) -> Tensor:
    """complete_tokens without the checks of the public function, as on a GPU."""
    op = torch.ops.clasp_kernels.complete_tokens.triton
    return op(features.to(device), selected.to(device), picks, None).cpu()


@EVERY_WAY
@pytest.mark.parametrize("tokens", [1, 16, 17, 33])
def test_any_number_of_tokens(device, way, tokens) -> None:
    """Up to three blocks, so pairs of each with itself, its neighbour, and round the circle."""
    features = exact_features(tokens, 3, tokens)
    salience = torch.rand(3, tokens, generator=generator(tokens))
    counts = ([tokens // 4, min(tokens, 9), tokens // 3], [1, 4, 12])
    valid = random_mask(tokens, 3, tokens)
    expected = oracle.select_tokens(features, salience, *counts, valid=valid)
    torch.testing.assert_close(
        select(device, features, salience, *counts, valid=valid), expected, rtol=0, atol=0
    )

    selected = torch.tensor([[0], [tokens - 1], [-1]])
    picks = complete_tokens(features.to(device), selected.to(device), tokens // 4 + 1)
    assert torch.equal(picks.cpu(), oracle.complete_tokens(features, selected, tokens // 4 + 1))


@BY_TILES_OR_STEPS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 37])
def test_any_width_is_certified(device, way, dtype, width) -> None:
    features = random_features(width, 2, 35, width, dtype)
    selected = torch.tensor([[34, -1, 2], [-1, 15, 16]])
    picks = complete_tokens(features.to(device), selected.to(device), 8).cpu()
    oracle.certify_completion(features, selected, picks)


@EVERY_WAY
def test_everything_differs_from_image_to_image(device, way) -> None:
    """Nothing kept, all kept, pivots only, fewer valid than pivots, none valid: in one batch."""
    features = exact_features(3, 6, 20)
    salience = torch.rand(6, 20, generator=generator(3))
    valid = random_mask(3, 6, 20)
    valid[3] = torch.arange(20) == 17
    valid[4] = False
    counts = ([0, 20, 6, 5, 4, 7], [3, 2, 6, 4, 2, 1])
    expected = oracle.select_tokens(features, salience, *counts, valid=valid)
    torch.testing.assert_close(
        select(device, features, salience, *counts, valid=valid), expected, rtol=0, atol=0
    )


@BY_TILES_OR_STEPS
def test_pivots_alone_and_everything_kept_take_no_features(device, way) -> None:
    features = torch.full((2, 20, 3), NAN)
    salience = torch.rand(2, 20, generator=generator(4))
    for counts in ((6, 6), ([20, 25], [3, 4])):
        expected = oracle.select_tokens(exact_features(4, 2, 20), salience, *counts)
        torch.testing.assert_close(select(device, features, salience, *counts), expected)


@BY_TILES_OR_STEPS
def test_counts_that_nothing_clamped(device, way) -> None:
    features, salience = exact_features(12, 5, 20), torch.rand(5, 20, generator=generator(12))
    budget = torch.tensor([-3, 2**40, 7, 5, 7])
    shares = torch.tensor([2, 4, -(2**40), 2**40, 0])
    given = (features, salience, 7, budget, 3, shares, None)
    there = [value.to(device) if isinstance(value, Tensor) else value for value in given]
    expected = torch.ops.clasp_kernels.select_tokens.reference(*given)
    result = torch.ops.clasp_kernels.select_tokens.triton(*there)
    torch.testing.assert_close(tuple(part.cpu() for part in result), expected, rtol=0, atol=0)


@EVERY_WAY
def test_how_images_go_through_does_not_matter(device, way) -> None:
    """Neither the wave an image is in nor its place there, to the last pick of random features."""
    features = random_features(5, 5, 20, 23, torch.float32)
    selected = torch.tensor([[4], [-1], [19], [0], [7]])
    together = complete_tokens(features.to(device), selected.to(device), 8).cpu()
    for image in (0, 3, 4):
        one = slice(image, image + 1)
        alone = complete_tokens(features[one].to(device), selected[one].to(device), 8).cpu()
        assert torch.equal(alone, together[one])


@EVERY_WAY
def test_a_list_that_nothing_checked_stays_in_bounds(device, way) -> None:
    """Repeated tokens count once; what is out of range, of this image or of any, not at all."""
    features = exact_features(6, 3, 20)
    selected = torch.tensor(
        [[3, 3, 20, 3], [-7, 2**40, -1, 31], [2**63 - 1, -(2**63), 19, 2**32 + 1]]
    )
    proper = torch.tensor([[3, -1], [-1, -1], [19, -1]])
    picks = unchecked(device, features, selected, 9)
    assert torch.equal(picks, oracle.complete_tokens(features, proper, 9))


@BY_TILES_OR_STEPS
def test_a_long_list(device, way) -> None:
    """Longer than what is compared with a token at once."""
    features = exact_features(7, 1, 20)
    selected = torch.full((1, 150), -1)
    selected[0, ::30] = torch.tensor([1, 4, 9, 16, 19])
    picks = complete_tokens(features.to(device), selected.to(device), 9).cpu()
    assert torch.equal(picks, oracle.complete_tokens(features, selected, 9))


@BY_TILES_OR_STEPS
def test_tokens_run_out(device, way) -> None:
    """Before the steps do, and far before the slots do."""
    features = exact_features(8, 2, 18)
    selected = torch.tensor([[2, 17], [0, -1]])
    picks = complete_tokens(features.to(device), selected.to(device), 40).cpu()
    assert torch.equal(picks, oracle.complete_tokens(features, selected, 40))


@BY_TILES_OR_STEPS
def test_garbage_comes_last_once_each(device, way) -> None:
    features = random_features(9, 1, 20, 5, torch.float32)
    features[0, [1, 16], 2] = torch.tensor([NAN, INF])
    features[0, 7] = -INF
    picks = complete_tokens(features.to(device), torch.tensor([[0]]).to(device), 19).cpu()
    assert sorted(picks[0].tolist()) == list(range(1, 20))
    assert picks[0, -3:].tolist() == [1, 7, 16]


@BY_TILES_OR_STEPS
def test_counts_and_masks_need_not_be_contiguous(device, way) -> None:
    features = exact_features(10, 3, 20).to(device)
    salience = torch.rand(3, 20, generator=generator(10))
    valid = random_mask(10, 3, 20)
    counts = (torch.tensor([6, 3, 9]), torch.tensor([2, 3, 1]))
    expected = oracle.select_tokens(
        features.cpu(), salience, *(count.tolist() for count in counts), valid=valid
    )

    result = torch.ops.clasp_kernels.select_tokens.triton(
        *(apart(features), apart(salience), 9, apart(counts[0]), 3, apart(counts[1])),
        apart(valid),
    )
    assert torch.equal(result[0].cpu(), expected[0])
    assert torch.equal(result[1].cpu(), expected[1])
    assert torch.equal(result[2].cpu(), expected[2])


@EVERY_WAY
@pytest.mark.parametrize("tokens", [17, 33])
def test_weights(device, way, tokens) -> None:
    """More than one block of them; one image has equal weights, one nothing selected.

    Of 17 tokens, all are picked.
    """
    picks_of_each = 20 if tokens == 17 else 6
    features = dyadic_features(tokens, 4, tokens)
    weights = exact_weights(tokens, 4, tokens)
    valid = random_mask(tokens, 4, tokens)
    valid[3] = True
    weights[2] = torch.where(valid[2], 0.0, 2.0)
    weights[3, :13] = torch.tensor([1.0, *[0.0] * 11, 5.0])
    selected = torch.tensor([[0, 16], [5, -1], [16, 3], [-1, -1]])
    expected = oracle.complete_tokens(features, selected, picks_of_each, weights, valid)
    picks = complete_tokens(
        features.to(device),
        selected.to(device),
        picks_of_each,
        weights=apart(weights.to(device)),
        valid=apart(valid.to(device)),
    )
    assert torch.equal(picks.cpu(), expected)
    expected = oracle.complete_tokens(features, selected, 5, weights[:1].expand(4, -1))
    picks = complete_tokens(
        features.to(device), selected.to(device), 5, weights=weights.to(device)[:1].expand(4, -1)
    )
    assert torch.equal(picks.cpu(), expected)

    salience = torch.rand(4, tokens, generator=generator(tokens))
    counts = ([8, 9, 3, min(picks_of_each, tokens)], [1, 4, 2, 3])
    selection = select_tokens(
        features.to(device),
        salience.to(device),
        *counts,
        weights=weights.to(device),
        valid=valid.to(device),
    )
    expected = oracle.select_tokens(features, salience, *counts, weights, valid=valid)
    for part, right in zip(selection, expected, strict=True):
        assert torch.equal(part.cpu(), right)


@EVERY_WAY
def test_equal_weights_change_no_bit(device, way) -> None:
    """Not even where gains would tie. Weights of tokens that are not valid do not count."""
    features = torch.ones(2, 20, 2, device=device)
    features[:, :, 0] = 1e-9 * torch.arange(20, 0, -1, device=device)
    features[:, 3] = torch.tensor([1.0, 0.0])
    features[0, 18] = NAN
    selected = torch.full((2, 1), 3, device=device)
    weights = torch.tensor([[0.3], [0.0]], device=device).repeat(1, 20)
    valid = torch.ones(2, 20, dtype=torch.bool, device=device)
    weights[:, 17], valid[:, 17] = 5.0, False
    expected = complete_tokens(features, selected, 20, valid=valid)
    assert expected[:, 0].tolist() == [19, 19]
    picks = complete_tokens(features, selected, 20, weights=weights, valid=valid)
    assert torch.equal(picks, expected)


@BY_TILES_OR_STEPS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weighted_picks_are_certified(device, way, dtype) -> None:
    features = random_features(4, 2, 35, 9, dtype)
    weights = torch.rand(2, 35, generator=generator(14)).to(dtype)
    selected = torch.tensor([[34, -1, 2], [-1, -1, -1]])
    picks = complete_tokens(
        features.to(device), selected.to(device), 12, weights=weights.to(device)
    ).cpu()
    oracle.certify_completion(features, selected, picks, weights)


@BY_TILES_OR_STEPS
def test_weighted_garbage_ties_whatever_its_weights(device, way) -> None:
    """It comes after what can be compared, before weight 0, and by index."""
    features = random_features(9, 1, 20, 5, torch.float32)
    features[0, [1, 16], 2] = torch.tensor([NAN, INF])
    features[0, 7] = -INF
    weights = torch.ones(1, 20)
    weights[0, [1, 4, 7, 16]] = torch.tensor([0.25, 0.0, 2.0**-40, 2.0**40])
    picks = complete_tokens(
        features.to(device), torch.tensor([[0]]).to(device), 19, weights=weights.to(device)
    )
    assert picks[0, -4:].tolist() == [1, 7, 16, 4]


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
    features = exact_features(11, batch, 20)
    selected = torch.full((batch, 1), -1)
    picks = complete_tokens(features.to(device), selected.to(device), 4)
    assert max(sizes) == min(batch, 2) * 4 * 32 * 32
    assert torch.equal(picks.cpu(), oracle.complete_tokens(features, selected, 4))


def test_as_many_tokens_as_fit_go_by_tiles() -> None:
    assert configs.completion(8192, 1024, 2).wave == 1
    assert configs.completion(8193, 1024, 2).wave == 0
    for tokens in (1, 100, 576, 2880, 8192):
        config = configs.completion(tokens, 1024, 2)
        assert 4 * config.wave * config.padded**2 <= configs.SIMILARITY_BYTES
        assert config.padded >= tokens
        # A program looks at tokens of one image only, and at all of the padding.
        for dim in (0, 1, 1001, 1024):
            assert config.rows % configs.completion_tokens(dim, 2).rows == 0


@BY_TILES_OR_STEPS
def test_features_may_lie_further_apart_than_32_bits_count(device, way) -> None:
    """Their stride alone fits into 32 bits. Where it overflows, what is read instead is there."""
    if device != "cpu":
        pytest.skip("no memory is taken on the CPU, as nearly none of it is touched")
    features = random_features(5, 1, 20, 3, dtype=torch.float16)
    stride = 2**30 + 8
    memory = torch.from_numpy(numpy.zeros(2**31 + 2 * stride + 20, numpy.float16))
    apart = memory[2**31 :].as_strided((1, 20, 3), (0, 1, stride))
    apart.copy_(features)
    selected, salience = torch.tensor([[0, 3]]), torch.rand(1, 20, generator=generator(6))
    picks = complete_tokens(features, selected, 6)
    assert torch.equal(complete_tokens(apart, selected, 6), picks)
    expected = select(device, features, salience, 8, 2)
    for part, right in zip(select(device, apart, salience, 8, 2), expected, strict=True):
        assert torch.equal(part, right)
