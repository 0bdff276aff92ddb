"""Tiles of an image's cosine similarities: those of one block of tokens to another."""

from __future__ import annotations

import triton
import triton.language as tl

from . import INTERPRETED as IN_INTERPRETER
from .cosine import cosines

INTERPRETED = tl.constexpr(IN_INTERPRETER)


@triton.jit
def pair_of_blocks(i_pair, num_blocks):
    """Numbers the unordered pairs of blocks, ``num_blocks * (num_blocks + 1) // 2`` in all.

    Pairs each block with itself, then with the next block cyclically, and so on up to half way.
    """
    i_row = i_pair % num_blocks
    i_column = (i_row + i_pair // num_blocks) % num_blocks
    return i_row, i_column


@triton.jit
def tile_cosines(
    p_features,  # [N, D] of the image
    p_norm,  # [N'] of the image
    b_row,
    b_column,
    num_tokens,
    stride_token,
    stride_feature,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Returns :func:`clasp_kernels.triton.cosine.cosines` of every row with every column; 0 where
    one is past the last token."""
    p_row = (p_features + b_row.to(tl.int64) * stride_token)[:, None]
    p_column = (p_features + b_column.to(tl.int64) * stride_token)[:, None]
    m_row = (b_row < num_tokens)[:, None]
    m_column = (b_column < num_tokens)[:, None]
    b_dot = tl.zeros((b_row.shape[0], b_column.shape[0]), tl.float32)
    for first in range(0, D, BLOCK_D):
        b_feature = first + tl.arange(0, BLOCK_D)[None, :]
        m_feature = b_feature < D
        b_offset = b_feature.to(tl.int64) * stride_feature
        b_rows = tl.load(p_row + b_offset, mask=m_row & m_feature, other=0.0)
        b_columns = tl.load(p_column + b_offset, mask=m_column & m_feature, other=0.0)
        if INTERPRETED:
            # The interpreter's dot of bfloat16 is garbage.
            b_rows = b_rows.to(tl.float32)
            b_columns = b_columns.to(tl.float32)
        b_dot = tl.dot(b_rows, tl.trans(b_columns), b_dot, input_precision="ieee")
    # Loaded last, so that they take no registers meanwhile.
    b_row_norm = tl.load(p_norm + b_row)
    b_column_norm = tl.load(p_norm + b_column)
    return cosines(b_dot, b_row_norm[:, None], b_column_norm[None, :])
