"""Merges dropped tokens into similar kept ones: one launch assigns groups, one computes means.

The similarities to the kept tokens are never stored: each program loops over blocks of kept rows
and keeps the best one. The members of a group are found by their rank within the group, so that as
many rows as a thread can hold are loaded at once, in token order. Only the rows of the group are
read, so no other token affects its mean.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor, int32

from . import INTERPRETED as IN_INTERPRETER
from . import configs
from .cosine import NOT_FINITE, cosines, norms
from .order import RANK_OF_INVALID, RETIRED, ordered_bits, rank_of, ranked
from .rounding import rounded

_INTERPRETED = tl.constexpr(IN_INTERPRETER)

# The rank of a kept token's similarity to itself, better than any other.
_RANK_OF_OWN = tl.constexpr(-(2**31))


@triton.jit(do_not_specialize=["num_tokens", "num_slots"])
def _assign_kernel(
    p_features,  # [B, N, F]
    p_indices,  # [B, R]
    p_valid,  # [B, N] or None
    p_group,  # [B, N] contiguous: the slot that a token joins, -1 for none
    num_tokens,
    num_slots,
    stride_image,
    stride_token,
    stride_feature,
    stride_index_image,
    stride_index,
    stride_valid_image,
    stride_valid,
    F: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    blocks = tl.cdiv(num_tokens, BLOCK_N)
    i_image = (tl.program_id(0) // blocks).to(tl.int64)
    b_token = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    m_token = b_token < num_tokens
    p_image = p_features + i_image * stride_image
    p_row = p_image + b_token.to(tl.int64) * stride_token

    b_best = tl.full([BLOCK_N], RETIRED, tl.int64)
    b_group = tl.full([BLOCK_N], -1, tl.int32)
    for first_slot in range(0, num_slots, BLOCK_R):
        b_slot = first_slot + tl.arange(0, BLOCK_R)
        p_index = p_indices + i_image * stride_index_image + b_slot.to(tl.int64) * stride_index
        b_index = tl.load(p_index, mask=b_slot < num_slots, other=-1)
        # Indices are not checked on a GPU.
        m_kept = (b_index >= 0) & (b_index < num_tokens)
        p_kept = p_image + b_index * stride_token

        b_dot = tl.zeros([BLOCK_N, BLOCK_R], tl.float32)
        b_square_sum = tl.zeros([BLOCK_N], tl.float32)
        b_kept_square_sum = tl.zeros([BLOCK_R], tl.float32)
        for first in range(0, F, BLOCK_F):
            b_column = first + tl.arange(0, BLOCK_F).to(tl.int64)
            m_column = b_column < F
            b_features = tl.load(
                p_row[:, None] + b_column[None, :] * stride_feature,
                mask=m_token[:, None] & m_column[None, :],
                other=0.0,
            )  # [BLOCK_N, BLOCK_F]
            b_kept = tl.load(
                p_kept[:, None] + b_column[None, :] * stride_feature,
                mask=m_kept[:, None] & m_column[None, :],
                other=0.0,
            )  # [BLOCK_R, BLOCK_F]
            b_float = b_features.to(tl.float32)
            b_kept_float = b_kept.to(tl.float32)
            b_square_sum += tl.sum(b_float * b_float, 1)
            b_kept_square_sum += tl.sum(b_kept_float * b_kept_float, 1)
            if _INTERPRETED:  # the interpreter's dot of bfloat16 is wrong
                b_features = b_float
                b_kept = b_kept_float
            b_dot = tl.dot(b_features, tl.trans(b_kept), b_dot, input_precision="ieee")

        b_similarity = cosines(b_dot, norms(b_square_sum)[:, None], norms(b_kept_square_sum)[None])
        b_similarity = tl.where(b_similarity == NOT_FINITE, -NOT_FINITE, b_similarity)
        # The largest similarity first, ties to the lower token, then to the lower slot. A kept
        # token ranks before all others in its own group.
        b_rank = tl.where(m_kept[None, :], ~ordered_bits(b_similarity), RANK_OF_INVALID)
        b_kept_token = tl.where(m_kept, b_index, -1).to(tl.int32)[None, :]
        b_rank = tl.where(b_token[:, None] == b_kept_token, _RANK_OF_OWN, b_rank)
        b_least = tl.min(b_rank, 1)
        b_joined = tl.min(tl.where(b_rank == b_least[:, None], b_kept_token, 2**31 - 1), 1)
        b_first = tl.min(tl.where(b_kept_token == b_joined[:, None], b_slot[None, :], num_slots), 1)
        b_key = tl.where(b_least == RANK_OF_INVALID, RETIRED, ranked(b_least, b_joined))
        b_group = tl.where(b_key < b_best, b_first, b_group)
        b_best = tl.minimum(b_best, b_key)

    if p_valid is not None:
        p_token_valid = p_valid + i_image * stride_valid_image + b_token.to(tl.int64) * stride_valid
        m_valid = tl.load(p_token_valid, mask=m_token, other=False)
        b_group = tl.where(m_valid | (rank_of(b_best) == _RANK_OF_OWN), b_group, -1)
    tl.store(p_group + i_image * num_tokens + b_token, b_group, mask=m_token)


@triton.jit(do_not_specialize=["num_tokens", "num_slots"])
def _mean_kernel(
    p_tokens,  # [B, N, D]
    p_indices,  # [B, R]
    p_group,  # [B, N] contiguous
    p_out,  # [B, R, D] contiguous
    num_tokens,
    num_slots,
    stride_image,
    stride_token,
    stride_feature,
    stride_index_image,
    stride_index,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_MEMBERS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    blocks_d: tl.constexpr = tl.cdiv(D, BLOCK_D)
    i_row = (tl.program_id(0) // blocks_d).to(tl.int64)
    i_image = i_row // num_slots
    i_slot = i_row % num_slots
    b_column = tl.program_id(0) % blocks_d * BLOCK_D + tl.arange(0, BLOCK_D).to(tl.int64)
    m_column = b_column < D
    p_columns = p_tokens + i_image * stride_image + b_column * stride_feature

    b_sum = tl.zeros([BLOCK_D], tl.float32)
    count = 0
    for first in range(0, num_tokens, BLOCK_N):
        b_token = first + tl.arange(0, BLOCK_N)
        p_token_group = p_group + i_image * num_tokens + b_token
        b_group = tl.load(p_token_group, mask=b_token < num_tokens, other=-1)
        b_is_member = (b_group == i_slot).to(tl.int32)
        members = tl.sum(b_is_member)
        if members > 0:
            # Position of a member within the block, from 1; 0 for other tokens.
            b_rank = tl.cumsum(b_is_member, 0) * b_is_member
            for before in range(0, members, BLOCK_MEMBERS):
                b_wanted = before + 1 + tl.arange(0, BLOCK_MEMBERS)
                b_hit = tl.where(b_rank[None, :] == b_wanted[:, None], b_token[None, :], 0)
                b_member = tl.sum(b_hit, 1).to(tl.int64)  # [BLOCK_MEMBERS]
                b_states = tl.load(
                    p_columns[None, :] + b_member[:, None] * stride_token,
                    mask=(b_wanted <= members)[:, None] & m_column[None, :],
                    other=0.0,
                )  # [BLOCK_MEMBERS, BLOCK_D]
                b_sum += tl.sum(b_states.to(tl.float32), 0)
            count += members

    index = tl.load(p_indices + i_image * stride_index_image + i_slot * stride_index)
    b_mean = tl.div_rn(b_sum, tl.full([BLOCK_D], 1.0, tl.float32) * tl.maximum(count, 1))
    # Out-of-range indices, which are not checked on a GPU, give NaN.
    out_of_range = (index < -1) | (index >= num_tokens)
    b_mean = tl.where(out_of_range, float("nan"), b_mean)
    tl.store(p_out + i_row * D + b_column, rounded(b_mean, p_out.dtype.element_ty), mask=m_column)


def merge_tokens(tokens: Tensor, features: Tensor, indices: Tensor, valid: Tensor | None) -> Tensor:
    batch, num_tokens, dim = tokens.shape
    num_slots = indices.shape[1]
    num_features = features.shape[2]
    out = tokens.new_empty((batch, num_slots, dim))
    if out.numel() == 0:
        return out
    group = tokens.new_empty((batch, num_tokens), dtype=int32)
    if num_tokens > 0:
        assignment = configs.merge_assignment(
            num_tokens, num_slots, num_features, features.element_size()
        )
        _assign_kernel[(batch * triton.cdiv(num_tokens, assignment.tokens),)](
            features,
            indices,
            valid,
            group,
            num_tokens,
            num_slots,
            *features.stride(),
            *indices.stride(),
            *((0, 0) if valid is None else valid.stride()),
            F=num_features,
            BLOCK_N=assignment.tokens,
            BLOCK_R=assignment.slots,
            BLOCK_F=assignment.features,
            num_warps=assignment.num_warps,
            num_stages=assignment.num_stages,
        )
    means = configs.merge_means(num_tokens, dim, tokens.element_size())
    _mean_kernel[(batch * num_slots * triton.cdiv(dim, means.columns),)](
        tokens,
        indices,
        group,
        out,
        num_tokens,
        num_slots,
        *tokens.stride(),
        *indices.stride(),
        D=dim,
        BLOCK_N=means.tokens,
        BLOCK_MEMBERS=means.members,
        BLOCK_D=means.columns,
        num_warps=means.num_warps,
    )
    return out
