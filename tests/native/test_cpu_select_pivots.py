"""``select_pivots`` on the CPU, called through torch.

Covers threads, batches, strides, and direct calls without the checks in Python.
"""

from __future__ import annotations

import math

import pytest
import torch
from tensors import DTYPES
from torch import Tensor

from clasp_kernels import select_pivots

OPS = torch.ops.clasp_kernels
pytestmark = pytest.mark.usefixtures("cpu_backend")


def sorted_pivots(salience: Tensor, k: int) -> Tensor:
    return salience.float().sort(dim=-1, descending=True, stable=True).indices[:, :k]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("batch", "tokens"), [(1, 576), (8, 576), (64, 2880), (3, 16384)])
def test_is_a_stable_sort_whatever_the_threads(dtype, batch, tokens, threads) -> None:
    """In half precision most values tie."""
    generator = torch.Generator().manual_seed(tokens)
    salience = torch.randn(batch, tokens, generator=generator).softmax(-1).to(dtype)
    for k in (1, 32, 160, 300):
        expected = sorted_pivots(salience, k)
        for num_threads in (1, 2, 4):
            torch.set_num_threads(num_threads)
            for _ in range(7):
                assert torch.equal(select_pivots(salience, k), expected), (k, num_threads)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_views_give_what_their_copies_give(dtype) -> None:
    salience = torch.randn(6, 90).to(dtype)
    valid = torch.rand(6, 90) < 0.7
    views = {
        "without its first token": salience[:, 1:],
        "every third token": salience[:, ::3],
        "every other image": salience[::2],
        "transposed": salience.T.contiguous().T,
        "one image, expanded": salience[:1].expand(4, -1),
        "one value, expanded": salience[:, :1].expand(-1, 7),
        "one token": salience[:, 5:6],
    }
    for name, view in views.items():
        mask = valid.T.contiguous().T[: view.shape[0], : view.shape[1]]
        pivots = select_pivots(view, 9, valid=mask)
        copied = select_pivots(view.clone(memory_format=torch.contiguous_format), 9, valid=mask)
        assert torch.equal(pivots, copied), name


def test_a_subnormal_is_told_from_zero_though_they_are_flushed() -> None:
    salience = torch.tensor([[0.0, 1e-40, -1e-40, 2e-40, -0.0]])
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush subnormals")
    try:
        pivots = select_pivots(salience, 5)
    finally:
        torch.set_flush_denormal(False)
    assert pivots.tolist() == [[3, 1, 0, 4, 2]]


def test_a_direct_call_with_counts_out_of_range_stays_in_bounds() -> None:
    counts = torch.tensor([-3, 10**12])
    salience = torch.tensor([[1.0, math.nan, 2.0]] * 2)
    pivots = OPS.select_pivots(salience, 4, counts, None)
    assert pivots.tolist() == [[-1, -1, -1, -1], [2, 0, 1, -1]]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("salience", (torch.zeros(5), 2, None, None)),
        ("salience", (torch.zeros(2, 5, dtype=torch.float64), 2, None, None)),
        ("k ", (torch.zeros(2, 5), -1, None, None)),
        ("k ", (torch.zeros(2, 5), 2, torch.ones(3, dtype=torch.int64), None)),
        ("k ", (torch.zeros(2, 5), 2, torch.ones(2, dtype=torch.int32), None)),
        ("valid", (torch.zeros(2, 5), 2, None, torch.ones(2, 6, dtype=torch.bool))),
        ("valid", (torch.zeros(2, 5), 2, None, torch.ones(2, 5, dtype=torch.int8))),
    ],
)
def test_a_direct_call_with_wrong_arguments_is_refused(name: str, arguments) -> None:
    select_pivots(torch.zeros(1, 1), 1)  # registers the ops
    with pytest.raises(RuntimeError, match=name):
        OPS.select_pivots(*arguments)
