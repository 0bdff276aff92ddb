"""The contribution of a row of attention to each key it sees, and the sums over rows.

The share of a row is its weight divided by its sum of exponentials. A key receives the share times
exp(logit - largest logit of the row).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .stacked_heads import NOWHERE

LOG2E = tl.constexpr(1.4426950408889634)
# Finite and at most as large as any logit that a row may see, so no difference from it is NaN.
LOWEST = tl.constexpr(-3.4028234663852886e38)


@triton.jit
def _load_weights(p_weights, stride, b_t, m_row):
    return tl.load(p_weights + b_t.to(tl.int64) * stride, mask=m_row, other=0.0).to(tl.float32)


@triton.jit
def weigh(p_weights, stride, b_t, m_row, num_rows, BLOCK_T: tl.constexpr):
    """[BLOCK_M] float32: the weights normalized over the T rows of an image; all NaN if any is
    NaN."""
    if p_weights is None:
        b_weight = tl.where(m_row, 1.0 / num_rows, 0.0)
    else:
        b_largest = tl.full([BLOCK_T], 0.0, tl.float32)
        for first in range(0, num_rows, BLOCK_T):
            b_any = first + tl.arange(0, BLOCK_T)
            b_weight = _load_weights(p_weights, stride, b_any, b_any < num_rows)
            b_largest = tl.maximum(b_largest, b_weight)
        # Divide by the largest weight first, because the sum of large weights would overflow.
        largest = tl.max(b_largest, 0)
        largest = tl.where(largest == 0, 1.0, largest)
        b_total = tl.full([BLOCK_T], 0.0, tl.float32)
        for first in range(0, num_rows, BLOCK_T):
            b_any = first + tl.arange(0, BLOCK_T)
            b_weight = _load_weights(p_weights, stride, b_any, b_any < num_rows)
            b_total += tl.div_rn(b_weight, tl.zeros_like(b_weight) + largest)
        total = tl.sum(b_total, 0)
        total = tl.where(total <= 0, 1.0, total)
        b_weight = _load_weights(p_weights, stride, b_t, m_row)
        b_weight = tl.div_rn(b_weight, tl.zeros_like(b_weight) + largest)
        b_weight = tl.div_rn(b_weight, tl.zeros_like(b_weight) + total)
        # Rows past the end must stay 0 if the weights are NaN.
        b_weight = tl.where(m_row, b_weight, 0.0)
    return b_weight


@triton.jit
def settle(b_weight, b_max, b_sum):
    """Returns the largest logit and the share of each row, from which its columns are computed.

    - A weight of 0 gives a share of 0, whatever the row's logits are.
    - A weight of NaN makes both NaN.
    - Logits of NaN, which the maximum ignores, or of infinity make the share NaN.
    - If no allowed logit is above -inf, the share is infinite, and times 0 it is NaN for the
      allowed keys.
    """
    b_share = tl.where(b_weight == 0, 0.0, tl.div_rn(b_weight, b_sum))
    return tl.where(b_weight == b_weight, b_max, b_weight), b_share


@triton.jit
def counting(b_last, b_max, b_share):
    """The last position that a row contributes to: -1 if its share is 0, all if its weight is
    NaN."""
    b_last = tl.where(b_share == 0, -1, b_last)
    return tl.where(b_max == b_max, b_last, NOWHERE)


@triton.jit
def add_groups(
    p_partial,  # [groups, num_columns], of one image
    p_out,  # [num_columns]
    groups,
    num_columns,
    first_column,
    BLOCK_G: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Adds BLOCK_N columns of all programs of an image, in the order of the programs."""
    b_column = first_column + tl.arange(0, BLOCK_N)
    m_column = (b_column >= 0) & (b_column < num_columns)
    b_sum = tl.full([BLOCK_G, BLOCK_N], 0.0, tl.float32)
    for first in range(0, groups, BLOCK_G):
        b_group = first + tl.arange(0, BLOCK_G)
        b_sum += tl.load(
            p_partial + b_group.to(tl.int64)[:, None] * num_columns + b_column[None, :],
            mask=(b_group < groups)[:, None] & m_column[None, :],
            other=0.0,
            cache_modifier=".cg",
        )
    tl.store(p_out + b_column, tl.sum(b_sum, 0), mask=m_column)
