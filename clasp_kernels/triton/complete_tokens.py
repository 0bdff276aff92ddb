"""Greedy farthest-first completion of a list of selected tokens; see completion.py."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor, int64

from . import configs
from .completion import complete
from .coverage import Outputs, Tokens, empty_tokens, write_token
from .weights import usable_weights


@triton.jit(do_not_specialize=["num_tokens", "num_padded", "num_selected", "num_picks"])
def _tokens_kernel(
    p_features,  # [B, N, D]
    p_selected,  # [B, P]
    p_valid,  # [B, N] bool or None
    p_norm,  # [B, N'], as are the next two
    p_covered,
    p_flags,
    p_steps,  # [B], as is the next
    p_arrivals,
    num_tokens,
    num_padded,
    num_selected,
    num_picks,
    stride_image,
    stride_token,
    stride_feature,
    stride_selected_image,
    stride_selected,
    stride_valid_image,
    stride_valid,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    num_blocks = tl.cdiv(num_padded, BLOCK_N)
    i_image = (tl.program_id(0) // num_blocks).to(tl.int64)
    i_block = tl.program_id(0) % num_blocks
    b_token = i_block * BLOCK_N + tl.arange(0, BLOCK_N)
    m_token = b_token < num_tokens

    # Each token searches `selected` for itself, so a bad index cannot go out of bounds.
    b_named = tl.zeros((BLOCK_N, BLOCK_P), tl.int32)
    p_selected += i_image * stride_selected_image
    for first in range(0, num_selected, BLOCK_P):
        b_slot = first + tl.arange(0, BLOCK_P)
        p_slot = p_selected + b_slot.to(tl.int64) * stride_selected
        b_selected = tl.load(p_slot, mask=b_slot < num_selected, other=-1)
        b_named |= (b_selected[None, :] == b_token[:, None]).to(tl.int32)
    m_selected = m_token & (tl.max(b_named, axis=1) != 0)
    m_valid = m_token
    if p_valid is not None:
        p_mask = p_valid + i_image * stride_valid_image + b_token.to(tl.int64) * stride_valid
        m_valid = tl.load(p_mask, mask=m_token, other=0) != 0

    write_token(
        p_features + i_image * stride_image,
        p_norm + i_image * num_padded,
        p_covered + i_image * num_padded,
        p_flags + i_image * num_padded,
        b_token,
        m_selected,
        m_valid,
        m_selected | ~m_valid,
        num_picks > 0,
        num_tokens,
        stride_token,
        stride_feature,
        D,
        BLOCK_D,
    )
    if i_block == 0:
        tl.store(p_steps + i_image, num_picks)
        tl.store(p_arrivals + i_image, 0)


def write_tokens(
    features: Tensor,
    selected: Tensor,
    num_picks: int,
    valid: Tensor | None,
    config: configs.Completion,
) -> Tokens:
    """Returns the state of each token before the first pick; there is at least one token."""
    batch, num_tokens, dim = features.shape
    tokens = empty_tokens(features, config)
    block = configs.completion_tokens(dim, features.element_size())
    _tokens_kernel[(batch * triton.cdiv(config.padded, block.rows),)](
        features,
        selected,
        valid,
        *tokens,
        num_tokens,
        config.padded,
        selected.shape[1],
        num_picks,
        *features.stride(),
        *selected.stride(),
        *((0, 0) if valid is None else valid.stride()),
        D=dim,
        BLOCK_N=block.rows,
        BLOCK_D=block.columns,
        BLOCK_P=64,
        num_warps=block.num_warps,
    )
    return tokens


def complete_tokens(
    features: Tensor,
    selected: Tensor,
    num_picks: int,
    valid: Tensor | None,
    weights: Tensor | None = None,
) -> Tensor:
    batch, num_tokens, dim = features.shape
    picks = features.new_empty((batch, num_picks), dtype=int64)
    if picks.numel() == 0:
        return picks
    if num_tokens == 0:
        return picks.fill_(-1)
    config = configs.completion(num_tokens, dim, features.element_size())
    tokens = write_tokens(features, selected, num_picks, valid, config)
    usable = None
    if weights is not None:
        usable = usable_weights(features, weights, valid, config.padded)
    complete(features, tokens, usable, Outputs(picks=picks), config)
    return picks
