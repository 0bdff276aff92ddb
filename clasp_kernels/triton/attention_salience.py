"""How much attention falls on each key, without an attention matrix in memory.

Tiles are transposed, [keys, rows]: keys are the long side, and it is the long side of a product
that tensor cores want in units of 64. The M = T * group rows of the query heads that share a key
head are stacked, so that its keys are loaded once for all of them.

Few keys: a program holds the logits of a block of rows with all keys in registers, and reads the
keys once. Many keys: one kernel finds each row's largest logit and share (its weight over its sum
of exponentials), the keys split over programs; another computes the logits again, in blocks of
keys, and adds up the shares. Either way the sums of several programs are added in a fixed order by
the one that arrives last.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor, float32, int32

from . import configs
from .arrival import arrives_last
from .stacked_heads import (
    NOWHERE,
    key_rows,
    key_tile,
    last_seen,
    positions,
    product,
    product_in_chunks,
    query_rows,
    query_tile,
)

LOG2E = tl.constexpr(1.4426950408889634)
# Less than or equal to every logit that a row may see, and finite: no difference from it is NaN.
LOWEST = tl.constexpr(-3.4028234663852886e38)


@triton.jit
def _load_weights(p_weights, stride, b_t, m_row):
    return tl.load(p_weights + b_t.to(tl.int64) * stride, mask=m_row, other=0.0).to(tl.float32)


@triton.jit
def _weights(p_weights, stride, b_t, m_row, num_rows, BLOCK_T: tl.constexpr):
    """[BLOCK_M] float32 of one image, summing to 1 over its T rows; all NaN if any is."""
    if p_weights is None:
        b_weight = tl.where(m_row, 1.0 / num_rows, 0.0)
    else:
        b_largest = tl.full([BLOCK_T], 0.0, tl.float32)
        for first in range(0, num_rows, BLOCK_T):
            b_any = first + tl.arange(0, BLOCK_T)
            b_weight = _load_weights(p_weights, stride, b_any, b_any < num_rows)
            b_largest = tl.maximum(b_largest, b_weight)
        # By the largest first: the sum of large weights would overflow.
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
        # A row that is not there must not become NaN with the others.
        b_weight = tl.where(m_row, b_weight, 0.0)
    return b_weight


@triton.jit
def _settle(b_weight, b_max, b_sum):
    """What of a row's statistics its columns need: its largest logit and its share.

    - a weight of 0: a share of 0, whatever the row holds;
    - a weight that is NaN: both NaN;
    - logits that are NaN, which no maximum takes over another, or infinite: the share is NaN;
    - no allowed logit above -inf: an infinite share, which times 0 is NaN for the allowed keys.
    """
    b_share = tl.where(b_weight == 0, 0.0, tl.div_rn(b_weight, b_sum))
    return tl.where(b_weight == b_weight, b_max, b_weight), b_share


@triton.jit
def _counting(b_last, b_max, b_share):
    """The last position where a row counts: nowhere without a share, everywhere with NaN weight."""
    b_last = tl.where(b_share == 0, -1, b_last)
    return tl.where(b_max == b_max, b_last, NOWHERE)


@triton.jit
def _add_groups(
    p_partial,  # [groups, num_columns], of one image
    p_out,  # [num_columns]
    groups,
    num_columns,
    first_column,
    BLOCK_G: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """BLOCK_N columns of what all programs of an image have written, added in their order."""
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
    row_blocks,  # of each program
    key_heads,
    group,
    programs,  # of each key head
    query_strides,  # in QUERY_UNIT elements, but for that of a feature
    key_strides,  # in KEY_UNIT elements, but for that of a feature
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
    """Some rows of one key head, with all keys at once."""
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
        b_logit = scale * product_in_chunks(
            p_key_row,
            b_s < num_keys,
            p_query_row,
            m_row,
            key_strides[3],
            query_strides[3],
            D,
            BLOCK_S,
            BLOCK_M,
            BLOCK_D,
            PRECISION,
        )  # [BLOCK_S, BLOCK_M]
        m_seen = b_position[:, None] <= b_last[None, :]
        b_max = tl.max(tl.where(m_seen, b_logit, LOWEST), 0)
        b_exp = tl.where(m_seen, tl.exp2((b_logit - b_max[None, :]) * LOG2E), 0.0)
        b_weight = _weights(p_weights, weights_strides[1], b_t, m_row, num_rows, BLOCK_T)
        b_max, b_share = _settle(b_weight / (key_heads * group), b_max, tl.sum(b_exp, 0))
        m_counts = b_position[:, None] <= _counting(b_last, b_max, b_share)[None, :]
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
                _add_groups(p_partial, p_out, groups, num_columns, first, BLOCK_G, BLOCK_N)


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
    row_blocks,  # of each key head
    key_heads,
    group,
    query_strides,  # in QUERY_UNIT elements, but for that of a feature
    key_strides,  # in KEY_UNIT elements, but for that of a feature
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
    """A block of rows of one key head with one split of the keys; the last split settles them."""
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
    if D <= BLOCK_D:
        b_query = query_tile(p_query_row, m_row, 0, query_strides[3], D, BLOCK_D)
    for first in range(first_key, end, BLOCK_S):
        b_s = first + tl.arange(0, BLOCK_S)
        p_key_row = key_rows(p_key, i_image, i_head, b_s, key_strides, KEY_UNIT)
        if D <= BLOCK_D:
            b_logit = product(
                key_tile(p_key_row, b_s < num_keys, 0, key_strides[3], D, BLOCK_D),
                b_query,
                tl.full([BLOCK_S, BLOCK_M], 0.0, tl.float32),
                PRECISION,
            )
        else:
            b_logit = product_in_chunks(
                p_key_row,
                b_s < num_keys,
                p_query_row,
                m_row,
                key_strides[3],
                query_strides[3],
                D,
                BLOCK_S,
                BLOCK_M,
                BLOCK_D,
                PRECISION,
            )
        b_logit *= scale  # [BLOCK_S, BLOCK_M]
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
        b_weight = _weights(p_weights, weights_strides[1], b_t, m_row, num_rows, BLOCK_T)
        b_max, b_share = _settle(b_weight / (key_heads * group), b_max, b_sum)
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
    query_strides,  # in QUERY_UNIT elements, but for that of a feature
    key_strides,  # in KEY_UNIT elements, but for that of a feature
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
    """A block of keys of one key head, with all rows."""
    # Blocks begin at multiples of their size, whatever is reported: no bit depends on that.
    first_key_block = start // BLOCK_S
    key_blocks = (start + num_columns - 1) // BLOCK_S - first_key_block + 1
    # The heads of a block are neighbours, so that the last to arrive finds their sums near by.
    i_program = tl.program_id(0)
    i_head = (i_program % key_heads).to(tl.int64)
    i_block = i_program // key_heads % key_blocks
    i_image = (i_program // (key_heads * key_blocks)).to(tl.int64)

    first_key = (first_key_block + i_block) * BLOCK_S
    b_s = first_key + tl.arange(0, BLOCK_S)
    p_key_row = key_rows(p_key, i_image, i_head, b_s, key_strides, KEY_UNIT)
    if D <= BLOCK_D:
        b_key = key_tile(p_key_row, b_s < num_keys, 0, key_strides[3], D, BLOCK_D)
    b_position = positions(p_valid, i_image, b_s, num_keys, valid_strides)
    stacked = group * num_rows
    p_statistic += (i_image * key_heads + i_head) * 2 * stacked

    first_row = 0
    if CAUSAL:  # the rows before see none of these keys
        first_row = tl.maximum(first_key - (num_keys - num_rows), 0) * group // BLOCK_M * BLOCK_M
    b_total = tl.full([BLOCK_S], 0.0, tl.float32)
    for first in range(first_row, stacked, BLOCK_M):
        b_row = first + tl.arange(0, BLOCK_M)
        m_row = b_row < stacked
        p_query_row = query_rows(p_query, i_image, i_head, b_row, group, query_strides, QUERY_UNIT)
        if D <= BLOCK_D:
            b_logit = product(
                b_key,
                query_tile(p_query_row, m_row, 0, query_strides[3], D, BLOCK_D),
                tl.full([BLOCK_S, BLOCK_M], 0.0, tl.float32),
                PRECISION,
            )
        else:
            b_logit = product_in_chunks(
                p_key_row,
                b_s < num_keys,
                p_query_row,
                m_row,
                key_strides[3],
                query_strides[3],
                D,
                BLOCK_S,
                BLOCK_M,
                BLOCK_D,
                PRECISION,
            )
        b_logit *= scale  # [BLOCK_S, BLOCK_M]
        b_max = tl.load(p_statistic + b_row, mask=m_row, other=0.0)
        b_share = tl.load(p_statistic + stacked + b_row, mask=m_row, other=0.0)
        b_last = last_seen(b_row, group, num_rows, num_keys, CAUSAL)
        m_counts = b_position[:, None] <= _counting(b_last, b_max, b_share)[None, :]
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
            _add_groups(p_partial, p_out, key_heads, num_columns, first_column, BLOCK_G, BLOCK_S)


def _unit(heads: Tensor) -> int:
    """How many elements all strides but the last are multiples of, up to 16 bytes of them.

    Triton only knows of a stride whether it is a multiple of 16; a head of 72 is not, and would be
    loaded element by element.
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
    strides = [
        _strides_in(query_unit, query),
        _strides_in(key_unit, key),
        (0, 0) if key_valid is None else key_valid.stride(),
    ]
    weights_strides = (0, 0) if query_weights is None else query_weights.stride()
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
    row_blocks = triton.cdiv(group * num_rows, tiles.rows)
    if tiles.splits == 0:
        programs = triton.cdiv(row_blocks, tiles.row_blocks)
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
            weights_strides,
            BLOCK_T=1024,
            BLOCK_G=16,
            BLOCK_N=256,
            **options,
        )
        return out

    keys_per_split = triton.cdiv(triton.cdiv(num_keys, tiles.keys), tiles.splits) * tiles.keys
    splits = triton.cdiv(num_keys, keys_per_split)
    key_blocks = (stop - 1) // tiles.keys - start // tiles.keys + 1
    pairs = batch * key_heads
    # The second kernel's begin at 16 bytes: another alignment is another compilation, and only some
    # batches would have it.
    first_counter = triton.cdiv(pairs * row_blocks, 4) * 4
    counters = out.new_zeros((first_counter + batch * key_blocks,), dtype=int32)
    statistic = out.new_empty((batch, key_heads, 2, group * num_rows))
    split = None if splits == 1 else out.new_empty((batch, key_heads, splits, 2, group * num_rows))
    _statistics_kernel[(pairs * row_blocks * splits,)](
        query,
        key,
        key_valid,
        query_weights,
        split,
        None if splits == 1 else counters,
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
        weights_strides,
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
        *strides,
        BLOCK_G=16,
        **options,
    )
    return out
