"""``merge_tokens`` on the CPU, called through torch.

Covers threads, batches, strides, low precision, and direct calls without the checks in Python.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensors import DTYPES, clusters
from torch import Tensor

from clasp_kernels import backends, merge_tokens

pytestmark = pytest.mark.usefixtures("cpu_backend")


def clustered(batch: int, num_tokens: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Returns tokens, and distinct indices of a sixth of them with one unused slot."""
    generator = torch.Generator().manual_seed(batch * num_tokens + dim)
    tokens = clusters(generator, batch, num_tokens, dim)
    order = torch.rand(batch, num_tokens, generator=generator).argsort(-1)
    indices = order[:, : num_tokens // 6]
    indices[:, 1] = -1
    return tokens.to(dtype), indices


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_batch_mates_and_repetition_do_not_matter(
    dtype: torch.dtype, threads: None
) -> None:
    tokens, indices = clustered(5, 300, 250, dtype)
    features = tokens[..., 7:200]
    valid = torch.rand(5, 300, generator=torch.Generator().manual_seed(0)) < 0.8
    torch.set_num_threads(1)
    expected = merge_tokens(tokens, features, indices, valid=valid)
    for num_threads in (1, 2, 3, 4):
        torch.set_num_threads(num_threads)
        for _ in range(3):
            again = merge_tokens(tokens, features, indices, valid=valid)
            assert torch.equal(again, expected)
        for image in range(5):
            one = slice(image, image + 1)
            alone = merge_tokens(tokens[one], features[one], indices[one], valid=valid[one])
            assert torch.equal(alone[0], expected[image])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_views_give_what_their_copies_give(dtype: torch.dtype) -> None:
    tokens, indices = clustered(3, 60, 54, dtype)
    views = {
        "without the first token": tokens[:, 1:],
        "every other token": tokens.repeat_interleave(2, 1)[:, ::2],
        "every third feature": tokens[..., ::3],
        "off by one element": tokens[..., 1:],
        "tokens last": tokens.mT.contiguous().mT,
        "batch inside": tokens.transpose(0, 1).contiguous().transpose(0, 1),
        "one image, expanded": tokens[:1].expand(3, -1, -1),
        "one feature": tokens[..., 5:6],
    }
    for name, view in views.items():
        slots = indices.clamp(max=view.shape[1] - 2)[:, :2]
        copy = view.clone(memory_format=torch.contiguous_format)
        merged = merge_tokens(view, view, slots)
        assert merged.is_contiguous()
        assert torch.equal(merged, merge_tokens(copy, copy, slots)), name
    expected = merge_tokens(tokens, tokens, indices)
    wide = torch.stack([indices, indices], -1)[..., 1]
    assert torch.equal(merge_tokens(tokens, tokens, wide), expected)
    valid = torch.rand(3, 120) < 0.5
    merged = merge_tokens(tokens, tokens, indices, valid=valid[:, ::2])
    copied = merge_tokens(tokens, tokens, indices, valid=valid[:, ::2].clone())
    assert torch.equal(merged, copied)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_no_worse_than_twice_what_torch_does(dtype: torch.dtype) -> None:
    tokens, _ = clustered(1, 576, 300, dtype)
    everything = torch.ones(1, 576, 4)  # one group
    exact = tokens.double().mean(1)
    theirs = (tokens.mean(1).double() - exact).abs().max()
    merged = merge_tokens(tokens, everything, torch.tensor([[17]]))[:, 0]
    assert (merged.double() - exact).abs().max() <= 2 * theirs


def arguments(**changes: Any) -> tuple[Any, ...]:
    values = {
        "tokens": torch.zeros(2, 5, 3),
        "features": torch.zeros(2, 5, 4),
        "indices": torch.tensor([[0, 4], [-1, 2]]),
        "valid": None,
    }
    return tuple((values | changes).values())


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": torch.zeros(2, 5)},
        {"tokens": torch.zeros(2, 5, 3, dtype=torch.float64)},
        {"features": torch.zeros(2, 4, 4)},
        {"features": torch.zeros(1, 5, 4)},
        {"features": torch.zeros(2, 5)},
        {"features": torch.zeros(2, 5, 4, dtype=torch.int32)},
        {"indices": torch.tensor([0, 1])},
        {"indices": torch.zeros(1, 2, dtype=torch.int64)},
        {"indices": torch.zeros(2, 2, dtype=torch.int32)},
        {"indices": torch.tensor([[0, 1], [5, 1]])},
        {"indices": torch.tensor([[0, 1], [2**62, 1]])},
        {"valid": torch.ones(2, 6, dtype=torch.bool)},
        {"valid": torch.ones(2, 5, dtype=torch.uint8)},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_a_direct_call_with_wrong_arguments_is_refused(changes: dict[str, Any]) -> None:
    backends.overload("merge_tokens", torch.device("cpu"))
    op = torch.ops.clasp_kernels.merge_tokens
    op(*arguments())
    with pytest.raises(RuntimeError, match=next(iter(changes))):
        op(*arguments(**changes))


def test_a_direct_call_with_any_negative_or_repeated_index_stays_in_bounds() -> None:
    backends.overload("merge_tokens", torch.device("cpu"))
    tokens = torch.arange(15.0).view(1, 5, 3)
    indices = torch.tensor([[3, -(2**62), 3, -2, 3]])
    merged = torch.ops.clasp_kernels.merge_tokens(tokens, tokens, indices, None)
    assert torch.equal(merged[0, 0], tokens[0].mean(0))
    assert not merged[0, 1:].any()
