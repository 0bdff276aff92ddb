"""Weights of tokens within bounds, and the rank of a pick by weight and coverage, as in
csrc/shared/weights.h.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor, float32

from . import configs
from .cosine import NOT_FINITE
from .coverage import TAKEN
from .order import RANK_OF_NAN, from_ordered_bits, ordered_bits

_SMALLEST = tl.constexpr(2.0**-50)
_LARGEST = tl.constexpr(2.0**50)
# Stands for the weight of each token of an image whose weights are all equal: its picks are those
# without weights.
UNWEIGHTED = -1.0
# The rank of tokens of weight 0: worse than that of any gain.
_RANK_OF_WEIGHTLESS = RANK_OF_NAN
_ORDERED_MINUS_ONE = tl.constexpr(-0x3F800001)  # ordered_bits(-1.0)


@triton.jit
def _load(p_weights, p_valid, b_token, num_tokens, stride_weight, stride_valid):
    """Returns the weights of a block of tokens, within bounds, and which tokens are valid."""
    m_valid = b_token < num_tokens
    b_offset = b_token.to(tl.int64)
    b_weight = tl.full(b_token.shape, 1.0, tl.float32)
    if p_weights is not None:
        b_weight = tl.load(p_weights + b_offset * stride_weight, mask=m_valid, other=0.0)
        # The comparison is also false for NaN.
        b_weight = tl.where(b_weight >= _SMALLEST, tl.minimum(b_weight, _LARGEST), 0.0)
    if p_valid is not None:
        m_valid = tl.load(p_valid + b_offset * stride_valid, mask=m_valid, other=0) != 0
    return b_weight, m_valid


@triton.jit(do_not_specialize=["num_tokens", "num_padded", "equal"])
def _weights_kernel(
    p_weights,  # [B, N] or None: all equal
    p_valid,  # [B, N] bool or None
    p_usable,  # [B, N']
    num_tokens,
    num_padded,
    equal,
    stride_weight_image,
    stride_weight,
    stride_valid_image,
    stride_valid,
    BLOCK: tl.constexpr,
):
    i_image = tl.program_id(0).to(tl.int64)
    if p_weights is not None:
        p_weights += i_image * stride_weight_image
    if p_valid is not None:
        p_valid += i_image * stride_valid_image

    b_most = tl.full((BLOCK,), -1.0, tl.float32)
    b_least = tl.full((BLOCK,), _LARGEST, tl.float32)
    for first in range(0, num_tokens, BLOCK):
        b_weight, m_valid = _load(
            p_weights,
            p_valid,
            first + tl.arange(0, BLOCK),
            num_tokens,
            stride_weight,
            stride_valid,
        )
        b_most = tl.where(m_valid, tl.maximum(b_most, b_weight), b_most)
        b_least = tl.where(m_valid, tl.minimum(b_least, b_weight), b_least)
    all_equal = tl.max(b_most) == tl.min(b_least)

    for first in range(0, num_padded, BLOCK):
        b_token = first + tl.arange(0, BLOCK)
        b_weight, m_valid = _load(
            p_weights, p_valid, b_token, num_tokens, stride_weight, stride_valid
        )
        b_weight = tl.where(m_valid, tl.where(all_equal, equal, b_weight), 0.0)
        tl.store(p_usable + i_image * num_padded + b_token, b_weight, mask=b_token < num_padded)


def usable_weights(
    features: Tensor,  # [B, N, D]
    weights: Tensor | None,  # [B, N]; None: all equal
    valid: Tensor | None,
    num_padded: int,
    *,
    equal: float = UNWEIGHTED,
) -> Tensor:
    """Returns float32 weights [B, N'] within bounds; 0 if a token is not valid.

    In an image whose valid tokens all have the same weight, valid tokens get ``equal``.
    """
    batch, num_tokens = features.shape[:2]
    usable = features.new_empty((batch, num_padded), dtype=float32)
    _weights_kernel[(batch,)](
        weights,
        valid,
        usable,
        num_tokens,
        num_padded,
        equal,
        *((0, 0) if weights is None else weights.stride()),
        *((0, 0) if valid is None else valid.stride()),
        BLOCK=configs.WEIGHTS_BLOCK,
        num_warps=4,
    )
    return usable


@triton.jit
def gain_ranks(b_covered, b_weight):
    """int32 ranks of the next pick: the largest ``weight * (1 - coverage)`` first, then tokens of
    weight 0, then those that must not be picked. Of images without weights, the coverage itself.

    ``b_covered`` is coverage as int32 of the same order, ``b_weight`` is of :func:`usable_weights`.
    """
    # The bound also serves tokens that nothing covers. Rounding can make a cosine less than -1.
    b_coverage = from_ordered_bits(tl.maximum(b_covered, _ORDERED_MINUS_ONE))
    # Tokens without a finite similarity tie, whatever their weights. As a float, TAKEN is NaN.
    b_gain = tl.where(b_coverage < NOT_FINITE, b_weight * (1.0 - b_coverage), float("-inf"))
    b_rank = tl.where(b_weight == 0, _RANK_OF_WEIGHTLESS, ~ordered_bits(b_gain))
    return tl.where((b_weight < 0) | (b_covered == TAKEN), b_covered, b_rank)
