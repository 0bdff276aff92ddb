"""Ranking keys: a value and an index packed into one integer; the smallest key is the best.

"Better value, ties to the lower index" is a single int64 comparison with a defined order for NaN,
and the best of many candidates is a minimum that does not depend on their order. As in
csrc/shared/order.h, but signed, because Triton's reductions compare signed integers.
"""

from __future__ import annotations

import triton
import triton.language as tl

# No candidate: larger than any candidate's key.
RETIRED = tl.constexpr(2**63 - 1)
RANK_OF_NAN = tl.constexpr(2**31 - 2)
RANK_OF_INVALID = tl.constexpr(2**31 - 1)
_SIGN = tl.constexpr(-(2**31))
_ALL_BUT_SIGN = tl.constexpr(2**31 - 1)


@triton.jit
def ordered_bits(b_value):
    """Maps float32 to int32 of the same order; -0 and 0 map to the same integer. Not for NaN."""
    b_bits = b_value.to(tl.int32, bitcast=True)
    b_bits = tl.where(b_bits == _SIGN, 0, b_bits)
    return tl.where(b_bits < 0, b_bits ^ _ALL_BUT_SIGN, b_bits)


@triton.jit
def from_ordered_bits(b_bits):
    """The inverse of :func:`ordered_bits`."""
    b_bits = tl.where(b_bits < 0, b_bits ^ _ALL_BUT_SIGN, b_bits)
    return b_bits.to(tl.float32, bitcast=True)


@triton.jit
def descending_rank(b_value, m_valid):
    """int32 ranks: the largest float32 first, then NaN, then invalid tokens."""
    b_rank = tl.where(b_value != b_value, RANK_OF_NAN, ~ordered_bits(b_value))
    return tl.where(m_valid, b_rank, RANK_OF_INVALID)


@triton.jit
def ranked(b_rank, b_index):
    """A key: the smallest rank first, ties to the lower index (0..2^31-1)."""
    return (b_rank.to(tl.int64) << 32) | b_index.to(tl.int64)


@triton.jit
def index_of(b_key):
    return b_key & 0xFFFFFFFF


@triton.jit
def rank_of(b_key):
    return (b_key >> 32).to(tl.int32)
