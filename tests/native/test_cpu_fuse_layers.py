"""``fuse_layers`` on the CPU, called through torch.

Covers threads, batches, strides, low precision, and direct calls without the checks in Python.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensors import DTYPES
from torch import Tensor

from clasp_kernels import backends, fuse_layers

pytestmark = pytest.mark.usefixtures("cpu_backend")


def random_layers(count: int, *shape: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(count)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(count)]


@pytest.mark.parametrize("count", [4, 24])
@pytest.mark.parametrize("normalize", [None, "l2", "rms"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_batch_mates_and_repetition_do_not_matter(
    dtype: torch.dtype, normalize: str | None, count: int, threads: None
) -> None:
    layers = random_layers(count, 5, 61, 200, dtype=dtype)
    weights = torch.randn(3, count, generator=torch.Generator().manual_seed(0))
    weights[1, ::2] = 0
    ids = torch.tensor([2, 0, 1, 1, 2])
    torch.set_num_threads(1)
    expected = fuse_layers(layers, weights, ids, normalize=normalize)
    for num_threads in (1, 2, 3, 4):
        torch.set_num_threads(num_threads)
        for _ in range(3):
            again = fuse_layers(layers, weights, ids, normalize=normalize)
            assert torch.equal(again, expected)
        for image in range(5):
            one = [layer[image : image + 1] for layer in layers]
            alone = fuse_layers(one, weights, ids[image : image + 1], normalize=normalize)
            assert torch.equal(alone[0], expected[image])
            alone = fuse_layers(one, weights[ids[image]], normalize=normalize)
            assert torch.equal(alone[0], expected[image])


@pytest.mark.parametrize("normalize", [None, "l2", "rms"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_views_give_what_their_copies_give(dtype: torch.dtype, normalize: str | None) -> None:
    layers = random_layers(3, 3, 41, 54, dtype=dtype)
    weights = torch.tensor([0.2, 0.5, 0.3])
    views = {
        "without the first token": [layer[:, 1:] for layer in layers],
        "every other token": [layer[:, ::2] for layer in layers],
        "every third feature": [layer[..., ::3] for layer in layers],
        "off by one element": [layer[..., 1:] for layer in layers],
        "tokens last": [layer.mT.contiguous().mT for layer in layers],
        "batch inside": [layer.transpose(0, 1).contiguous().transpose(0, 1) for layer in layers],
        "one image, expanded": [layer[:1].expand(3, -1, -1) for layer in layers],
        "one feature": [layer[..., 5:6] for layer in layers],
        "each its own": [layers[0], layers[1].mT.contiguous().mT, layers[2][:1].expand(3, -1, -1)],
    }
    for name, view in views.items():
        copies = [layer.clone(memory_format=torch.contiguous_format) for layer in view]
        fused = fuse_layers(view, weights, normalize=normalize)
        assert fused.is_contiguous()
        assert torch.equal(fused, fuse_layers(copies, weights, normalize=normalize)), name
    strided = torch.stack([weights, weights], 1)[:, 0]
    expected = fuse_layers(layers, weights, normalize=normalize)
    assert torch.equal(fuse_layers(layers, strided, normalize=normalize), expected)
    ids = torch.tensor([0, 7, 1, 7, 0, 7])[::2]
    rows = torch.stack([weights, 2 * weights])
    fused = fuse_layers(layers, rows, ids, normalize=normalize)
    assert torch.equal(fused, fuse_layers(layers, rows, ids.clone(), normalize=normalize))


@pytest.mark.parametrize("normalize", [None, "l2", "rms"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_no_worse_than_twice_what_torch_does(dtype: torch.dtype, normalize: str | None) -> None:
    layers = random_layers(24, 1, 64, 1024, dtype=dtype)
    weights = torch.full((24,), 1 / 24)

    def in_torch(states: list[Tensor]) -> Tensor:
        if normalize == "l2":
            states = [torch.nn.functional.normalize(layer, dim=-1) for layer in states]
        if normalize == "rms":
            states = [torch.nn.functional.rms_norm(layer, (1024,), eps=1e-6) for layer in states]
        return sum(w.to(layer.dtype) * layer for w, layer in zip(weights, states, strict=True))

    exact = in_torch([layer.double() for layer in layers])
    theirs = (in_torch(layers).double() - exact).abs().max()
    ours = (fuse_layers(layers, weights, normalize=normalize).double() - exact).abs().max()
    assert ours <= 2 * theirs


def arguments(**changes: Any) -> tuple[Any, ...]:
    values = {
        "hidden_states": [torch.zeros(2, 5, 3)] * 4,
        "weights": torch.zeros(3, 4),
        "category_ids": torch.tensor([2, 0]),
        "normalize": "none",
    }
    return tuple((values | changes).values())


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_states": []},
        {"hidden_states": [torch.zeros(2, 5)] * 4},
        {"hidden_states": [torch.zeros(2, 5, 3), torch.zeros(2, 5, 4)] * 2},
        {"hidden_states": [torch.zeros(2, 5, 3), torch.zeros(2, 5, 3).half()] * 2},
        {"hidden_states": [torch.zeros(2, 5, 3, dtype=torch.float64)] * 4},
        {"weights": torch.zeros(3, 3)},
        {"weights": torch.zeros(4)},
        {"weights": torch.zeros(0, 4)},
        {"weights": torch.zeros(3, 4, dtype=torch.float64)},
        {"weights": torch.zeros(2, 4), "category_ids": None},
        {"category_ids": torch.tensor([0])},
        {"category_ids": torch.tensor([0, 1], dtype=torch.int32)},
        {"category_ids": torch.tensor([0, 3])},
        {"category_ids": torch.tensor([-1, 0])},
        {"category_ids": torch.tensor([-(2**62), 0])},
        {"normalize": "l1"},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_a_direct_call_with_wrong_arguments_is_refused(changes: dict[str, Any]) -> None:
    backends.overload("fuse_layers", torch.device("cpu"))
    op = torch.ops.clasp_kernels.fuse_layers
    op(*arguments())
    names = "|".join(["category_ids", *changes] if "weights" in changes else changes)
    with pytest.raises(RuntimeError, match=names):
        op(*arguments(**changes))
