"""Attention salience for more keys than a program can hold the logits of; computes them twice.

The first kernel finds the largest logit and the share of each row, with the keys split over
programs. The second computes the logits again, in blocks of keys, and sums the contributions of the
rows. The last program to arrive combines the splits of a block of rows in the first kernel, and the
heads of a block of keys in the second.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor, int32

from .arrival import arrives_last
from .attention_shares import LOG2E, LOWEST, add_groups, counting, settle, weigh
from .configs import SalienceTiles
from .stacked_heads import (
    key_rows,
    key_tile,
    last_seen,
    logits,
    positions,
    query_rows,
    query_tile,
)


@triton.jit(do_not_specialize=["num_rows", "num_keys", "keys_per_split", "splits", "row_blocks"])
def _statistics_kernel(
    p_query,  # [B, Hkv * group, T, D]
    p_key,  # [B, Hkv, S, D]
    p_valid,  # [B, S] bool, or None
    p_weights,  # [B, T], or None
    p_split,  # [B, Hkv, splits, 2, M] float32, or None if there is one split
    p_counter,  # [B, Hkv, row_blocks] int32 zeros, or None
    p_statistic,  # [B, Hkv, 2, M] float32: the largest logit and the share of each row
    scale,
    num_rows,
    num_keys,
    keys_per_split,  # a multiple of BLOCK_S
    splits,
    row_blocks,  # per key head
    key_heads,
    group,
    query_strides,  # in units of QUERY_UNIT elements, except the feature stride
    key_strides,  # in units of KEY_UNIT elements, except the feature stride
    valid_strides,
    weights_strides,
    D: tl.constexpr,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
    QUERY_UNIT: tl.constexpr,
    KEY_UNIT: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_SPLIT: tl.constexpr,
):
    """Processes a block of rows and one split of the keys; the last program combines the splits."""
    i_program = tl.program_id(0)
    i_split = i_program % splits
    i_block = i_program // splits % row_blocks
    i_pair = (i_program // (splits * row_blocks)).to(tl.int64)  # image and key head
    i_head = i_pair % key_heads
    i_image = i_pair // key_heads

    stacked = group * num_rows
    b_row = i_block * BLOCK_M + tl.arange(0, BLOCK_M)
    b_t = b_row // group
    m_row = b_row < stacked
    b_last = last_seen(b_row, group, num_rows, num_keys, CAUSAL)
    p_query_row = query_rows(p_query, i_image, i_head, b_row, group, query_strides, QUERY_UNIT)
    first_key = i_split * keys_per_split
    end = tl.minimum(first_key + keys_per_split, num_keys)
    if CAUSAL:
        end = tl.minimum(end, tl.max(b_last, 0) + 1)

    b_max = tl.full([BLOCK_M], LOWEST, tl.float32)
    b_sum = tl.full([BLOCK_M], 0.0, tl.float32)
    b_query = None
    if D <= BLOCK_D:
        b_query = query_tile(p_query_row, m_row, 0, query_strides[3], D, BLOCK_D)
    for first in range(first_key, end, BLOCK_S):
        b_s = first + tl.arange(0, BLOCK_S)
        p_key_row = key_rows(p_key, i_image, i_head, b_s, key_strides, KEY_UNIT)
        b_logit = logits(
            p_key_row,
            b_s < num_keys,
            None,
            p_query_row,
            m_row,
            b_query,
            scale,
            key_strides[3],
            query_strides[3],
            D,
            BLOCK_S,
            BLOCK_M,
            BLOCK_D,
            PRECISION,
        )
        b_position = positions(p_valid, i_image, b_s, num_keys, valid_strides)
        m_seen = b_position[:, None] <= b_last[None, :]
        b_largest = tl.maximum(b_max, tl.max(tl.where(m_seen, b_logit, LOWEST), 0))
        b_exp = tl.where(m_seen, tl.exp2((b_logit - b_largest[None, :]) * LOG2E), 0.0)
        b_sum = b_sum * tl.exp2((b_max - b_largest) * LOG2E) + tl.sum(b_exp, 0)
        b_max = b_largest

    settles = True
    if p_split is not None:
        p_pair = p_split + i_pair * splits * 2 * stacked
        p_mine = p_pair + i_split.to(tl.int64) * 2 * stacked + b_row
        tl.store(p_mine, b_max, mask=m_row)
        tl.store(p_mine + stacked, b_sum, mask=m_row)
        settles = arrives_last(p_counter + i_pair * row_blocks + i_block, splits)
        if settles:
            b_max = tl.full([BLOCK_M], LOWEST, tl.float32)
            b_sum = tl.full([BLOCK_M], 0.0, tl.float32)
            for first in range(0, splits, BLOCK_SPLIT):
                b_split = first + tl.arange(0, BLOCK_SPLIT)
                m_split = (b_split < splits)[:, None] & m_row[None, :]
                p_other = p_pair + b_split.to(tl.int64)[:, None] * 2 * stacked + b_row[None, :]
                b_maxima = tl.load(p_other, mask=m_split, other=LOWEST, cache_modifier=".cg")
                b_sums = tl.load(p_other + stacked, mask=m_split, other=0.0, cache_modifier=".cg")
                b_largest = tl.maximum(b_max, tl.max(b_maxima, 0))
                b_sums *= tl.exp2((b_maxima - b_largest[None, :]) * LOG2E)
                b_sum = b_sum * tl.exp2((b_max - b_largest) * LOG2E) + tl.sum(b_sums, 0)
                b_max = b_largest
    if settles:
        if p_weights is not None:
            p_weights += i_image * weights_strides[0]
        b_weight = weigh(p_weights, weights_strides[1], b_t, m_row, num_rows, BLOCK_T)
        b_max, b_share = settle(b_weight / (key_heads * group), b_max, b_sum)
        p_row = p_statistic + i_pair * 2 * stacked + b_row
        tl.store(p_row, b_max, mask=m_row)
        tl.store(p_row + stacked, b_share, mask=m_row)


@triton.jit(do_not_specialize=["num_rows", "num_keys", "start", "num_columns"])
def _columns_kernel(
    p_query,  # [B, Hkv * group, T, D]
    p_key,  # [B, Hkv, S, D]
    p_valid,  # [B, S] bool, or None
    p_statistic,  # [B, Hkv, 2, M] float32
    p_partial,  # [B, Hkv, N] float32
    p_counter,  # [B, blocks of keys] int32 zeros, or None if there is one key head
    p_out,  # [B, N] float32
    scale,
    num_rows,
    num_keys,
    start,
    num_columns,
    key_heads,
    group,
    query_strides,  # in units of QUERY_UNIT elements, except the feature stride
    key_strides,  # in units of KEY_UNIT elements, except the feature stride
    valid_strides,
    D: tl.constexpr,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
    QUERY_UNIT: tl.constexpr,
    KEY_UNIT: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """Processes a block of keys of one key head with all rows."""
    # Blocks begin at multiples of BLOCK_S, not at `start`, so that no bit depends on the reported
    # range.
    first_key_block = start // BLOCK_S
    key_blocks = (start + num_columns - 1) // BLOCK_S - first_key_block + 1
    # Programs of the heads of a block are adjacent, so that the last to arrive finds their sums in
    # cache.
    i_program = tl.program_id(0)
    i_head = (i_program % key_heads).to(tl.int64)
    i_block = i_program // key_heads % key_blocks
    i_image = (i_program // (key_heads * key_blocks)).to(tl.int64)

    first_key = (first_key_block + i_block) * BLOCK_S
    b_s = first_key + tl.arange(0, BLOCK_S)
    p_key_row = key_rows(p_key, i_image, i_head, b_s, key_strides, KEY_UNIT)
    b_key = None
    if D <= BLOCK_D:
        b_key = key_tile(p_key_row, b_s < num_keys, 0, key_strides[3], D, BLOCK_D)
    b_position = positions(p_valid, i_image, b_s, num_keys, valid_strides)
    stacked = group * num_rows
    p_statistic += (i_image * key_heads + i_head) * 2 * stacked

    first_row = 0
    if CAUSAL:  # earlier rows see none of these keys
        first_row = tl.maximum(first_key - (num_keys - num_rows), 0) * group // BLOCK_M * BLOCK_M
    b_total = tl.full([BLOCK_S], 0.0, tl.float32)
    for first in range(first_row, stacked, BLOCK_M):
        b_row = first + tl.arange(0, BLOCK_M)
        m_row = b_row < stacked
        p_query_row = query_rows(p_query, i_image, i_head, b_row, group, query_strides, QUERY_UNIT)
        b_logit = logits(
            p_key_row,
            b_s < num_keys,
            b_key,
            p_query_row,
            m_row,
            None,
            scale,
            key_strides[3],
            query_strides[3],
            D,
            BLOCK_S,
            BLOCK_M,
            BLOCK_D,
            PRECISION,
        )
        b_max = tl.load(p_statistic + b_row, mask=m_row, other=0.0)
        b_share = tl.load(p_statistic + stacked + b_row, mask=m_row, other=0.0)
        b_last = last_seen(b_row, group, num_rows, num_keys, CAUSAL)
        m_counts = b_position[:, None] <= counting(b_last, b_max, b_share)[None, :]
        b_part = tl.exp2((b_logit - b_max[None, :]) * LOG2E) * b_share[None, :]
        b_total += tl.sum(tl.where(m_counts, b_part, 0.0), 1)

    b_column = b_s - start
    m_column = (b_column >= 0) & (b_column < num_columns)
    p_partial += i_image * key_heads * num_columns
    tl.store(p_partial + i_head * num_columns + b_column, b_total, mask=m_column)
    if p_counter is not None:  # noqa: SIM102 - the inner one is compiled only then
        if arrives_last(p_counter + i_image * key_blocks + i_block, key_heads):
            p_out += i_image * num_columns
            first_column = first_key - start
            add_groups(p_partial, p_out, key_heads, num_columns, first_column, BLOCK_G, BLOCK_S)


def salience_by_passes(
    query: Tensor,
    key: Tensor,
    scale: float,
    key_valid: Tensor | None,
    query_weights: Tensor | None,
    start: int,
    out: Tensor,
    tiles: SalienceTiles,
    strides: tuple[tuple[int, ...], ...],
    options: dict[str, Any],
) -> None:
    """``strides`` are those of query, key, key_valid and query_weights; ``options`` go to both
    kernels."""
    batch, query_heads, num_rows = query.shape[:3]
    key_heads, num_keys = key.shape[1:3]
    columns = out.shape[1]
    group = query_heads // key_heads
    stacked = group * num_rows
    row_blocks = triton.cdiv(stacked, tiles.rows)
    keys_per_split = triton.cdiv(triton.cdiv(num_keys, tiles.keys), tiles.splits) * tiles.keys
    splits = triton.cdiv(num_keys, keys_per_split)
    key_blocks = (start + columns - 1) // tiles.keys - start // tiles.keys + 1
    pairs = batch * key_heads
    # The counters of the second kernel begin at a multiple of 16 bytes. Another alignment would
    # trigger another compilation for some batch sizes.
    first_counter = triton.cdiv(pairs * row_blocks, 4) * 4
    counters = out.new_zeros((first_counter + batch * key_blocks,), dtype=int32)
    statistic = out.new_empty((batch, key_heads, 2, stacked))
    one = splits == 1
    _statistics_kernel[(pairs * row_blocks * splits,)](
        query,
        key,
        key_valid,
        query_weights,
        None if one else out.new_empty((batch, key_heads, splits, 2, stacked)),
        None if one else counters,
        statistic,
        scale,
        num_rows,
        num_keys,
        keys_per_split,
        splits,
        row_blocks,
        key_heads,
        group,
        *strides,
        BLOCK_T=1024,
        BLOCK_SPLIT=16,
        **options,
    )
    one = key_heads == 1
    _columns_kernel[(pairs * key_blocks,)](
        query,
        key,
        key_valid,
        statistic,
        out if one else out.new_empty((batch, key_heads, columns)),
        None if one else counters[first_counter:],
        out,
        scale,
        num_rows,
        num_keys,
        start,
        columns,
        key_heads,
        group,
        *strides[:3],
        BLOCK_G=16,
        **options,
    )
