"""The faster interpreter computes the same, and restores triton.language after a launch."""

from __future__ import annotations

import pytest
import torch

from clasp_kernels.triton import INTERPRETED

if not INTERPRETED:
    pytest.skip("kernels are not interpreted", allow_module_level=True)

import triton
import triton.language as tl
from triton.runtime import interpreter

CHANGES: list[int] = []


def note_changes() -> None:
    """Called by a kernel, by which triton.language is replaced already."""
    CHANGES.append(len(interpreter._patch_lang(_total.fn)._changes))


@triton.jit
def _total(b_x):
    note_changes()
    return tl.sum(b_x) + tl.max(b_x)


@triton.jit
def _kernel(p_x, p_out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    b_x = tl.load(p_x + i)
    tl.store(p_out + i, b_x + _total(b_x) + _total(2 * b_x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64], ids=str)
def test_functions_of_the_language_are_replaced_once_a_launch_and_then_restored(dtype) -> None:
    x = torch.arange(8).to(dtype)
    for _ in range(2):
        CHANGES.clear()
        out = torch.empty_like(x)
        _kernel[(1,)](x, out, BLOCK=8)
        assert torch.equal(out, x + 3 * (28 + 7))
        assert CHANGES == [0, 0]
        assert tl.core.is_builtin(tl.load) and not tl.core.is_builtin(tl.range)
