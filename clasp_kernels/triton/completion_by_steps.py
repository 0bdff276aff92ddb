"""Greedy completion of images whose similarities are too many to store.

Runs one launch per step and stores one key per step. Each launch reads all features once and finds
the next pick by an integer minimum over the programs, whose result does not depend on their order.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor, int64

from . import configs
from .cosine import cosines
from .coverage import TAKEN, Outputs, Tokens, write_selection
from .order import RETIRED, index_of, ordered_bits, rank_of, ranked
from .weights import gain_ranks


@triton.jit(do_not_specialize=["num_tokens", "num_padded", "num_keys", "step"])
def _step_kernel(
    p_features,  # [B, N, D]
    p_norm,  # [B, N'], as is the next
    p_covered,
    p_weights,  # [B, N'] or None
    p_steps,  # [B]
    p_keys,  # [B, num_keys] int64, the key of the pick of each step
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
    """Covers a block of tokens with the previous pick; its best candidate competes."""
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
                    b_offset = b_column.to(tl.int64) * stride_feature
                    b_taken = tl.load(p_taken + b_offset, mask=m_column, other=0.0)
                    b_rows = tl.load(
                        p_row[:, None] + b_offset[None, :],
                        mask=m_token[:, None] & m_column[None, :],
                        other=0.0,
                    )
                    b_dots += b_rows.to(tl.float32) * b_taken.to(tl.float32)[None, :]
                b_norm = tl.load(p_norm + b_token, mask=m_token, other=0.0)
                # A block of one element, because the interpreter cannot combine blocks and scalar
                # conditions.
                b_taken_norm = tl.load(p_norm + i_taken + tl.arange(0, 1))
                b_cosine = cosines(tl.sum(b_dots, axis=1), b_norm, b_taken_norm)
                b_covered = tl.maximum(b_covered, ordered_bits(b_cosine))
                b_covered = tl.where(b_token == i_taken, TAKEN, b_covered)
                tl.store(p_covered, b_covered, mask=m_token)
        b_rank = b_covered
        if p_weights is not None:
            p_weight = p_weights + i_image * num_padded + b_token
            b_rank = gain_ranks(b_covered, tl.load(p_weight, mask=m_token, other=0.0))
        tl.atomic_min(p_key, tl.min(ranked(b_rank, b_token)), sem="relaxed")


@triton.jit(do_not_specialize=["num_padded", "num_keys", "num_slots"])
def _end_kernel(
    p_covered,  # [B, N'], as is the next
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
        write_selection(
            p_covered + i_image * num_padded,
            p_flags + i_image * num_padded,
            p_indices + i_image * num_slots,
            p_is_pivot + i_image * num_slots,
            p_counts + i_image,
            num_padded,
            num_slots,
            BLOCK,
        )


def complete_by_steps(
    features: Tensor,
    tokens: Tokens,
    weights: Tensor | None,
    outputs: Outputs,
    num_slots: int,
    config: configs.Completion,
) -> None:
    """As :func:`clasp_kernels.triton.completion.complete`, after the selected tokens are
    covered."""
    batch, num_tokens, dim = features.shape
    # The selection is read from `covered`, so the last pick takes one more launch than there are
    # picks. At least one of the num_keys tokens is a pivot, so num_keys launches are enough.
    num_keys = min(num_slots, num_tokens)
    keys = features.new_full((batch, num_keys), RETIRED.value, dtype=int64)
    step = configs.completion_step(dim, features.element_size())
    for i_step in range(num_keys):
        _step_kernel[(batch * triton.cdiv(num_tokens, step.rows),)](
            features,
            tokens.norm,
            tokens.covered,
            weights,
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
    end_steps(tokens, keys, outputs, num_slots, config)


def end_steps(
    tokens: Tokens, keys: Tensor, outputs: Outputs, num_slots: int, config: configs.Completion
) -> None:
    """Fills ``outputs`` from the keys of the picks, or from the coverage after the last pick."""
    batch, num_keys = keys.shape
    _end_kernel[(batch,)](
        tokens.covered,
        tokens.flags,
        keys,
        *outputs,
        config.padded,
        num_keys,
        num_slots,
        BLOCK=config.block_out,
        num_warps=16,
    )
