"""The stacked query heads of a key head: their rows, keys and logits.

Row r of a key head is query row r // group of its query head r % group, so that the last visible
key of causal rows ascends with r. Tiles of logits are transposed, [keys, rows].
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import INTERPRETED as IN_INTERPRETER

# The position of a masked key: after the last key that any row may see.
NOWHERE = tl.constexpr(2**31 - 1)
# The interpreter multiplies the bits of bfloat16 as integers.
UPCAST = tl.constexpr(IN_INTERPRETER)


@triton.jit
def key_tile(p_row, m_row, first_column, stride_feature, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """[rows of p_row, BLOCK_D]; 0 outside the tensor."""
    b_column = first_column + tl.arange(0, BLOCK_D)
    m_tile = m_row[:, None]
    if D % BLOCK_D != 0:
        m_tile = m_tile & (b_column < D)[None, :]
    return tl.load(
        p_row[:, None] + b_column.to(tl.int64)[None, :] * stride_feature, mask=m_tile, other=0.0
    )


@triton.jit
def query_tile(p_row, m_row, first_column, stride_feature, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """[BLOCK_D, rows of p_row]; 0 outside the tensor."""
    b_column = first_column + tl.arange(0, BLOCK_D)
    m_tile = m_row[None, :]
    if D % BLOCK_D != 0:
        m_tile = m_tile & (b_column < D)[:, None]
    return tl.load(
        p_row[None, :] + b_column.to(tl.int64)[:, None] * stride_feature, mask=m_tile, other=0.0
    )


@triton.jit
def key_rows(p_key, i_image, i_head, b_s, strides, UNIT: tl.constexpr):
    b_offset = i_image * strides[0] + i_head * strides[1] + b_s.to(tl.int64) * strides[2]
    return p_key + b_offset * UNIT


@triton.jit
def query_rows(p_query, i_image, i_head, b_row, group, strides, UNIT: tl.constexpr):
    b_head = i_head * group + b_row % group
    b_t = (b_row // group).to(tl.int64)
    return p_query + (i_image * strides[0] + b_head * strides[1] + b_t * strides[2]) * UNIT


@triton.jit
def logits(
    p_key_row,  # [BLOCK_S]
    m_key,
    b_keys,  # [BLOCK_S, BLOCK_D] if the caller holds all features, else None
    p_query_row,  # [BLOCK_M]
    m_row,
    b_queries,  # [BLOCK_D, BLOCK_M] if the caller holds all features, else None
    scale,
    stride_key_feature,
    stride_query_feature,
    D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """[BLOCK_S, BLOCK_M] float32."""
    b_logit = tl.full([BLOCK_S, BLOCK_M], 0.0, tl.float32)
    for first_column in range(0, D, BLOCK_D):
        if b_keys is None:
            b_key = key_tile(p_key_row, m_key, first_column, stride_key_feature, D, BLOCK_D)
        else:
            b_key = b_keys
        if b_queries is None:
            b_query = query_tile(p_query_row, m_row, first_column, stride_query_feature, D, BLOCK_D)
        else:
            b_query = b_queries
        if UPCAST:
            b_key = b_key.to(tl.float32)
            b_query = b_query.to(tl.float32)
        b_logit = tl.dot(b_key, b_query, b_logit, input_precision=PRECISION)
    return b_logit * scale


@triton.jit
def positions(p_valid, i_image, b_s, num_keys, strides):
    """[BLOCK_S] int32: the position of each key, or NOWHERE if it is masked."""
    m_key = b_s < num_keys
    if p_valid is not None:
        p_key = p_valid + i_image * strides[0] + b_s.to(tl.int64) * strides[1]
        m_key = tl.load(p_key, mask=m_key, other=0) != 0
    return tl.where(m_key, b_s, NOWHERE)


@triton.jit
def last_seen(b_row, group, num_rows, num_keys, CAUSAL: tl.constexpr):
    """[BLOCK_M] int32: the last position that each row may see, or -1 for none."""
    b_last = num_keys - 1
    if CAUSAL:
        b_last = num_keys - num_rows + b_row // group
    return tl.where(b_row < group * num_rows, b_last, -1)
