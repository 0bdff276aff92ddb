"""Selects pivots by salience and completes them greedily, sorted by index; see completion.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .completion import complete
from .coverage import Outputs, empty_tokens, write_token
from .ranking import counted_ranks, is_candidate, salience_keys
from .weights import usable_weights


@triton.jit
def _num_candidates(
    p_valid, num_tokens, stride_valid, HAS_VALID: tl.constexpr, BLOCK: tl.constexpr
):
    if HAS_VALID:
        b_count = tl.zeros((BLOCK,), tl.int32)
        for first in range(0, num_tokens, BLOCK):
            b_token = (first + tl.arange(0, BLOCK)).to(tl.int64)
            b_valid = tl.load(p_valid + b_token * stride_valid, mask=b_token < num_tokens, other=0)
            b_count += (b_valid != 0).to(tl.int32)
        return tl.sum(b_count)
    else:
        return num_tokens


@triton.jit(do_not_specialize=["num_tokens", "num_padded", "num_slots", "num_pivots"])
def _tokens_kernel(
    p_features,  # [B, N, D]
    p_salience,  # [B, N]
    p_budget,  # [B] or None
    p_pivot_counts,  # [B] or None
    p_valid,  # [B, N] bool or None
    p_norm,  # [B, N'], as are the next two
    p_covered,
    p_flags,
    p_steps,  # [B], as is the next
    p_arrivals,
    num_tokens,
    num_padded,
    num_slots,
    num_pivots,
    stride_image,
    stride_token,
    stride_feature,
    stride_salience_image,
    stride_salience,
    stride_budget,
    stride_pivot_count,
    stride_valid_image,
    stride_valid,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    num_blocks = tl.cdiv(num_padded, BLOCK_N)
    i_image = (tl.program_id(0) // num_blocks).to(tl.int64)
    i_block = tl.program_id(0) % num_blocks
    b_token = i_block * BLOCK_N + tl.arange(0, BLOCK_N)
    HAS_VALID: tl.constexpr = p_valid is not None
    p_salience += i_image * stride_salience_image
    if HAS_VALID:
        p_valid += i_image * stride_valid_image

    budget = num_slots.to(tl.int64)
    if p_budget is not None:
        budget = tl.load(p_budget + i_image * stride_budget)
        budget = tl.minimum(tl.maximum(budget, 0), num_slots)
    share = tl.maximum(num_pivots, 1).to(tl.int64)
    if p_pivot_counts is not None:
        count = tl.load(p_pivot_counts + i_image * stride_pivot_count)
        share = tl.minimum(tl.maximum(count, 1), share)
    share = tl.minimum(share, budget)

    num_candidates = _num_candidates(p_valid, num_tokens, stride_valid, HAS_VALID, 1024)
    keeps_all = num_candidates <= budget
    # There are fewer pivots than `share` only if all candidates are kept.
    num_steps = tl.where(keeps_all, 0, budget - share).to(tl.int32)

    b_key = salience_keys(
        p_salience, p_valid, b_token, num_tokens, stride_salience, stride_valid, HAS_VALID
    )
    b_rank = counted_ranks(
        b_key, p_salience, p_valid, num_tokens, stride_salience, stride_valid, HAS_VALID, BLOCK_S
    )
    m_valid = is_candidate(b_key)
    m_pivot = m_valid & (b_rank < share)
    write_token(
        p_features + i_image * stride_image,
        p_norm + i_image * num_padded,
        p_covered + i_image * num_padded,
        p_flags + i_image * num_padded,
        b_token,
        m_pivot,
        m_valid,
        m_pivot | ~m_valid | keeps_all,
        num_steps > 0,
        num_tokens,
        stride_token,
        stride_feature,
        D,
        BLOCK_D,
    )
    if i_block == 0:
        tl.store(p_steps + i_image, num_steps)
        tl.store(p_arrivals + i_image, 0)


def select_tokens(
    features: Tensor,
    salience: Tensor,
    num_kept: int,
    budget: Tensor | None,
    num_pivots: int,
    pivot_counts: Tensor | None,
    valid: Tensor | None,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, num_tokens, dim = features.shape
    indices = features.new_empty((batch, num_kept), dtype=torch.int64)
    is_pivot = features.new_empty((batch, num_kept), dtype=torch.bool)
    counts = features.new_empty((batch,), dtype=torch.int64)
    if batch == 0:
        return indices, is_pivot, counts
    if num_tokens == 0 or num_kept == 0:
        return indices.fill_(-1), is_pivot.fill_(False), counts.fill_(0)
    config = configs.completion(num_tokens, dim, features.element_size())
    tokens = empty_tokens(features, config)
    block = configs.completion_tokens(dim, features.element_size())
    _tokens_kernel[(batch * triton.cdiv(config.padded, block.rows),)](
        features,
        salience,
        budget,
        pivot_counts,
        valid,
        *tokens,
        num_tokens,
        config.padded,
        num_kept,
        num_pivots,
        *features.stride(),
        *salience.stride(),
        0 if budget is None else budget.stride(0),
        0 if pivot_counts is None else pivot_counts.stride(0),
        *((0, 0) if valid is None else valid.stride()),
        D=dim,
        BLOCK_N=block.rows,
        BLOCK_D=block.columns,
        BLOCK_S=256,
        num_warps=block.num_warps,
    )
    outputs = Outputs(indices=indices, is_pivot=is_pivot, counts=counts)
    usable = None
    if weights is not None:
        usable = usable_weights(features, weights, valid, config.padded)
    complete(features, tokens, usable, outputs, config)
    return indices, is_pivot, counts
