"""What only the Triton kernels of merge_tokens have: blocks and their edges, indices unchecked."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clasp_kernels import merge_tokens, reference
from clasp_kernels.triton import configs
from clasp_kernels.triton.configs import AssignmentBlocks, MeanBlocks

OP = "merge_tokens"
NAN, INF = float("nan"), float("inf")
SQUARES = torch.arange(20.0).square()[None, :, None]  # hardly two groups have the same mean


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Smaller than they would be, so that a few tokens fill several of them."""
    assignment = AssignmentBlocks(16, 4, 16, 1, 1)
    monkeypatch.setattr(configs, "merge_assignment", lambda *sizes: assignment)
    monkeypatch.setattr(configs, "merge_means", lambda *sizes: MeanBlocks(8, 2, 4, 1))


def exact_features(seed: int, batch: int, tokens: int, width: int) -> Tensor:
    """One entry a row is 1, -1 or 2, if any: cosines are 0, 1 or -1, and most of them tie."""
    random = torch.Generator().manual_seed(seed)
    features = torch.zeros(batch, tokens, width)
    where = torch.randint(width, (batch, tokens, 1), generator=random)
    values = torch.tensor([0.0, 1.0, -1.0, 2.0])
    return features.scatter_(
        2, where, values[torch.randint(4, (batch, tokens, 1), generator=random)]
    )


def random_indices(seed: int, batch: int, tokens: int, width: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    order = torch.rand(batch, tokens + 2, generator=random).argsort(-1)[:, :width]
    order = order.masked_fill(order >= tokens, -1)
    return torch.nn.functional.pad(order, (0, width - order.shape[1]), value=-1)


def assert_right(
    device: str, tokens: Tensor, features: Tensor, indices: Tensor, valid: Tensor | None = None
) -> None:
    there = None if valid is None else valid.to(device)
    merged = merge_tokens(
        tokens.to(device), features.to(device), indices.to(device), valid=there
    ).cpu()
    expected = reference.merge_tokens(tokens, features, indices, valid)
    torch.testing.assert_close(merged, expected, rtol=1e-6, atol=1e-6, equal_nan=True)


def unchecked(device: str, *arguments: Tensor | None) -> Tensor:
    """Past the checks, as on a GPU."""
    there = (None if argument is None else argument.to(device) for argument in arguments)
    return torch.ops.clasp_kernels.merge_tokens.triton(*there).cpu()


@pytest.mark.parametrize(
    ("tokens", "slots"),
    [(1, 1), (7, 3), (8, 4), (9, 5), (15, 9), (16, 1), (17, 4), (33, 2), (5, 8), (3, 9)],
)
def test_any_number_of_tokens_and_slots(device, small_blocks, tokens, slots) -> None:
    seed = 40 * tokens + slots
    features = exact_features(seed, 2, tokens, 3)
    states = torch.randn(2, tokens, 3, generator=torch.Generator().manual_seed(seed))
    indices = random_indices(seed, 2, tokens, slots)
    valid = torch.rand(2, tokens, generator=torch.Generator().manual_seed(seed)) < 0.7
    assert_right(device, states, features, indices)
    assert_right(device, states, features, indices, valid)


@pytest.mark.parametrize("width", [0, 1, 15, 16, 17, 33])
def test_any_number_of_features(device, small_blocks, width) -> None:
    """They count to the last: only there do the candidates differ."""
    features = torch.zeros(1, 5, width)
    features[..., :1] = 1
    features[0, [1, 4], -1:] = 3
    assert_right(device, torch.eye(5)[None], features, torch.tensor([[0, 1]]))


@pytest.mark.parametrize("dim", [1, 3, 4, 5, 9])
def test_any_width_of_tokens(device, small_blocks, dim) -> None:
    states = torch.randn(1, 9, dim, generator=torch.Generator().manual_seed(dim))
    assert_right(device, states, exact_features(1, 1, 9, 2), torch.tensor([[8, 2, 3]]))


@pytest.mark.parametrize("members", [1, 2, 3, 4, 5, 6, 9])
def test_any_number_of_members(device, small_blocks, members) -> None:
    """Of all tokens the last ones, in one block of them or in two."""
    valid = torch.zeros(1, 12, dtype=torch.bool)
    valid[0, 12 - members :] = True
    states = torch.arange(12.0)[None, :, None].expand(1, 12, 2) ** 2
    assert_right(device, states, torch.ones(1, 12, 2), torch.tensor([[11]]), valid)


def test_a_tie_across_blocks_of_slots_goes_to_the_lower_token(device, small_blocks) -> None:
    """Its slot is in the first block, in a later one, and beside the other's."""
    states, features = SQUARES, torch.ones(1, 20, 2)
    for order in ([2, 4, 5, 6, 7, 8, 9], [9, 8, 7, 6, 5, 4, 2], [9, 8, 2, 6, 5, 4, 7]):
        assert_right(device, states, features, torch.tensor([order]))


def test_a_kept_token_stays_whatever_resembles_it_in_another_block(device, small_blocks) -> None:
    indices = torch.tensor([[7, 19, 18, 3, 2, 11, 16]])
    assert_right(device, SQUARES, torch.ones(1, 20, 2), indices)
    assert_right(device, SQUARES, torch.full((1, 20, 2), NAN), indices)


@pytest.mark.parametrize("garbage", [NAN, INF, -INF])
def test_garbage_stays_in_its_group(device, small_blocks, garbage) -> None:
    """Even where its neighbours are loaded together with it."""
    features = exact_features(3, 2, 20, 3)
    features[0, 5] = garbage
    features[1, 0] = garbage
    states = torch.randn(2, 20, 5, generator=torch.Generator().manual_seed(4))
    states[:, ::3] = garbage
    indices = torch.tensor([[5, 0, 19, 7, 8, -1], [3, 4, 13, 0, 10, 11]])
    merged = merge_tokens(states.to(device), features.to(device), indices.to(device)).cpu()
    expected = reference.merge_tokens(states, features, indices, None)
    torch.testing.assert_close(merged, expected, rtol=1e-6, atol=1e-6, equal_nan=True)
    clean = merged.isfinite().all(-1)
    assert clean.any() and not clean.all()


def test_nothing_joins_an_unused_slot_not_even_what_resembles_nothing(device) -> None:
    features = torch.full((1, 4, 2), NAN)
    states = torch.tensor([[[1.0], [2.0], [3.0], [6.0]]])
    assert_right(device, states, features, torch.tensor([[-1, 2, -1]]))
    assert_right(device, states, features, torch.tensor([[-1, -1]]))


@pytest.mark.parametrize("index", [4, 20, -2, 2**32 + 1, 2**40, -(2**40)])
def test_an_index_out_of_range_stays_in_bounds(device, small_blocks, index) -> None:
    """Its row is NaN, and what lies in memory there attracts nothing."""
    states = torch.eye(4)[None]
    features = torch.eye(2)[[0, 0, 1, 1, 0, 0]][None, :4]
    merged = unchecked(device, states, features, torch.tensor([[3, index, 2]]), None)
    assert merged[0, 1].isnan().all()
    right = unchecked(device, states, features, torch.tensor([[3, -1, 2]]), None)
    assert torch.equal(merged[0, [0, 2]], right[0, [0, 2]])


def test_a_repeated_index_has_one_group_in_its_first_slot(device, small_blocks) -> None:
    states, features = torch.eye(7)[None], torch.ones(1, 7, 3)
    merged = unchecked(device, states, features, torch.tensor([[6, 2, 2, 6, 3, 2, 6]]), None)
    alone = unchecked(device, states, features, torch.tensor([[6, 2, -1, -1, 3, -1, -1]]), None)
    assert torch.equal(merged, alone)


def test_tokens_none_of_which_is_there(device) -> None:
    empty = torch.empty(2, 0, 3)
    merged = unchecked(device, empty, empty, torch.tensor([[-1, -1], [-1, 0]]), None)
    assert torch.equal(merged[0], torch.zeros(2, 3))
    assert torch.equal(merged[1, 0], torch.zeros(3))
    assert merged[1, 1].isnan().all()
