"""Rounds float32 results to the dtype of an output: to nearest, ties to even."""

from __future__ import annotations

import triton
import triton.language as tl

from . import INTERPRETED as IN_INTERPRETER

_INTERPRETED = tl.constexpr(IN_INTERPRETER)


@triton.jit
def rounded(b_value, dtype: tl.constexpr):
    if _INTERPRETED and dtype == tl.bfloat16:
        # The interpreter truncates to bfloat16, whereas GPUs round.
        b_bits = b_value.to(tl.int32, bitcast=True)
        b_bits += 0x7FFF + ((b_bits >> 16) & 1)
        b_value = tl.where(b_value == b_value, b_bits.to(tl.float32, bitcast=True), b_value)
    return b_value.to(dtype)
