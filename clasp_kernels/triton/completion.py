"""Greedy completion, shared by complete_tokens and select_tokens.

Each op first launches a kernel of its own that writes :class:`Tokens`: the norm of each token,
whether it is selected, and its initial coverage. A token's similarity to itself is stored as TAKEN,
which exceeds any other. Taking the maximum of the coverage and the picked token's row of
similarities then also removes the picked token from the candidates.

Up to a few thousand tokens, all similarities of an image fit in memory, and one launch does the
rest. Each program computes one tile and stores it on both sides of the diagonal. The last program
of an image to arrive picks the tokens and reads one row of similarities per step. Only that row, a
minimum and a maximum lie between two picks.

With more tokens, only the similarities to selected tokens are computed, and none is stored. The
steps then follow in completion_by_steps.py.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor, int32

from . import configs
from .arrival import arrives_last
from .completion_by_steps import complete_by_steps
from .coverage import SELECTED, TAKEN, UNCOVERED, Outputs, Tokens, write_selection
from .order import index_of, ordered_bits, ranked
from .tiles import pair_of_blocks, tile_cosines
from .weights import gain_ranks


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
    """Computes the similarities of two blocks of tokens; selected tokens update the coverage."""
    b_row = i_row * BLOCK_N + tl.arange(0, BLOCK_N)
    b_column = i_column * BLOCK_N + tl.arange(0, BLOCK_N)
    m_row_selected = (tl.load(p_flags + b_row) & SELECTED) != 0
    b_cosine = tile_cosines(
        p_features,
        p_norm,
        b_row,
        b_column,
        num_tokens,
        stride_token,
        stride_feature,
        D,
        BLOCK_D,
    )
    b_rank = ordered_bits(b_cosine)
    b_rank = tl.where(b_row[:, None] == b_column[None, :], TAKEN, b_rank)
    if p_similarity is not None:
        p_tile = p_similarity + b_row.to(tl.int64)[:, None] * num_padded + b_column[None, :]
        tl.store(p_tile, b_rank)
    b_covering = tl.where(m_row_selected[:, None], b_rank, UNCOVERED)
    _cover(p_covered + b_column, tl.max(b_covering, axis=0))
    if i_row != i_column:
        m_column_selected = (tl.load(p_flags + b_column) & SELECTED) != 0
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
    p_weights,  # [N'] of the image, or None
    p_similarity,  # [N', N'] of the image
    p_picks,  # [M] of the image, or None
    num_steps,
    num_padded,
    TOKENS: tl.constexpr,
):
    """Runs the greedy steps of an image, updates the coverage and returns the number of picks.

    Loads bypass the L1 cache of this multiprocessor, because other programs wrote the data.
    """
    b_token = tl.arange(0, TOKENS)
    m_token = b_token < num_padded
    b_covered = tl.load(p_covered + b_token, mask=m_token, other=TAKEN, cache_modifier=".cg")
    num_steps = tl.minimum(num_steps, tl.sum((b_covered != TAKEN).to(tl.int32)))
    if p_weights is not None:
        b_weight = tl.load(p_weights + b_token, mask=m_token, other=0.0)
    for step in range(num_steps):
        b_rank = b_covered
        if p_weights is not None:
            b_rank = gain_ranks(b_covered, b_weight)
        i_best = index_of(tl.min(ranked(b_rank, b_token)))
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
    p_norm,  # [B, N'], as are the next two
    p_covered,
    p_flags,
    p_steps,  # [B], as is the next
    p_arrivals,
    p_weights,  # [B, N'] or None
    p_similarity,  # [images in a wave, N', N'], or None: compare with selected tokens only
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
    i_image = first_image + i_in_wave
    i_row, i_column = pair_of_blocks(tl.program_id(0) % num_pairs, num_blocks)

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
            if p_weights is not None:
                p_weights += i_image * num_padded
            num_picked = _pick(
                p_covered, p_weights, p_similarity, p_picks, num_steps, num_padded, TOKENS
            )
            if p_picks is not None:
                _end_picks(p_picks, num_picked, num_slots, BLOCK_OUT)
            else:
                tl.debug_barrier()
                write_selection(
                    p_covered,
                    p_flags,
                    p_indices + i_image * num_slots,
                    p_is_pivot + i_image * num_slots,
                    p_counts + i_image,
                    num_padded,
                    num_slots,
                    BLOCK_OUT,
                )


def complete(
    features: Tensor,
    tokens: Tokens,
    weights: Tensor | None,
    outputs: Outputs,
    config: configs.Completion,
) -> None:
    """Makes ``tokens.steps`` picks and fills ``outputs``; overwrites ``tokens``.

    ``weights`` [B, N'] are of :func:`clasp_kernels.triton.weights.usable_weights`.
    """
    slots = outputs.picks if outputs.picks is not None else outputs.indices
    assert slots is not None
    batch, num_slots = slots.shape
    num_tokens, dim = features.shape[1:]

    def compare(similarity: Tensor | None, first: int, images: int) -> None:
        _complete_kernel[(images * config.num_pairs,)](
            features,
            *tokens,
            weights,
            similarity,
            *outputs,
            num_tokens,
            num_slots,
            first,
            *features.stride(),
            D=dim,
            BLOCK_N=config.rows,
            BLOCK_D=config.columns,
            TOKENS=config.block,
            BLOCK_OUT=config.block_out,
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
    complete_by_steps(features, tokens, weights, outputs, num_slots, config)
