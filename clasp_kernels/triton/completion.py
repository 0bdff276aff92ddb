"""Greedy completion: what complete_tokens and select_tokens share.

A launch of either op's own has written down each token (:class:`Tokens`): its norm, whether it is
selected, how covered it is before anything is. Similarities are kept as int32 that order like them
(:mod:`clasp_kernels.triton.keys`), a token's with itself as TAKEN, more than any other. Then taking
a token is one maximum with its row, which also takes it out of the candidates, and the selected
tokens can cover the others by an integer maximum, which gives the same in whatever order.

Up to a few thousand tokens, all similarities of an image fit in memory, and one launch does the
rest: a program computes a tile of them, on both sides of the diagonal, and the last program of an
image to arrive picks, reading one row of similarities a step. Nothing but that row, a minimum and
a maximum lies between a pick and the next.

More tokens take a launch a step, and memory for a key a step: each launch reads all features once,
and finds the next pick by an integer minimum.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor, float32, int8, int32, int64

from .. import _triton
from . import configs
from .arrival import arrives_last
from .cosine import cosines, norms
from .keys import RANK_OF_INVALID, RETIRED, index_of, ordered_bits, rank_of, ranked

# How covered a token is, which orders like the similarity: by nothing, and what is not to be
# picked (any more), the rank of what is not valid.
UNCOVERED = tl.constexpr(-(2**31))
TAKEN = RANK_OF_INVALID

# What a token's flags say.
SELECTED = tl.constexpr(1)
VALID = tl.constexpr(2)

INTERPRETED = tl.constexpr(_triton.INTERPRETED)


class Tokens(NamedTuple):
    """What the op's own kernel writes, of each of the tokens, padded to a multiple of the tile."""

    norm: Tensor
    """[B, N'] float32; 0 past the last token."""
    covered: Tensor
    """[B, N'] int32: UNCOVERED, or TAKEN for what is selected, not valid or past the last token."""
    flags: Tensor
    """[B, N'] int8: SELECTED | VALID, 0 past the last token."""
    steps: Tensor
    """[B] int32: how many to pick, if there are as many."""
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
    """Fills in :class:`Tokens` for a block of tokens. Features are read only for their norm."""
    tl.store(p_covered + b_token, tl.where(m_taken, TAKEN, UNCOVERED))
    b_flags = tl.where(m_selected, SELECTED, 0) | tl.where(m_valid, VALID, 0)
    tl.store(p_flags + b_token, b_flags.to(tl.int8))
    if with_norm:
        p_row = p_features + b_token.to(tl.int64) * stride_token
        b_square_sum = tl.zeros((b_token.shape[0], BLOCK_D), tl.float32)
        for first in range(0, D, BLOCK_D):
            b_column = first + tl.arange(0, BLOCK_D)
            b_feature = tl.load(
                p_row[:, None] + b_column[None, :] * stride_feature,
                mask=(b_token < num_tokens)[:, None] & (b_column < D)[None, :],
                other=0.0,
            ).to(tl.float32)
            b_square_sum += b_feature * b_feature
        tl.store(p_norm + b_token, norms(tl.sum(b_square_sum, axis=1)))


@triton.jit
def _write_selection(
    p_covered,  # [N'] of the image, as all below
    p_flags,
    p_indices,  # [R]
    p_is_pivot,  # [R]
    p_count,  # []
    num_padded,
    num_slots,
    BLOCK: tl.constexpr,
):
    """What is valid and TAKEN, by index."""
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


@triton.jit
def _end_picks(p_picks, num_picked, num_slots, BLOCK: tl.constexpr):
    for first in range(num_picked, num_slots, BLOCK):
        b_slot = first + tl.arange(0, BLOCK)
        tl.store(p_picks + b_slot, -1, mask=b_slot < num_slots)


@triton.jit
def _compare(
    p_features,  # [N, D] of the image
    p_norm,  # [N'] of the image, as all below
    p_covered,
    p_flags,
    p_similarity,  # [N', N'] int32 of the image, or None
    i_row,
    i_column,
    num_tokens,
    num_padded,
    stride_token,
    stride_feature,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The similarities of two blocks of tokens; the selected ones among them cover the others."""
    b_row = i_row * BLOCK_N + tl.arange(0, BLOCK_N)
    b_column = i_column * BLOCK_N + tl.arange(0, BLOCK_N)
    m_row_selected = (tl.load(p_flags + b_row) & SELECTED) != 0
    m_column_selected = (tl.load(p_flags + b_column) & SELECTED) != 0
    b_row_norm = tl.load(p_norm + b_row)
    b_column_norm = tl.load(p_norm + b_column)

    p_row = (p_features + b_row.to(tl.int64) * stride_token)[:, None]
    p_column = (p_features + b_column.to(tl.int64) * stride_token)[:, None]
    m_row = (b_row < num_tokens)[:, None]
    m_column = (b_column < num_tokens)[:, None]
    b_dot = tl.zeros((BLOCK_N, BLOCK_N), tl.float32)
    for first in range(0, D, BLOCK_D):
        b_feature = first + tl.arange(0, BLOCK_D)[None, :]
        m_feature = b_feature < D
        b_offset = b_feature * stride_feature
        b_rows = tl.load(p_row + b_offset, mask=m_row & m_feature, other=0.0)
        b_columns = tl.load(p_column + b_offset, mask=m_column & m_feature, other=0.0)
        if INTERPRETED:
            # Its dot of bfloat16 is garbage.
            b_rows = b_rows.to(tl.float32)
            b_columns = b_columns.to(tl.float32)
        b_dot = tl.dot(b_rows, tl.trans(b_columns), b_dot, input_precision="ieee")

    b_rank = ordered_bits(cosines(b_dot, b_row_norm[:, None], b_column_norm[None, :]))
    b_rank = tl.where(b_row[:, None] == b_column[None, :], TAKEN, b_rank)
    if p_similarity is not None:
        p_tile = p_similarity + b_row.to(tl.int64)[:, None] * num_padded + b_column[None, :]
        tl.store(p_tile, b_rank)
    b_covering = tl.where(m_row_selected[:, None], b_rank, UNCOVERED)
    _cover(p_covered + b_column, tl.max(b_covering, axis=0))
    if i_row != i_column:
        if p_similarity is not None:
            p_tile = p_similarity + b_column.to(tl.int64)[:, None] * num_padded + b_row[None, :]
            tl.store(p_tile, tl.trans(b_rank))
        b_covering = tl.where(m_column_selected[None, :], b_rank, UNCOVERED)
        _cover(p_covered + b_row, tl.max(b_covering, axis=1))


@triton.jit
def _cover(p_covered, b_rank):
    tl.atomic_max(p_covered, b_rank, mask=b_rank != UNCOVERED, sem="relaxed")


@triton.jit
def _pick(
    p_covered,  # [N'] of the image
    p_similarity,  # [N', N'] of the image
    p_picks,  # [M] of the image, or None
    num_steps,
    num_padded,
    TOKENS: tl.constexpr,
):
    """The greedy steps of an image; returns how many tokens it took, and leaves what is covered.

    What other programs have written is read past this multiprocessor's own cache.
    """
    b_token = tl.arange(0, TOKENS)
    m_token = b_token < num_padded
    b_covered = tl.load(p_covered + b_token, mask=m_token, other=TAKEN, cache_modifier=".cg")
    num_steps = tl.minimum(num_steps, tl.sum((b_covered != TAKEN).to(tl.int32)))
    for step in range(num_steps):
        i_best = index_of(tl.min(ranked(b_covered, b_token)))
        if p_picks is not None:
            tl.store(p_picks + step, i_best)
        p_row = p_similarity + i_best * num_padded + b_token
        b_row = tl.load(p_row, mask=m_token, other=UNCOVERED, cache_modifier=".cg")
        b_covered = tl.maximum(b_covered, b_row)
    if p_picks is None:
        tl.store(p_covered + b_token, b_covered, mask=m_token)
    return num_steps


@triton.jit(do_not_specialize=["num_tokens", "num_slots", "first_image"])
def _complete_kernel(
    p_features,  # [B, N, D]
    p_norm,  # [B, N'], as the next two
    p_covered,
    p_flags,
    p_steps,  # [B], as the next
    p_arrivals,
    p_similarity,  # [images in a wave, N', N'], or None: only the selected tokens cover
    p_picks,  # [B, R] or None
    p_indices,  # [B, R] or None
    p_is_pivot,  # [B, R] or None
    p_counts,  # [B] or None
    num_tokens,
    num_slots,
    first_image,
    stride_image,
    stride_token,
    stride_feature,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    num_blocks = tl.cdiv(num_tokens, BLOCK_N)
    num_padded = num_blocks * BLOCK_N
    num_pairs = num_blocks * (num_blocks + 1) // 2
    i_in_wave = (tl.program_id(0) // num_pairs).to(tl.int64)
    i_pair = tl.program_id(0) % num_pairs
    i_image = first_image + i_in_wave
    # Every block with itself, then with the next one round the circle, and so on until half way.
    i_row = i_pair % num_blocks
    i_column = (i_row + i_pair // num_blocks) % num_blocks

    p_features += i_image * stride_image
    p_norm += i_image * num_padded
    p_covered += i_image * num_padded
    p_flags += i_image * num_padded
    if p_similarity is not None:
        p_similarity += i_in_wave * num_padded * num_padded
    num_steps = tl.load(p_steps + i_image)

    if num_steps > 0:
        _compare(
            p_features,
            p_norm,
            p_covered,
            p_flags,
            p_similarity,
            i_row,
            i_column,
            num_tokens,
            num_padded,
            stride_token,
            stride_feature,
            D,
            BLOCK_N,
            BLOCK_D,
        )
    if p_similarity is not None:
        is_last = arrives_last(p_arrivals + i_image, num_pairs)
        if is_last:
            if p_picks is not None:
                p_picks += i_image * num_slots
            num_picked = _pick(p_covered, p_similarity, p_picks, num_steps, num_padded, TOKENS)
            if p_picks is not None:
                _end_picks(p_picks, num_picked, num_slots, BLOCK_OUT)
            else:
                tl.debug_barrier()
                _write_selection(
                    p_covered,
                    p_flags,
                    p_indices + i_image * num_slots,
                    p_is_pivot + i_image * num_slots,
                    p_counts + i_image,
                    num_padded,
                    num_slots,
                    BLOCK_OUT,
                )


@triton.jit(do_not_specialize=["num_tokens", "num_padded", "num_keys", "step"])
def _step_kernel(
    p_features,  # [B, N, D]
    p_norm,  # [B, N'], as the next
    p_covered,
    p_steps,  # [B]
    p_keys,  # [B, num_keys] int64, of what is picked in each step
    num_tokens,
    num_padded,
    num_keys,
    step,
    stride_image,
    stride_token,
    stride_feature,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """What was picked in the step before covers a block of tokens; the best of them competes."""
    num_blocks = tl.cdiv(num_tokens, BLOCK_N)
    i_image = (tl.program_id(0) // num_blocks).to(tl.int64)
    b_token = tl.program_id(0) % num_blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    m_token = b_token < num_tokens
    p_features += i_image * stride_image
    p_norm += i_image * num_padded
    p_covered += i_image * num_padded + b_token
    p_key = p_keys + i_image * num_keys + step
    if step <= tl.load(p_steps + i_image):
        b_covered = tl.load(p_covered, mask=m_token, other=TAKEN)
        if step > 0:
            previous = tl.load(p_key - 1)
            if rank_of(previous) != TAKEN:
                i_taken = index_of(previous)
                p_row = p_features + b_token.to(tl.int64) * stride_token
                p_taken = p_features + i_taken * stride_token
                b_dots = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
                for first in range(0, D, BLOCK_D):
                    b_column = first + tl.arange(0, BLOCK_D)
                    m_column = b_column < D
                    b_offset = b_column * stride_feature
                    b_taken = tl.load(p_taken + b_offset, mask=m_column, other=0.0)
                    b_rows = tl.load(
                        p_row[:, None] + b_offset[None, :],
                        mask=m_token[:, None] & m_column[None, :],
                        other=0.0,
                    )
                    b_dots += b_rows.to(tl.float32) * b_taken.to(tl.float32)[None, :]
                b_norm = tl.load(p_norm + b_token, mask=m_token, other=0.0)
                # A block of one, as the interpreter cannot combine blocks and scalar conditions.
                b_taken_norm = tl.load(p_norm + i_taken + tl.arange(0, 1))
                b_cosine = cosines(tl.sum(b_dots, axis=1), b_norm, b_taken_norm)
                b_covered = tl.maximum(b_covered, ordered_bits(b_cosine))
                b_covered = tl.where(b_token == i_taken, TAKEN, b_covered)
                tl.store(p_covered, b_covered, mask=m_token)
        tl.atomic_min(p_key, tl.min(ranked(b_covered, b_token)), sem="relaxed")


@triton.jit(do_not_specialize=["num_padded", "num_keys", "num_slots"])
def _end_kernel(
    p_covered,  # [B, N'], as the next
    p_flags,
    p_keys,  # [B, num_keys]
    p_picks,  # [B, R] or None
    p_indices,  # [B, R] or None
    p_is_pivot,  # [B, R] or None
    p_counts,  # [B] or None
    num_padded,
    num_keys,
    num_slots,
    BLOCK: tl.constexpr,
):
    i_image = tl.program_id(0).to(tl.int64)
    if p_picks is not None:
        for first in range(0, num_slots, BLOCK):
            b_slot = first + tl.arange(0, BLOCK)
            m_step = b_slot < num_keys
            b_key = tl.load(p_keys + i_image * num_keys + b_slot, mask=m_step, other=RETIRED)
            b_pick = tl.where(rank_of(b_key) == TAKEN, -1, index_of(b_key))
            tl.store(p_picks + i_image * num_slots + b_slot, b_pick, mask=b_slot < num_slots)
    else:
        _write_selection(
            p_covered + i_image * num_padded,
            p_flags + i_image * num_padded,
            p_indices + i_image * num_slots,
            p_is_pivot + i_image * num_slots,
            p_counts + i_image,
            num_padded,
            num_slots,
            BLOCK,
        )


class Outputs(NamedTuple):
    """Either the picks in order, or the selection by index; both [B, R], ``counts`` [B]."""

    picks: Tensor | None = None
    indices: Tensor | None = None
    is_pivot: Tensor | None = None
    counts: Tensor | None = None


def complete(
    features: Tensor, tokens: Tokens, outputs: Outputs, config: configs.Completion
) -> None:
    """Picks what ``tokens.steps`` asks for and fills ``outputs``; ``tokens`` is used up."""
    slots = outputs.picks if outputs.picks is not None else outputs.indices
    assert slots is not None
    batch, num_slots = slots.shape
    num_tokens, dim = features.shape[1:]
    # To the tile and to a power of 2, as blocks have to be.
    padded_twice = configs.next_power_of_2(config.padded)
    block_out = min(padded_twice, configs.SELECTION_BLOCK)

    def compare(similarity: Tensor | None, first: int, images: int) -> None:
        _complete_kernel[(images * config.num_pairs,)](
            features,
            *tokens,
            similarity,
            *outputs,
            num_tokens,
            num_slots,
            first,
            *features.stride(),
            D=dim,
            BLOCK_N=config.rows,
            BLOCK_D=config.columns,
            TOKENS=padded_twice,
            BLOCK_OUT=block_out,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )

    if config.wave > 0:
        wave = min(config.wave, batch)
        similarity = features.new_empty((wave, config.padded, config.padded), dtype=int32)
        for first in range(0, batch, wave):
            compare(similarity, first, min(wave, batch - first))
        return

    compare(None, 0, batch)
    # A selection is read from what is covered. It has a pivot at least, so that one launch is left
    # to take the last pick.
    num_keys = min(num_slots, num_tokens)
    keys = features.new_full((batch, num_keys), RETIRED.value, dtype=int64)
    step = configs.completion_step(dim, features.element_size())
    for i_step in range(num_keys):
        _step_kernel[(batch * triton.cdiv(num_tokens, step.rows),)](
            features,
            tokens.norm,
            tokens.covered,
            tokens.steps,
            keys,
            num_tokens,
            config.padded,
            num_keys,
            i_step,
            *features.stride(),
            D=dim,
            BLOCK_N=step.rows,
            BLOCK_D=step.columns,
            num_warps=step.num_warps,
        )
    _end_kernel[(batch,)](
        tokens.covered,
        tokens.flags,
        keys,
        *outputs,
        config.padded,
        num_keys,
        num_slots,
        BLOCK=block_out,
        num_warps=16,
    )
