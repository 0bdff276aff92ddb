"""What only the Triton kernels of select_pivots have: two ways to it, blocks and their edges."""

from __future__ import annotations

import oracle
import pytest
import torch
from inputs import generator, random_mask
from torch import Tensor

from clasp_kernels import select_pivots
from clasp_kernels.triton import configs
from clasp_kernels.triton.configs import CountBlocks, SortBlocks

OP = "select_pivots"
NAN, INF = float("nan"), float("inf")
SMALLEST = 2.0**-149

# Smaller than they would be, so that a few tokens fill several of them.
BLOCKS = {
    "counted": CountBlocks(16, 32, 1),
    "sorted by 16": SortBlocks(4, 16, 16, 1),
    "sorted by 8": SortBlocks(2, 32, 8, 1),
}
EVERY_WAY = pytest.mark.parametrize("blocks", BLOCKS.values(), ids=BLOCKS, indirect=True)


@pytest.fixture
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configs, OP, lambda num_tokens, num_pivots: request.param)


def assert_right(
    device: str, salience: Tensor, k: int | list[int], valid: Tensor | None = None
) -> None:
    there = None if valid is None else valid.to(device)
    pivots = select_pivots(salience.to(device), k, valid=there)
    assert torch.equal(pivots.cpu(), oracle.select_pivots(salience, k, valid))


@EVERY_WAY
@pytest.mark.parametrize("tokens", [1, 15, 33, 63, 64])
def test_any_number_of_tokens(device, blocks, tokens) -> None:
    salience = torch.randn(2, tokens, generator=generator(tokens))
    assert_right(device, salience, tokens)
    assert_right(device, salience, [tokens // 2, 1], random_mask(tokens, 2, tokens))


@EVERY_WAY
@pytest.mark.parametrize("k", [1, 8, 9, 17, 40, 70])
def test_any_number_of_pivots(device, blocks, k) -> None:
    """Of 40 tokens: as many as are sorted at once, one more, and more than there are."""
    salience = torch.randn(2, 40, generator=generator(k))
    assert_right(device, salience, k)
    assert_right(device, salience, [k, k // 3], random_mask(k, 2, 40))


@EVERY_WAY
@pytest.mark.parametrize("value", [0.0, NAN, -INF])
def test_equal_tokens_go_by_index(device, blocks, value) -> None:
    assert_right(device, torch.full((1, 50), value), 21)
    assert_right(device, torch.full((2, 50), value), [50, 7], random_mask(1, 2, 50))


@EVERY_WAY
def test_no_token_is_valid(device, blocks) -> None:
    assert_right(device, torch.randn(2, 50), [20, 3], torch.zeros(2, 50, dtype=torch.bool))
    assert_right(device, torch.full((1, 50), NAN), 20, torch.zeros(1, 50, dtype=torch.bool))


@EVERY_WAY
@pytest.mark.parametrize("seed", range(2))
def test_few_values_and_every_special_one(device, blocks, seed) -> None:
    """So that ties run across blocks of tokens, and across what is sorted at once."""
    largest = torch.finfo(torch.float32).max
    values = torch.tensor(
        [NAN, INF, -INF, -1.0, -0.0, 0.0, SMALLEST, -SMALLEST, 2 * SMALLEST, largest, -largest, 1.5]
    )
    salience = values[torch.randint(len(values), (2, 60), generator=generator(seed))]
    assert_right(device, salience, 60)
    assert_right(device, salience, [9 + 11 * seed, 30], random_mask(seed, 2, 60))


@EVERY_WAY
def test_neighbouring_values_at_both_ends_of_the_range(device, blocks) -> None:
    """Bisection has to tell the last bit, over a range that int32 differences overflow."""
    bits = torch.tensor([0x7F7FFFFF - 2, 0x7F7FFFFF - 1, 0x7F7FFFFF, 1, 2, 3], dtype=torch.int32)
    numbers = bits.view(torch.float32)
    values = torch.cat([numbers, -numbers, torch.tensor([INF, -INF, NAN])])
    salience = values.repeat(4)[torch.randperm(60, generator=generator(0))][None]
    for k in (5, 31):
        assert_right(device, salience, k)


@EVERY_WAY
def test_nan_of_any_sign_and_payload_ranks_the_same(device, blocks) -> None:
    bits = torch.tensor([-1, 0x7FC00000, 0x7F800001, -0x400000, 0x7FFFFFFF], dtype=torch.int32)
    salience = torch.cat([bits.view(torch.float32), torch.tensor([-INF, 0.0])])[None]
    assert salience.isnan().sum() == 5
    pivots = select_pivots(salience.to(device), 7)
    assert pivots.tolist() == [[6, 5, 0, 1, 2, 3, 4]]


@EVERY_WAY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_strided_halves(device, blocks, dtype) -> None:
    salience = torch.randn(60, 2, 2, generator=generator(3)).to(dtype)[..., 1].t()
    valid = random_mask(4, 60, 2, 3)[..., 1].t()
    assert_right(device, salience, [30, 9], valid)


@EVERY_WAY
def test_counts_that_only_the_torch_op_lets_through(device, blocks) -> None:
    """Nothing has checked these: they are cut to 0..K."""
    k = torch.stack([torch.tensor([9, -3, 2]), torch.zeros(3, dtype=torch.int64)], 1)[:, 0]
    salience = torch.tensor([1.0, 3.0, 2.0]).expand(3, 3)
    pivots = torch.ops.clasp_kernels.select_pivots.triton(
        salience.to(device), 2, k.to(device), None
    )
    assert pivots.tolist() == [[1, 2], [-1, -1], [1, 2]]


@pytest.mark.parametrize("tokens", [0, 1, 576, 1024, 1025, 2880, 8192, 16384, 16385, 100_000])
@pytest.mark.parametrize("k", [1, 63, 64, 65, 5000, 200_000])
def test_blocks_hold_the_tokens_and_fit_the_kernels(tokens, k) -> None:
    blocks = configs.select_pivots(tokens, k)
    if isinstance(blocks, SortBlocks):
        assert tokens <= blocks.rows * blocks.columns
        assert blocks.columns == 32 * blocks.num_warps
    assert all(size & (size - 1) == 0 for size in blocks)


def test_an_image_of_1025_tokens_is_sorted(device) -> None:
    """With the blocks that it really gets."""
    salience = torch.randint(-9, 9, (1, 1025), generator=generator(5)).float()
    assert isinstance(configs.select_pivots(1025, 40), SortBlocks)
    assert_right(device, salience, 40)
