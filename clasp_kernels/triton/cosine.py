"""Cosine similarity from dot products and sums of squares, as in :mod:`clasp_kernels.reference`.

Roots and quotients are correctly rounded, unlike the default ones on NVIDIA GPUs. If dot products
and sums of squares are exact, equal similarities therefore tie in every backend.
"""

from __future__ import annotations

import triton
import triton.language as tl

# A non-finite similarity counts as larger than any cosine: the largest float32.
NOT_FINITE = tl.constexpr((2 - 2**-23) * 2.0**127)


@triton.jit
def norms(b_square_sum):
    return tl.sqrt_rn(b_square_sum)


@triton.jit
def cosines(b_dot, b_norm_a, b_norm_b):
    """0 for zero vectors, ``NOT_FINITE`` if not finite. Shapes broadcast; all float32."""
    b_norm_product = b_norm_a * b_norm_b
    b_cosine = tl.div_rn(b_dot, b_norm_product)
    # The comparison is also false for NaN.
    b_cosine = tl.where(tl.abs(b_cosine) <= NOT_FINITE, b_cosine, NOT_FINITE)
    return tl.where((b_norm_a == 0) | (b_norm_b == 0), 0.0, b_cosine)
