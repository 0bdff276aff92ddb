"""The CPU operators, called through torch.

Covers threads, batches, strides, and direct calls without the checks in Python.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensors import DTYPES, clusters
from torch import Tensor

from clasp_kernels import (
    attention_salience,
    backends,
    complete_tokens,
    fuse_layers,
    merge_tokens,
    select_pivots,
    select_tokens,
)

OPS = torch.ops.clasp_kernels
pytestmark = pytest.mark.usefixtures("cpu_backend")


def image_like(batch: int, num_tokens: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch * num_tokens + dim)
    tokens = clusters(generator, batch, num_tokens, dim)
    salience = torch.randn(batch, num_tokens, generator=generator)
    return tokens.to(dtype), salience


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_picks_at_full_size_are_certified(dtype: torch.dtype) -> None:
    features, salience = image_like(1, 576, 1024, dtype)
    pivots = salience.topk(32).indices
    picks = complete_tokens(features, pivots, 32)[0]

    unit = torch.nn.functional.normalize(features[0].double(), dim=-1)
    covered = (unit @ unit[pivots[0]].T).amax(1)
    free = torch.ones(576, dtype=torch.bool).index_fill(0, pivots[0], False)
    for pick in picks:
        assert free[pick]
        assert covered[pick] <= covered[free].min() + 1e-5
        free[pick] = False
        covered = covered.maximum(unit @ unit[pick])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_batch_mates_and_repetition_do_not_matter(
    dtype: torch.dtype, threads: None
) -> None:
    features, salience = image_like(5, 300, 96, dtype)
    budget, pivots = [70, 12, 299, 0, 300], [20, 12, 7, 1, 300]
    torch.set_num_threads(1)
    expected = select_tokens(features, salience, budget, pivots)
    for num_threads in (1, 2, 4):
        torch.set_num_threads(num_threads)
        for _ in range(3):
            again = select_tokens(features, salience, budget, pivots)
            assert all(map(torch.equal, again, expected))
        for image in range(5):
            one = slice(image, image + 1)
            alone = select_tokens(features[one], salience[one], budget[image], pivots[image])
            width = budget[image]
            assert torch.equal(alone.indices[0], expected.indices[image, :width])
            assert torch.equal(alone.is_pivot[0], expected.is_pivot[image, :width])
            assert alone.counts[0] == expected.counts[image]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_views_give_what_their_copies_give(dtype: torch.dtype) -> None:
    features, salience = image_like(3, 50, 24, dtype)
    views = {
        "without its first token": (features[:, 1:], salience[:, 1:]),
        "every other token": (features[:, ::2], salience[:, ::2]),
        "every third feature": (features[..., ::3], salience),
        "tokens last": (features.transpose(1, 2).contiguous().transpose(1, 2), salience),
        "batch inside": (
            features.transpose(0, 1).contiguous().transpose(0, 1),
            salience.T.clone().T,
        ),
        "one image, expanded": (features[:1].expand(3, -1, -1), salience[:1].expand(3, -1)),
        "one feature": (features[..., 5:6], salience),
    }
    for name, (view, scores) in views.items():
        kept = select_tokens(view, scores, 20, 8)
        copied = select_tokens(
            view.clone(memory_format=torch.contiguous_format), scores.clone(), 20, 8
        )
        assert all(map(torch.equal, kept, copied)), name
    mask = torch.rand(3, 100) < 0.5
    kept = select_tokens(features, salience, 20, 8, valid=mask[:, ::2])
    copied = select_tokens(features, salience, 20, 8, valid=mask[:, ::2].clone())
    assert all(map(torch.equal, kept, copied))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_salience_in_any_dtype(dtype: torch.dtype) -> None:
    features = torch.eye(6)[None]
    salience = torch.tensor([[0.5, math.nan, 2.0, -math.inf, -0.0, 0.0]]).to(dtype)
    for count, kept in ((1, [2]), (2, [0, 2]), (3, [0, 2, 4]), (5, [0, 2, 3, 4, 5])):
        assert select_tokens(features, salience, count, count).indices.tolist() == [kept]


def arguments(**changes: Any) -> tuple[Any, ...]:
    values = {
        "features": torch.zeros(2, 5, 3),
        "salience": torch.zeros(2, 5),
        "num_tokens": 4,
        "budget": None,
        "num_pivots": 2,
        "pivot_counts": None,
        "valid": None,
        "weights": None,
    }
    return tuple((values | changes).values())


@pytest.mark.parametrize(
    "changes",
    [
        {"features": torch.zeros(2, 5)},
        {"features": torch.zeros(2, 5, 3, dtype=torch.float64)},
        {"salience": torch.zeros(2, 4)},
        {"salience": torch.zeros(2, 5, dtype=torch.int32)},
        {"budget": torch.ones(3, dtype=torch.int64)},
        {"budget": torch.ones(2, dtype=torch.int32)},
        {"pivot_counts": torch.ones(2, 2, dtype=torch.int64)},
        {"weights": torch.ones(2, 4)},
        {"weights": torch.ones(2, 5, dtype=torch.float64)},
        {"valid": torch.ones(2, 6, dtype=torch.bool)},
        {"valid": torch.ones(2, 5, dtype=torch.int8)},
        {"num_tokens": -1},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_a_direct_call_with_wrong_arguments_is_refused(changes: dict[str, Any]) -> None:
    backends.overload("select_tokens", torch.device("cpu"))
    OPS.select_tokens(*arguments())
    with pytest.raises(RuntimeError, match=next(iter(changes)).replace("num_tokens", "budget")):
        OPS.select_tokens(*arguments(**changes))


def test_a_direct_call_with_counts_out_of_range_stays_in_bounds() -> None:
    counts = torch.tensor([-3, 10**12])
    indices, is_pivot, kept = OPS.select_tokens(*arguments(budget=counts, pivot_counts=counts))
    assert kept.tolist() == [0, 4]
    assert indices.tolist() == [[-1] * 4, [0, 1, 2, 3]]
    assert is_pivot.tolist() == [[False] * 4, [True, True, False, False]]


def test_a_direct_call_with_a_selection_out_of_range_is_refused() -> None:
    features = torch.zeros(1, 5, 3)
    for wrong in (5, 2**40):
        with pytest.raises(RuntimeError, match="selected"):
            OPS.complete_tokens(features, torch.tensor([[0, wrong]]), 2, None)
        with pytest.raises(RuntimeError, match="selected"):
            OPS.cover_tokens(features, torch.tensor([[0, wrong]]), 2, None, None, None, None)
    # Any negative index is an unused slot, and a repeated index is selected once.
    picks = OPS.complete_tokens(features, torch.tensor([[-(2**40), 0, 0, -1]]), 4, None)
    assert picks.tolist() == [[1, 2, 3, 4]]
    selected = torch.tensor([[-(2**40), 0, 0, -1]])
    counts = torch.tensor([2**40])
    picks = OPS.cover_tokens(features, selected, 4, counts, None, None, None)
    assert picks.tolist() == [[1, 2, 3, 4]]


def test_flushing_subnormals_loses_no_float16() -> None:
    """Salience below 6e-5 is subnormal in float16, and common if there are many tokens."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(8, 300, 24, generator=generator).half()
    salience = (torch.rand(8, 300, generator=generator) * 5e-5).half()
    strided = features.transpose(1, 2).contiguous().transpose(1, 2) * 1e-5
    expected = select_tokens(features, salience, 40, 30), select_tokens(strided, salience, 40, 4)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush subnormals")
    try:
        flushed = select_tokens(features, salience, 40, 30), select_tokens(strided, salience, 40, 4)
    finally:
        torch.set_flush_denormal(False)
    for before, after in zip(expected, flushed, strict=True):
        assert all(map(torch.equal, before, after))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_threads_inside_a_large_image_do_not_matter(dtype: torch.dtype, threads: None) -> None:
    """The image is large enough for many parallel rounds, so a data race would show in some."""
    features, salience = image_like(1, 2000, 512, dtype)
    torch.set_num_threads(1)
    expected = select_tokens(features, salience, 300, 100)
    torch.set_num_threads(4)
    for _ in range(12):
        assert torch.equal(select_tokens(features, salience, 300, 100).indices, expected.indices)


@pytest.mark.parametrize("true", [2, 255])
def test_any_byte_but_zero_is_true(true: int) -> None:
    """Masks viewed from bytes, such as those of Pillow or OpenCV, hold other values than 1."""
    generator = torch.Generator().manual_seed(0)
    plain = torch.rand(2, 40, generator=generator) < 0.5
    mask = (plain.to(torch.uint8) * true).view(torch.bool)
    features, salience = image_like(2, 40, 12, torch.float32)
    heads = torch.randn(2, 3, 40, 8, generator=generator)
    pivots = select_pivots(salience, 3)
    calls: list[Callable[[Tensor], Tensor | tuple[Tensor, ...]]] = [
        lambda valid: select_tokens(features, salience, 30, 5, valid=valid),
        lambda valid: complete_tokens(features, pivots, 30, valid=valid),
        lambda valid: select_pivots(salience, 30, valid=valid),
        lambda valid: merge_tokens(features, features, pivots, valid=valid),
        lambda valid: attention_salience(heads[:, :, :4], heads, key_valid=valid),
    ]
    for call in calls:
        torch.testing.assert_close(call(mask), call(plain), rtol=0, atol=0)


def test_threads_do_not_matter_where_the_caller_flushes_subnormals(threads: None) -> None:
    """torch.set_flush_denormal only affects the calling thread."""
    features, salience = image_like(6, 200, 64, torch.float32)
    features = features * 1e-20
    indices = select_pivots(salience, 20)
    calls: list[Callable[[], Tensor | tuple[Tensor, ...]]] = [
        lambda: select_tokens(features, salience, 60, 20),
        lambda: select_tokens(features[:1], salience[:1], 60, 20),
        lambda: fuse_layers([features, 2 * features], torch.ones(2), normalize="l2"),
        lambda: merge_tokens(features, features, indices),
        lambda: attention_salience(features[:, None, :4] * 1e-19, features[:, None]),
    ]
    expected = [call() for call in calls]
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush subnormals")
    try:
        for num_threads in (1, 2, 4):
            torch.set_num_threads(num_threads)
            for call, before in zip(calls, expected, strict=True):
                torch.testing.assert_close(call(), before, rtol=0, atol=0)
    finally:
        torch.set_flush_denormal(False)
