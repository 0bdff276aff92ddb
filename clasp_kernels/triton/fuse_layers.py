"""Fuses all layers of each image in one launch, for any strides.

Every byte is read or written once, so speed depends on the bytes in flight: the loads of several
layers are issued before the first one is used. A layer of weight zero is masked instead of skipped
by a branch. The mask reads no data either, and it keeps the loads of the other layers together.

A launch takes up to 64 layers, because more code compiles slowly. Further launches add the
remaining layers to a float32 sum.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .rounding import rounded

_RMS_EPSILON = tl.constexpr(1e-6)


@triton.jit
def _weight(
    p_weights,
    p_category_ids,
    num_categories,
    i_image,
    layer,
    stride_category,
    stride_layer,
    stride_id,
):
    """The layer's weight for the image, or NaN if its category, which is not checked on a GPU, is
    out of range."""
    if p_category_ids is None:
        weight = tl.load(p_weights + layer * stride_layer)
    else:
        category = tl.load(p_category_ids + i_image * stride_id)
        weight = tl.load(
            p_weights + category * stride_category + layer * stride_layer,
            mask=(category >= 0) & (category < num_categories),
            other=float("nan"),
        )
    return weight


@triton.jit
def _is_used(weight):
    # A block of one element, because the interpreter cannot broadcast the result of a scalar
    # comparison.
    return tl.full([1], weight, tl.float32) != 0


@triton.jit
def _inverse_norm(b_square_sum, D: tl.constexpr, NORMALIZE: tl.constexpr):
    """The factor that normalizes a token."""
    if NORMALIZE == "rms":
        b_norm = tl.sqrt_rn(tl.div_rn(b_square_sum, D * 1.0) + _RMS_EPSILON)
    else:
        b_norm = tl.sqrt_rn(b_square_sum)
        b_norm = tl.where(b_norm > 0, b_norm, 1.0)
    return tl.div_rn(tl.full(b_norm.shape, 1.0, tl.float32), b_norm)


@triton.jit(do_not_specialize=["num_tokens", "num_categories"])
def _fuse_kernel(
    p_layers,  # L x [B, N, D]
    strides,  # L x (image, token, feature)
    p_weights,  # [C, L]
    p_category_ids,  # [B] or None
    p_sum,  # [B, N, D] contiguous, the sum of earlier layers; None if there are none
    p_out,  # [B, N, D] contiguous
    num_tokens,
    num_categories,
    stride_category,
    stride_layer,
    stride_id,
    D: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    LAYERS_IN_FLIGHT: tl.constexpr,
):
    """Without norms, BLOCK_D is a block of columns; with norms, BLOCK_D holds the whole row."""
    blocks_d: tl.constexpr = tl.cdiv(D, BLOCK_D)
    blocks_n = tl.cdiv(num_tokens, BLOCK_N)
    i_block = tl.program_id(0)
    i_image = (i_block // (blocks_d * blocks_n)).to(tl.int64)
    b_token = (i_block // blocks_d % blocks_n * BLOCK_N).to(tl.int64) + tl.arange(0, BLOCK_N)
    b_column = i_block % blocks_d * BLOCK_D + tl.arange(0, BLOCK_D).to(tl.int64)
    m_tile = (b_token < num_tokens)[:, None] & (b_column < D)[None, :]

    i_out = (i_image * num_tokens + b_token)[:, None] * D + b_column[None, :]
    b_sum = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    if p_sum is not None:
        b_sum = tl.load(p_sum + i_out, mask=m_tile, other=0.0)
    for first in tl.static_range(0, len(p_layers), LAYERS_IN_FLIGHT):
        weights = tl.tuple(())
        states = tl.tuple(())  # of [BLOCK_N, BLOCK_D]
        for layer in tl.static_range(first, min(first + LAYERS_IN_FLIGHT, len(p_layers))):
            weight = _weight(
                p_weights,
                p_category_ids,
                num_categories,
                i_image,
                layer,
                stride_category,
                stride_layer,
                stride_id,
            )
            p_row = p_layers[layer] + i_image * strides[layer][0] + b_token * strides[layer][1]
            b_states = tl.load(
                p_row[:, None] + b_column[None, :] * strides[layer][2],
                mask=m_tile & _is_used(weight),
                other=0.0,
                eviction_policy="evict_first",
            )
            weights += (weight,)
            states += (b_states,)
        for layer in tl.static_range(first, min(first + LAYERS_IN_FLIGHT, len(p_layers))):
            b_states = states[layer - first].to(tl.float32)
            if NORMALIZE != "none":
                b_square_sum = tl.sum(b_states * b_states, 1)
                b_states *= _inverse_norm(b_square_sum, D, NORMALIZE)[:, None]
            b_sum += weights[layer - first] * b_states

    tl.store(
        p_out + i_out,
        rounded(b_sum, p_out.dtype.element_ty),
        mask=m_tile,
        eviction_policy="evict_first",
    )


@triton.jit(do_not_specialize=["num_tokens", "num_categories"])
def _fuse_long_rows_kernel(
    p_layers,  # L x [B, N, D]
    strides,  # L x (image, token, feature)
    p_weights,  # [C, L]
    p_category_ids,  # [B] or None
    p_sum,  # [B, N, D] contiguous, the sum of earlier layers; None if there are none
    p_out,  # [B, N, D] contiguous
    num_tokens,
    num_categories,
    stride_category,
    stride_layer,
    stride_id,
    D: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Processes one token per program. Reads each layer's row twice: for its norm, then for the
    sum, from the cache."""
    i_image = (tl.program_id(0) // num_tokens).to(tl.int64)
    i_token = (tl.program_id(0) % num_tokens).to(tl.int64)
    weights = tl.tuple(())
    inverse_norms = tl.tuple(())
    for layer in tl.static_range(len(p_layers)):
        weight = _weight(
            p_weights,
            p_category_ids,
            num_categories,
            i_image,
            layer,
            stride_category,
            stride_layer,
            stride_id,
        )
        p_row = p_layers[layer] + i_image * strides[layer][0] + i_token * strides[layer][1]
        b_squares = tl.zeros([BLOCK_D], tl.float32)
        for i_column in range(0, D, BLOCK_D):
            b_column = i_column + tl.arange(0, BLOCK_D).to(tl.int64)
            m_column = (b_column < D) & _is_used(weight)
            b_states = tl.load(p_row + b_column * strides[layer][2], mask=m_column, other=0.0)
            b_states = b_states.to(tl.float32)
            b_squares += b_states * b_states
        weights += (weight,)
        inverse_norms += (_inverse_norm(tl.sum(b_squares, 0), D, NORMALIZE),)

    for i_column in range(0, D, BLOCK_D):
        b_column = i_column + tl.arange(0, BLOCK_D).to(tl.int64)
        i_out = (i_image * num_tokens + i_token) * D + b_column
        b_sum = tl.zeros([BLOCK_D], tl.float32)
        if p_sum is not None:
            b_sum = tl.load(p_sum + i_out, mask=b_column < D, other=0.0)
        for layer in tl.static_range(len(p_layers)):
            p_row = p_layers[layer] + i_image * strides[layer][0] + i_token * strides[layer][1]
            b_states = tl.load(
                p_row + b_column * strides[layer][2],
                mask=(b_column < D) & _is_used(weights[layer]),
                other=0.0,
                eviction_policy="evict_first",
            )
            b_sum += weights[layer] * (b_states.to(tl.float32) * inverse_norms[layer])
        tl.store(
            p_out + i_out,
            rounded(b_sum, p_out.dtype.element_ty),
            mask=b_column < D,
            eviction_policy="evict_first",
        )


def fuse_layers(
    hidden_states: list[Tensor], weights: Tensor, category_ids: Tensor | None, normalize: str
) -> Tensor:
    first = hidden_states[0]
    out = first.new_empty(first.shape)
    if out.numel() == 0:
        return out
    fused: Tensor | None = None
    for start in range(0, len(hidden_states), configs.LAYERS_PER_LAUNCH):
        layers = slice(start, start + configs.LAYERS_PER_LAUNCH)
        last = layers.stop >= len(hidden_states)
        target = out if last else first.new_empty(first.shape, dtype=torch.float32)
        _launch(hidden_states[layers], weights[:, layers], category_ids, normalize, fused, target)
        fused = target
    return out


def _launch(
    hidden_states: list[Tensor],
    weights: Tensor,
    category_ids: Tensor | None,
    normalize: str,
    fused: Tensor | None,
    out: Tensor,
) -> None:
    """Adds these layers to ``fused``."""
    batch, num_tokens, dim = out.shape
    norms = normalize != "none"
    element_bytes = hidden_states[0].element_size()
    config = configs.fuse_layers(dim, len(hidden_states), element_bytes, norms=norms)
    arguments = (
        tuple(hidden_states),
        tuple(states.stride() for states in hidden_states),
        weights,
        category_ids,
        fused,
        out,
        num_tokens,
        weights.shape[0],
        *weights.stride(),
        0 if category_ids is None else category_ids.stride(0),
    )
    if norms and dim > config.columns:
        _fuse_long_rows_kernel[(batch * num_tokens,)](
            *arguments,
            D=dim,
            NORMALIZE=normalize,
            BLOCK_D=config.columns,
            num_warps=config.num_warps,
        )
        return
    blocks = triton.cdiv(num_tokens, config.rows) * triton.cdiv(dim, config.columns)
    _fuse_kernel[(batch * blocks,)](
        *arguments,
        D=dim,
        NORMALIZE=normalize,
        BLOCK_N=config.rows,
        BLOCK_D=config.columns,
        LAYERS_IN_FLIGHT=config.layers_in_flight,
        num_warps=config.num_warps,
    )
