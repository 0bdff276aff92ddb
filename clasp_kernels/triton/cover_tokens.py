"""Greedy facility location.

All similarities of an image, negative ones as 0, are computed first if they fit in memory. Each
program computes one tile and stores it on both sides of the diagonal, and selected tokens update
``best``, how well each token is represented. Then there is one launch per step, in which each
program sums the gains of a block of candidates, in an order that only depends on the number of
tokens. The candidates compete by an integer minimum, whose result does not depend on the order of
the programs. The best one is only known in the next launch, where every program adds its row of
similarities to ``best``. Programs read ``best`` from one buffer while one of them fills another.

Similarities that do not fit are computed again in each step. A step then takes a launch more, which
updates ``best``, as this takes a product of features too. Its tiles are those of the gains, to the
bit, so that a token that is picked gains nothing more.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor, float32, int32, int64

from . import configs
from .complete_tokens import write_tokens
from .completion_by_steps import end_steps
from .cosine import NOT_FINITE
from .coverage import SELECTED, TAKEN, Outputs, Tokens
from .order import RETIRED, index_of, ordered_bits, ranked
from .tiles import pair_of_blocks, tile_cosines
from .weights import usable_weights


@triton.jit
def _similarities(
    p_features,
    p_norm,
    b_row,
    b_column,
    num_tokens,
    stride_token,
    stride_feature,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """:func:`clasp_kernels.triton.tiles.tile_cosines`; 0 where negative or not finite."""
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
    return tl.where((b_cosine > 0) & (b_cosine < NOT_FINITE), b_cosine, 0.0)


@triton.jit
def _represent(p_best, b_similarity):
    """Takes the maximum of ``best`` and similarities, which have the order of their bits."""
    b_bits = b_similarity.to(tl.int32, bitcast=True)
    tl.atomic_max(p_best, b_bits, mask=b_bits > 0, sem="relaxed")


@triton.jit(do_not_specialize=["num_tokens", "first_image"])
def _similarity_kernel(
    p_features,  # [B, N, D]
    p_norm,  # [B, N']
    p_flags,  # [B, N']
    p_best,  # [B, N'] int32, the bits of float32
    p_steps,  # [B], the number of picks to make, if enough tokens are left
    p_similarity,  # [images in a wave, N', N'], or None: only update the best
    num_tokens,
    first_image,
    stride_image,
    stride_token,
    stride_feature,
    stride_steps,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    num_blocks = tl.cdiv(num_tokens, BLOCK_N)
    num_padded = num_blocks * BLOCK_N
    num_pairs = num_blocks * (num_blocks + 1) // 2
    i_in_wave = (tl.program_id(0) // num_pairs).to(tl.int64)
    i_image = first_image + i_in_wave
    i_row, i_column = pair_of_blocks(tl.program_id(0) % num_pairs, num_blocks)
    b_row = i_row * BLOCK_N + tl.arange(0, BLOCK_N)
    b_column = i_column * BLOCK_N + tl.arange(0, BLOCK_N)
    p_flags += i_image * num_padded
    p_best += i_image * num_padded
    if p_similarity is not None:
        p_similarity += i_in_wave * num_padded * num_padded
    if tl.load(p_steps + i_image * stride_steps) > 0:
        b_similarity = _similarities(
            p_features + i_image * stride_image,
            p_norm + i_image * num_padded,
            b_row,
            b_column,
            num_tokens,
            stride_token,
            stride_feature,
            D,
            BLOCK_D,
        )
        m_row_selected = (tl.load(p_flags + b_row) & SELECTED) != 0
        m_column_selected = (tl.load(p_flags + b_column) & SELECTED) != 0
        if p_similarity is not None:
            p_tile = p_similarity + b_row.to(tl.int64)[:, None] * num_padded + b_column[None, :]
            tl.store(p_tile, b_similarity)
        b_represented = tl.where(m_row_selected[:, None], b_similarity, 0.0)
        _represent(p_best + b_column, tl.max(b_represented, axis=0))
        if i_row != i_column:
            if p_similarity is not None:
                p_tile = p_similarity + b_column.to(tl.int64)[:, None] * num_padded + b_row[None, :]
                tl.store(p_tile, tl.trans(b_similarity))
            b_represented = tl.where(m_column_selected[None, :], b_similarity, 0.0)
            _represent(p_best + b_row, tl.max(b_represented, axis=1))


@triton.jit
def _compete(p_key, p_preference, b_covered, b_gain, b_token):
    """``p_preference`` is that of the image, or None."""
    if p_preference is not None:
        b_gain *= tl.load(p_preference + b_token)
    b_key = tl.where(b_covered == TAKEN, RETIRED, ranked(~ordered_bits(b_gain), b_token))
    tl.atomic_min(p_key, tl.min(b_key), sem="relaxed")


@triton.jit(do_not_specialize=["num_padded", "num_keys", "first_image", "step"])
def _step_kernel(
    p_similarity,  # [images in a wave, N', N']
    p_covered,  # [B, N'], as are the next ones: TAKEN if no candidate
    p_weights,
    p_preference,  # or None
    p_best,  # before the previous pick
    p_next_best,  # after it
    p_steps,  # [B]
    p_keys,  # [B, num_keys] int64, the key of the pick of each step
    num_padded,
    num_keys,
    first_image,
    step,
    stride_steps,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Lets a block of candidates compete, given the previous pick."""
    num_blocks = num_padded // ROWS
    i_in_wave = (tl.program_id(0) // num_blocks).to(tl.int64)
    i_block = tl.program_id(0) % num_blocks
    i_image = first_image + i_in_wave
    b_token = i_block * ROWS + tl.arange(0, ROWS)
    p_similarity += i_in_wave * num_padded * num_padded
    p_covered += i_image * num_padded + b_token
    p_weights += i_image * num_padded
    if p_preference is not None:
        p_preference += i_image * num_padded
    p_best += i_image * num_padded
    p_next_best += i_image * num_padded
    p_key = p_keys + i_image * num_keys + step

    if step < tl.load(p_steps + i_image * stride_steps):
        previous = tl.load(p_key - 1, mask=step > 0, other=RETIRED)
        has_previous = previous != RETIRED
        if (step == 0) | has_previous:
            i_taken = index_of(previous)
            # No other program reads the coverage of these tokens.
            b_covered = tl.load(p_covered)
            b_covered = tl.where(b_token == i_taken, TAKEN, b_covered)
            tl.store(p_covered, b_covered)
            p_row = p_similarity + b_token.to(tl.int64) * num_padded
            p_taken = p_similarity + i_taken * num_padded
            b_gains = tl.zeros((ROWS, COLUMNS), tl.float32)
            for first in range(0, num_padded, COLUMNS):
                b_column = first + tl.arange(0, COLUMNS)
                m_column = b_column < num_padded
                b_best = tl.load(p_best + b_column, mask=m_column, other=0.0)
                m_taken = m_column & has_previous
                b_taken = tl.load(p_taken + b_column, mask=m_taken, other=0.0)
                b_best = tl.maximum(b_best, b_taken)
                if i_block == 0:
                    tl.store(p_next_best + b_column, b_best, mask=m_column)
                b_weight = tl.load(p_weights + b_column, mask=m_column, other=0.0)
                p_tile = p_row[:, None] + b_column[None, :]
                b_similarity = tl.load(p_tile, mask=m_column[None, :], other=0.0)
                b_added = tl.maximum(b_similarity - b_best[None, :], 0.0)
                b_gains += b_weight[None, :] * b_added
            _compete(p_key, p_preference, b_covered, tl.sum(b_gains, axis=1), b_token)


@triton.jit(do_not_specialize=["num_tokens", "num_keys", "step"])
def _represent_kernel(
    p_features,  # [B, N, D]
    p_norm,  # [B, N'], as are the next two
    p_covered,
    p_best,
    p_steps,  # [B]
    p_keys,  # [B, num_keys]
    num_tokens,
    num_keys,
    step,
    stride_image,
    stride_token,
    stride_feature,
    stride_steps,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Updates the best of a block of tokens by the pick of the step before ``step``."""
    num_blocks = tl.cdiv(num_tokens, BLOCK_N)
    num_padded = num_blocks * BLOCK_N
    i_image = (tl.program_id(0) // num_blocks).to(tl.int64)
    b_token = tl.program_id(0) % num_blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    if step < tl.load(p_steps + i_image * stride_steps):
        previous = tl.load(p_keys + i_image * num_keys + step - 1)
        if previous != RETIRED:
            i_taken = index_of(previous).to(tl.int32)
            # The pick's row of a whole tile, the only one in which the gains see it.
            b_row = i_taken // BLOCK_N * BLOCK_N + tl.arange(0, BLOCK_N)
            b_similarity = _similarities(
                p_features + i_image * stride_image,
                p_norm + i_image * num_padded,
                b_row,
                b_token,
                num_tokens,
                stride_token,
                stride_feature,
                D,
                BLOCK_D,
            )
            b_taken = tl.where((b_row == i_taken)[:, None], b_similarity, 0.0)
            p_block = p_best + i_image * num_padded + b_token
            tl.store(p_block, tl.maximum(tl.load(p_block), tl.sum(b_taken, axis=0)))
            tl.store(p_covered + i_image * num_padded + b_token, TAKEN, mask=b_token == i_taken)


@triton.jit(do_not_specialize=["num_tokens", "num_keys", "step"])
def _recomputing_step_kernel(
    p_features,  # [B, N, D]
    p_norm,  # [B, N'], as are the next ones
    p_covered,
    p_weights,
    p_preference,  # or None
    p_best,
    p_steps,  # [B]
    p_keys,  # [B, num_keys]
    num_tokens,
    num_keys,
    step,
    stride_image,
    stride_token,
    stride_feature,
    stride_steps,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Lets a block of candidates compete, after _represent_kernel."""
    num_blocks = tl.cdiv(num_tokens, BLOCK_N)
    num_padded = num_blocks * BLOCK_N
    i_image = (tl.program_id(0) // num_blocks).to(tl.int64)
    b_token = tl.program_id(0) % num_blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    p_weights += i_image * num_padded
    if p_preference is not None:
        p_preference += i_image * num_padded
    p_best += i_image * num_padded
    p_key = p_keys + i_image * num_keys + step
    if step < tl.load(p_steps + i_image * stride_steps):
        previous = tl.load(p_key - 1, mask=step > 0, other=RETIRED)
        if (step == 0) | (previous != RETIRED):
            b_gain = tl.zeros((BLOCK_N,), tl.float32)
            for first in range(0, num_padded, BLOCK_N):
                b_column = first + tl.arange(0, BLOCK_N)
                b_similarity = _similarities(
                    p_features + i_image * stride_image,
                    p_norm + i_image * num_padded,
                    b_token,
                    b_column,
                    num_tokens,
                    stride_token,
                    stride_feature,
                    D,
                    BLOCK_D,
                )
                b_added = tl.maximum(b_similarity - tl.load(p_best + b_column)[None, :], 0.0)
                b_weight = tl.load(p_weights + b_column)
                b_gain += tl.sum(b_weight[None, :] * b_added, axis=1)
            b_covered = tl.load(p_covered + i_image * num_padded + b_token)
            _compete(p_key, p_preference, b_covered, b_gain, b_token)


def cover_tokens(
    features: Tensor,
    selected: Tensor,
    num_picks: int,
    counts: Tensor | None,
    weights: Tensor | None,
    preference: Tensor | None,
    valid: Tensor | None,
) -> Tensor:
    batch, num_tokens, dim = features.shape
    picks = features.new_empty((batch, num_picks), dtype=int64)
    if picks.numel() == 0:
        return picks
    if num_tokens == 0:
        return picks.fill_(-1)
    config = configs.covering(num_tokens, dim, features.element_size())
    tokens = write_tokens(features, selected, num_picks, valid, config)
    usable = usable_weights(features, weights, valid, config.padded, equal=1.0)
    preferred = None
    if preference is not None:
        preferred = usable_weights(features, preference, valid, config.padded, equal=1.0)
    num_keys = min(num_picks, num_tokens)
    keys = features.new_full((batch, num_keys), RETIRED.value, dtype=int64)
    _pick(features, tokens, counts, usable, preferred, keys, config)
    end_steps(tokens, keys, Outputs(picks=picks), num_picks, config)
    return picks


def _pick(
    features: Tensor,
    tokens: Tokens,
    counts: Tensor | None,
    weights: Tensor,
    preference: Tensor | None,
    keys: Tensor,
    config: configs.Completion,
) -> None:
    """Fills ``keys``. ``weights`` and ``preference`` are [B, N']."""
    batch, num_tokens, dim = features.shape
    num_keys = keys.shape[1]
    # Counts that are too large do no harm, because there are no more launches than keys.
    steps = tokens.steps if counts is None else counts
    stride_steps = steps.stride(0)
    # Two buffers, of which the steps read and write one in turn.
    bits = features.new_zeros((2, batch, config.padded), dtype=int32)
    best = bits.view(float32)

    def tiles() -> dict[str, int]:
        return {
            "D": dim,
            "BLOCK_N": config.rows,
            "BLOCK_D": config.columns,
            "num_warps": config.num_warps,
            "num_stages": config.num_stages,
        }

    def compare(similarity: Tensor | None, first: int, images: int) -> None:
        _similarity_kernel[(images * config.num_pairs,)](
            features,
            tokens.norm,
            tokens.flags,
            bits[0],
            steps,
            similarity,
            num_tokens,
            first,
            *features.stride(),
            stride_steps,
            **tiles(),
        )

    if config.wave == 0:
        compare(None, 0, batch)
        grid = (batch * (config.padded // config.rows),)
        for step in range(num_keys):
            if step > 0:
                _represent_kernel[grid](
                    features,
                    tokens.norm,
                    tokens.covered,
                    best[0],
                    steps,
                    keys,
                    num_tokens,
                    num_keys,
                    step,
                    *features.stride(),
                    stride_steps,
                    **tiles(),
                )
            _recomputing_step_kernel[grid](
                features,
                tokens.norm,
                tokens.covered,
                weights,
                preference,
                best[0],
                steps,
                keys,
                num_tokens,
                num_keys,
                step,
                *features.stride(),
                stride_steps,
                **tiles(),
            )
        return

    wave = min(config.wave, batch)
    similarity = features.new_empty((wave, config.padded, config.padded), dtype=float32)
    gains = configs.covering_step(config.rows, config.padded)
    for first in range(0, batch, wave):
        images = min(wave, batch - first)
        compare(similarity, first, images)
        for step in range(num_keys):
            _step_kernel[(images * (config.padded // gains.rows),)](
                similarity,
                tokens.covered,
                weights,
                preference,
                best[step % 2],
                best[1 - step % 2],
                steps,
                keys,
                config.padded,
                num_keys,
                first,
                step,
                stride_steps,
                ROWS=gains.rows,
                COLUMNS=gains.columns,
                num_warps=gains.num_warps,
            )
