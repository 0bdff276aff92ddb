"""The coverage of each token of a batch and its flags: the input and output of completion.

Similarities are stored as int32 of the same order (:mod:`clasp_kernels.triton.order`). Coverage is
then a maximum of integers, which does not depend on the order of the operands.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor, float32, int8, int32

from . import configs
from .cosine import norms
from .order import RANK_OF_INVALID

# Coverage of a token that nothing covers, and of a token that must not be picked (any more). TAKEN
# is the rank of invalid tokens.
UNCOVERED = tl.constexpr(-(2**31))
TAKEN = RANK_OF_INVALID

# Bits of a token's flags.
SELECTED = tl.constexpr(1)
VALID = tl.constexpr(2)


class Tokens(NamedTuple):
    """The state of each token, written by the op's own kernel; N' is N padded to whole tiles."""

    norm: Tensor
    """[B, N'] float32; 0 past the last token."""
    covered: Tensor
    """[B, N'] int32: UNCOVERED, or TAKEN if selected, invalid or past the last token."""
    flags: Tensor
    """[B, N'] int8: SELECTED | VALID, 0 past the last token."""
    steps: Tensor
    """[B] int32: the number of picks to make, if enough tokens are left."""
    arrivals: Tensor
    """[B] int32: 0."""


def empty_tokens(features: Tensor, config: configs.Completion) -> Tokens:
    batch = features.shape[0]
    shape = (batch, config.padded)
    return Tokens(
        features.new_empty(shape, dtype=float32),
        features.new_empty(shape, dtype=int32),
        features.new_empty(shape, dtype=int8),
        features.new_empty((batch,), dtype=int32),
        features.new_empty((batch,), dtype=int32),
    )


class Outputs(NamedTuple):
    """Either the picks in order, or the selection sorted by index; [B, R], ``counts`` [B]."""

    picks: Tensor | None = None
    indices: Tensor | None = None
    is_pivot: Tensor | None = None
    counts: Tensor | None = None


@triton.jit
def write_token(
    p_features,  # [N, D] of the image
    p_norm,  # [N'] of the image, as all below
    p_covered,
    p_flags,
    b_token,
    m_selected,
    m_valid,
    m_taken,
    with_norm,
    num_tokens,
    stride_token,
    stride_feature,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Fills in :class:`Tokens` for a block of tokens. Reads the features only if ``with_norm``."""
    tl.store(p_covered + b_token, tl.where(m_taken, TAKEN, UNCOVERED))
    b_flags = tl.where(m_selected, SELECTED, 0) | tl.where(m_valid, VALID, 0)
    tl.store(p_flags + b_token, b_flags.to(tl.int8))
    if with_norm:
        p_row = p_features + b_token.to(tl.int64) * stride_token
        b_square_sum = tl.zeros((b_token.shape[0], BLOCK_D), tl.float32)
        for first in range(0, D, BLOCK_D):
            b_column = (first + tl.arange(0, BLOCK_D)).to(tl.int64)
            b_feature = tl.load(
                p_row[:, None] + b_column[None, :] * stride_feature,
                mask=(b_token < num_tokens)[:, None] & (b_column < D)[None, :],
                other=0.0,
            ).to(tl.float32)
            b_square_sum += b_feature * b_feature
        tl.store(p_norm + b_token, norms(tl.sum(b_square_sum, axis=1)))


@triton.jit
def write_selection(
    p_covered,  # [N'] of the image, as is the next
    p_flags,
    p_indices,  # [R]
    p_is_pivot,  # [R]
    p_count,  # []
    num_padded,
    num_slots,
    BLOCK: tl.constexpr,
):
    """Writes the valid tokens that are TAKEN, sorted by index."""
    num_kept = 0
    for first in range(0, num_padded, BLOCK):
        b_token = first + tl.arange(0, BLOCK)
        m_token = b_token < num_padded
        b_covered = tl.load(p_covered + b_token, mask=m_token, other=0, cache_modifier=".cg")
        b_flags = tl.load(p_flags + b_token, mask=m_token, other=0)
        m_kept = (b_covered == TAKEN) & ((b_flags & VALID) != 0)
        b_kept = m_kept.to(tl.int32)
        b_slot = num_kept + tl.cumsum(b_kept, 0) - 1
        tl.store(p_indices + b_slot, b_token.to(tl.int64), mask=m_kept)
        tl.store(p_is_pivot + b_slot, (b_flags & SELECTED) != 0, mask=m_kept)
        num_kept += tl.sum(b_kept)
    tl.store(p_count, num_kept)
    for first in range(num_kept, num_slots, BLOCK):
        b_slot = first + tl.arange(0, BLOCK)
        tl.store(p_indices + b_slot, -1, mask=b_slot < num_slots)
        tl.store(p_is_pivot + b_slot, False, mask=b_slot < num_slots)
