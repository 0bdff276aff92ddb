"""Selects the most salient tokens of each image in one launch.

For few tokens, every program counts the ranks of its own tokens and thereby knows their places: N^2
comparisons, shared by all multiprocessors. For many tokens, one program per image finds the best
ones by bisection, which does not order them, and then sorts only those.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .order import RANK_OF_INVALID, RETIRED, index_of, ranked
from .ranking import counted_ranks, is_candidate, salience_keys, salience_ranks


@triton.jit
def _wanted(p_k, i_image, stride_k, num_pivots, HAS_K: tl.constexpr):
    """The number of pivots that the image asks for, clamped to 0..num_pivots."""
    wanted = num_pivots
    if HAS_K:
        k = tl.load(p_k + i_image * stride_k)
        wanted = tl.minimum(tl.maximum(k, 0), num_pivots).to(tl.int32)
    return wanted


@triton.jit(do_not_specialize=["num_tokens", "num_pivots"])
def _count_kernel(
    p_salience,  # [B, N]
    p_k,  # [B] int64
    p_valid,  # [B, N] bool
    p_out,  # [B, K] contiguous
    num_tokens,
    num_pivots,
    stride_image,
    stride_token,
    stride_k,
    stride_valid_image,
    stride_valid,
    HAS_K: tl.constexpr,
    HAS_VALID: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    blocks = tl.cdiv(tl.maximum(num_tokens, num_pivots), BLOCK_T)
    i_image = (tl.program_id(0) // blocks).to(tl.int64)
    b_token = tl.program_id(0) % blocks * BLOCK_T + tl.arange(0, BLOCK_T)
    p_salience += i_image * stride_image
    p_valid += i_image * stride_valid_image
    wanted = _wanted(p_k, i_image, stride_k, num_pivots, HAS_K)

    b_key = salience_keys(
        p_salience, p_valid, b_token, num_tokens, stride_token, stride_valid, HAS_VALID
    )
    b_rank = counted_ranks(
        b_key, p_salience, p_valid, num_tokens, stride_token, stride_valid, HAS_VALID, BLOCK_N
    )
    # Every slot has exactly one writer: the token of that rank, whether chosen or not. Slots past
    # the last token are written by the thread of the nonexistent token of that index.
    b_slot = tl.where(b_token < num_tokens, b_rank, b_token)
    b_pivot = tl.where(is_candidate(b_key) & (b_rank < wanted), b_token, -1)
    p_slot = p_out + i_image * num_pivots + b_slot
    tl.store(p_slot, b_pivot.to(tl.int64), mask=b_slot < num_pivots)


# Strides are not specialized. A token stride known to be 1 would make each thread load several
# neighbors, in another layout than one column per thread, and converting the layout of a whole
# image takes more shared memory than some GPUs have. The other strides are only used once.
@triton.jit(
    do_not_specialize=[
        "num_tokens",
        "num_pivots",
        "stride_image",
        "stride_token",
        "stride_k",
        "stride_valid_image",
        "stride_valid",
    ]
)
def _sort_kernel(
    p_salience,  # [B, N]
    p_k,  # [B] int64
    p_valid,  # [B, N] bool
    p_out,  # [B, K] contiguous
    num_tokens,
    num_pivots,
    stride_image,
    stride_token,
    stride_k,
    stride_valid_image,
    stride_valid,
    HAS_K: tl.constexpr,
    HAS_VALID: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    i_image = tl.program_id(0).to(tl.int64)
    p_salience += i_image * stride_image
    p_valid += i_image * stride_valid_image
    p_slots = p_out + i_image * num_pivots
    # All tokens of the image, one column per thread.
    b_token = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    b_order = tl.arange(0, BLOCK_K)
    wanted = _wanted(p_k, i_image, stride_k, num_pivots, HAS_K)

    b_rank = salience_ranks(
        p_salience, p_valid, b_token, num_tokens, stride_token, stride_valid, HAS_VALID
    )  # [ROWS, COLUMNS]
    available = tl.sum((b_rank != RANK_OF_INVALID).to(tl.int32))
    wanted = tl.minimum(wanted, available)

    # One round, unless more pivots are wanted than are sorted at once.
    for done in range(0, wanted, BLOCK_K):
        take = tl.minimum(wanted - done, BLOCK_K)
        m_take = _best(b_rank, b_token, take, available - done, num_tokens)
        b_before = tl.cumsum(m_take.to(tl.int32), axis=0)
        b_column = tl.sum(m_take.to(tl.int32), axis=0)
        b_slot = (tl.cumsum(b_column) - b_column)[None, :] + b_before - 1
        p_block = p_slots + done
        tl.store(p_block + b_slot, ranked(b_rank, b_token), mask=m_take)
        b_rank = tl.where(m_take, RANK_OF_INVALID, b_rank)

        # Keys are stored in the slots of their indices. The barriers are needed because the keys
        # are written by some threads, and read and overwritten by others.
        tl.debug_barrier()
        b_key = tl.load(p_block + b_order, mask=b_order < take, other=RETIRED)  # [BLOCK_K]
        tl.debug_barrier()
        tl.store(p_block + b_order, index_of(tl.sort(b_key)), mask=b_order < take)

    for first in range(wanted, num_pivots, BLOCK_K):
        b_slot = first + b_order
        tl.store(p_slots + b_slot, tl.full((BLOCK_K,), -1, tl.int64), mask=b_slot < num_pivots)


@triton.jit
def _best(b_rank, b_token, take, available, num_tokens):
    """The mask of the ``take`` tokens with the smallest ranks, ties to the lower token.

    ``available`` tokens have a rank below RANK_OF_INVALID, and 1 <= take <= available. Uses counts
    only, so the order of the block does not matter.
    """
    # Invariant: the rank at which the count reaches `take` is in lowest..highest. `below` tokens
    # have a rank < lowest, and `reached` tokens a rank <= highest.
    lowest = tl.min(b_rank)
    highest = tl.max(tl.where(b_rank == RANK_OF_INVALID, lowest, b_rank))
    below = 0
    reached = available
    while (lowest < highest) & (reached != take):
        middle = (lowest & highest) + ((lowest ^ highest) >> 1)  # the mean, without overflow
        count = tl.sum((b_rank <= middle).to(tl.int32))
        enough = count >= take
        highest = tl.where(enough, middle, highest)
        reached = tl.where(enough, count, reached)
        lowest = tl.where(enough, lowest, middle + 1)
        below = tl.where(enough, below, count)

    # If too many tokens are left, they all have the same rank, and the lowest tokens are taken.
    m_last = (b_rank >= lowest) & (b_rank <= highest)
    first = 0
    bound = num_tokens - 1
    while (first < bound) & (reached != take):
        middle = (first + bound) >> 1
        count = below + tl.sum((m_last & (b_token <= middle)).to(tl.int32))
        enough = count >= take
        bound = tl.where(enough, middle, bound)
        reached = tl.where(enough, count, reached)
        first = tl.where(enough, first, middle + 1)
    return (b_rank < lowest) | (m_last & (b_token <= bound))


def select_pivots(
    salience: Tensor, num_pivots: int, k: Tensor | None, valid: Tensor | None
) -> Tensor:
    batch, num_tokens = salience.shape
    pivots = salience.new_empty((batch, num_pivots), dtype=torch.int64)
    if pivots.numel() == 0:
        return pivots
    arguments = (
        salience,
        salience if k is None else k,
        salience if valid is None else valid,
        pivots,
        num_tokens,
        num_pivots,
        *salience.stride(),
        0 if k is None else k.stride(0),
        *((0, 0) if valid is None else valid.stride()),
        k is not None,
        valid is not None,
    )
    config = configs.select_pivots(num_tokens, num_pivots)
    if isinstance(config, configs.CountBlocks):
        blocks = triton.cdiv(max(num_tokens, num_pivots), config.tokens)
        _count_kernel[(batch * blocks,)](
            *arguments,
            BLOCK_T=config.tokens,
            BLOCK_N=config.others,
            num_warps=config.num_warps,
        )
    else:
        _sort_kernel[(batch,)](
            *arguments,
            ROWS=config.rows,
            COLUMNS=config.columns,
            BLOCK_K=config.pivots,
            num_warps=config.num_warps,
        )
    return pivots
