"""Copies the indexed tokens of each image."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import configs


@triton.jit(do_not_specialize=["num_tokens", "num_slots"])
def _gather_kernel(
    p_tokens,  # [B, N, D]
    p_indices,  # [B, R]
    p_out,  # [B, R, D] contiguous
    num_tokens,
    num_slots,
    stride_token_image,
    stride_token,
    stride_feature,
    stride_index_image,
    stride_index,
    D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    blocks_d: tl.constexpr = tl.cdiv(D, BLOCK_D)
    blocks_r = tl.cdiv(num_slots, BLOCK_R)
    i_block = tl.program_id(0)
    i_image = (i_block // (blocks_d * blocks_r)).to(tl.int64)
    b_slot = i_block // blocks_d % blocks_r * BLOCK_R + tl.arange(0, BLOCK_R)
    b_column = i_block % blocks_d * BLOCK_D + tl.arange(0, BLOCK_D)
    m_slot = b_slot < num_slots
    m_column = b_column < D

    p_index = p_indices + i_image * stride_index_image + b_slot.to(tl.int64) * stride_index
    b_index = tl.load(p_index, mask=m_slot, other=-1)  # [BLOCK_R]
    m_token = (b_index >= 0) & (b_index < num_tokens)
    p_row = p_tokens + i_image * stride_token_image + b_index * stride_token
    # Out-of-range indices, which are not checked on a GPU, give NaN.
    b_other = tl.where(m_token | (b_index == -1), 0.0, float("nan"))
    b_out = tl.load(
        p_row[:, None] + b_column.to(tl.int64)[None, :] * stride_feature,
        mask=m_token[:, None] & m_column[None, :],
        other=b_other.to(p_tokens.dtype.element_ty)[:, None],
    )  # [BLOCK_R, BLOCK_D]
    p_out_row = p_out + (i_image * num_slots + b_slot) * D
    tl.store(
        p_out_row[:, None] + b_column[None, :], b_out, mask=m_slot[:, None] & m_column[None, :]
    )


def gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    batch, num_tokens, dim = tokens.shape
    num_slots = indices.shape[1]
    out = tokens.new_empty((batch, num_slots, dim))
    if out.numel() == 0:
        return out
    config = configs.gather_tokens(dim, tokens.element_size())
    blocks = triton.cdiv(num_slots, config.rows) * triton.cdiv(dim, config.columns)
    _gather_kernel[(batch * blocks,)](
        tokens,
        indices,
        out,
        num_tokens,
        num_slots,
        *tokens.stride(),
        *indices.stride(),
        D=dim,
        BLOCK_R=config.rows,
        BLOCK_D=config.columns,
        num_warps=config.num_warps,
    )
    return out
