"""``gather_tokens`` on the CPU, called through torch.

Covers threads, strides, and direct calls without the checks in Python.
"""

from __future__ import annotations

import pytest
import torch
from tensors import DTYPES
from torch import Tensor

from clasp_kernels import backends, gather_tokens

pytestmark = pytest.mark.usefixtures("cpu_backend")


def one_by_one(tokens: Tensor, indices: Tensor) -> Tensor:
    rows = [
        tokens[b, index] if index >= 0 else tokens.new_zeros(tokens.shape[2])
        for b, row in enumerate(indices.tolist())
        for index in row
    ]
    return torch.stack(rows).view(*indices.shape, tokens.shape[2])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_rows_by_any_number_of_threads(dtype: torch.dtype, threads: None) -> None:
    tokens = torch.randn(3, 400, 301).to(dtype)
    indices = torch.randint(-1, 400, (3, 500))
    expected = one_by_one(tokens, indices)
    for num_threads in (1, 2, 3, 4):
        torch.set_num_threads(num_threads)
        assert torch.equal(gather_tokens(tokens, indices), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_views(dtype: torch.dtype) -> None:
    tokens = torch.randn(3, 40, 54).to(dtype)
    indices = torch.randint(-1, 18, (3, 26))
    views = {
        "without the first token": tokens[:, 1:],
        "every other token": tokens[:, ::2],
        "every third feature": tokens[..., ::3],
        "off by one element": tokens[..., 1:],
        "tokens last": tokens.mT.contiguous().mT,
        "batch inside": tokens.transpose(0, 1).contiguous().transpose(0, 1),
        "one image, expanded": tokens[:1].expand(3, -1, -1),
        "one feature": tokens[..., 5:6],
        "one value, expanded": tokens[:, :, :1].expand(-1, -1, 9),
    }
    for name, view in views.items():
        gathered = gather_tokens(view, indices)
        assert gathered.is_contiguous()
        assert torch.equal(gathered, one_by_one(view, indices)), name
    for view in (indices[:, ::2], indices.T.contiguous().T, indices[:, :1].expand(-1, 4)):
        assert torch.equal(gather_tokens(tokens, view), one_by_one(tokens, view))


def test_a_direct_call_stays_in_bounds() -> None:
    backends.overload("gather_tokens", torch.device("cpu"))
    op = torch.ops.clasp_kernels.gather_tokens
    tokens = torch.ones(2, 5, 3)
    for wrong in (5, 2**62):
        with pytest.raises(RuntimeError, match=rf"indices must lie in -1\.\.4 .* got {wrong}"):
            op(tokens, torch.tensor([[0, 1], [0, wrong]]))
    with pytest.raises(RuntimeError, match=r"indices must lie in -1\.\.-1"):
        op(tokens[:, :0], torch.tensor([[-1], [0]]))
    assert not op(tokens, torch.tensor([[-2], [-(2**62)]])).any()
    for indices in (
        torch.zeros(2, dtype=torch.int64),
        torch.zeros(1, 2, dtype=torch.int64),
        torch.zeros(2, 2, dtype=torch.int32),
    ):
        with pytest.raises(RuntimeError, match="indices"):
            op(tokens, indices)
    for wrong_tokens in (torch.ones(2, 5), torch.ones(2, 5, 3, dtype=torch.float64)):
        with pytest.raises(RuntimeError, match="tokens"):
            op(wrong_tokens, torch.zeros(2, 2, dtype=torch.int64))
