"""Attention that each key receives, without an attention matrix in memory.

Tiles are transposed, [keys, rows], because tensor cores want the long side of a product in units of
64, and the keys are the long side. The M = T * group rows of the query heads that share a key head
are stacked, so that its keys are loaded once for all of them.

With few keys, a program holds the logits of a block of rows and all keys in registers, and reads
the keys once. For many keys see salience_by_passes.py. In both cases the last program to arrive
adds the sums of all programs in a fixed order.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor, float32, int32

from . import configs
from .arrival import arrives_last
from .attention_shares import LOG2E, LOWEST, add_groups, counting, settle, weigh
from .salience_by_passes import salience_by_passes
from .stacked_heads import key_rows, last_seen, logits, positions, query_rows


@triton.jit(
    do_not_specialize=["num_rows", "num_keys", "start", "num_columns", "row_blocks", "programs"]
)
def _whole_kernel(
    p_query,  # [B, Hkv * group, T, D]
    p_key,  # [B, Hkv, S, D]
    p_valid,  # [B, S] bool, or None
    p_weights,  # [B, T], or None
    p_partial,  # [B, groups, N] float32
    p_counter,  # [B] int32 zeros, or None if there is one group
    p_out,  # [B, N] float32
    scale,
    num_rows,
    num_keys,
    start,
    num_columns,
    row_blocks,  # per program
    key_heads,
    group,
    programs,  # per key head
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
    BLOCK_G: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Processes some rows of one key head with all keys at once."""
    i_program = tl.program_id(0)
    i_group = i_program % (key_heads * programs)
    i_head = (i_group // programs).to(tl.int64)
    i_image = (i_program // (key_heads * programs)).to(tl.int64)

    b_s = tl.arange(0, BLOCK_S)
    p_key_row = key_rows(p_key, i_image, i_head, b_s, key_strides, KEY_UNIT)
    b_position = positions(p_valid, i_image, b_s, num_keys, valid_strides)
    if p_weights is not None:
        p_weights += i_image * weights_strides[0]

    b_total = tl.full([BLOCK_S], 0.0, tl.float32)
    first_block = i_group % programs * row_blocks
    for i_block in range(first_block, first_block + row_blocks):
        b_row = i_block * BLOCK_M + tl.arange(0, BLOCK_M)
        b_t = b_row // group
        m_row = b_row < group * num_rows
        b_last = last_seen(b_row, group, num_rows, num_keys, CAUSAL)
        p_query_row = query_rows(p_query, i_image, i_head, b_row, group, query_strides, QUERY_UNIT)
        b_logit = logits(
            p_key_row,
            b_s < num_keys,
            None,
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
        m_seen = b_position[:, None] <= b_last[None, :]
        b_max = tl.max(tl.where(m_seen, b_logit, LOWEST), 0)
        b_exp = tl.where(m_seen, tl.exp2((b_logit - b_max[None, :]) * LOG2E), 0.0)
        b_weight = weigh(p_weights, weights_strides[1], b_t, m_row, num_rows, BLOCK_T)
        b_max, b_share = settle(b_weight / (key_heads * group), b_max, tl.sum(b_exp, 0))
        m_counts = b_position[:, None] <= counting(b_last, b_max, b_share)[None, :]
        b_total += tl.sum(tl.where(m_counts, b_exp * b_share[None, :], 0.0), 1)

    groups = key_heads * programs
    b_column = b_s - start
    m_column = (b_column >= 0) & (b_column < num_columns)
    p_partial += i_image * groups * num_columns
    p_mine = p_partial + i_group.to(tl.int64) * num_columns
    tl.store(p_mine + b_column, b_total, mask=m_column)
    if p_counter is not None:  # noqa: SIM102 - the inner one is compiled only then
        if arrives_last(p_counter + i_image, groups):
            p_out += i_image * num_columns
            for first in range(0, num_columns, BLOCK_N):
                add_groups(p_partial, p_out, groups, num_columns, first, BLOCK_G, BLOCK_N)


def _unit(heads: Tensor) -> int:
    """The largest power of two, up to 16 bytes of elements, that divides all strides but the last.

    Triton only specializes strides that are multiples of 16. A head dimension of 72 is not one, so
    rows would be loaded element by element. Strides in this unit show the alignment.
    """
    *strides, last = heads.stride()
    return math.gcd(16 // heads.element_size(), *strides) if last == 1 else 1


def _strides_in(unit: int, heads: Tensor) -> tuple[int, ...]:
    *strides, last = heads.stride()
    return (*(stride // unit for stride in strides), last)


def attention_salience(
    query: Tensor,
    key: Tensor,
    scale: float,
    causal: bool,
    key_valid: Tensor | None,
    query_weights: Tensor | None,
    start: int,
    stop: int,
) -> Tensor:
    batch, query_heads, num_rows, dim = query.shape
    key_heads, num_keys = key.shape[1:3]
    columns = stop - start
    out = query.new_empty((batch, columns), dtype=float32)
    if batch == 0:
        return out
    group = query_heads // key_heads
    tiles = configs.attention_salience(
        num_keys, group * num_rows, dim, key_heads, query.element_size()
    )
    query_unit, key_unit = _unit(query), _unit(key)
    strides = (
        _strides_in(query_unit, query),
        _strides_in(key_unit, key),
        (0, 0) if key_valid is None else key_valid.stride(),
        (0, 0) if query_weights is None else query_weights.stride(),
    )
    options = {
        "D": dim,
        "CAUSAL": causal,
        "PRECISION": tiles.precision,
        "QUERY_UNIT": query_unit,
        "KEY_UNIT": key_unit,
        "BLOCK_S": tiles.keys,
        "BLOCK_M": tiles.rows,
        "BLOCK_D": tiles.features,
        "num_warps": tiles.num_warps,
        "num_stages": tiles.num_stages,
    }
    if tiles.splits > 0:
        salience_by_passes(
            query, key, scale, key_valid, query_weights, start, out, tiles, strides, options
        )
        return out
    programs = triton.cdiv(triton.cdiv(group * num_rows, tiles.rows), tiles.row_blocks)
    groups = key_heads * programs
    one = groups == 1
    _whole_kernel[(batch * groups,)](
        query,
        key,
        key_valid,
        query_weights,
        out if one else out.new_empty((batch, groups, columns)),
        None if one else out.new_zeros((batch,), dtype=int32),
        out,
        scale,
        num_rows,
        num_keys,
        start,
        columns,
        tiles.row_blocks,
        key_heads,
        group,
        programs,
        *strides,
        BLOCK_T=1024,
        BLOCK_G=16,
        BLOCK_N=256,
        **options,
    )
    return out
