"""What only the Triton kernels of fuse_layers have: blocks, two passes over rows, launches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clasp_kernels import fuse_layers, reference
from clasp_kernels.triton import configs
from clasp_kernels.triton.configs import FusionBlocks

OP = "fuse_layers"
NAN = float("nan")
NORMS = pytest.mark.parametrize("normalize", [None, "l2", "rms"])
# Smaller than they would be, so that a few tokens fill several of them.
TILES = {
    "wider than high": FusionBlocks(2, 8, 2, 1),
    "higher than wide": FusionBlocks(8, 2, 1, 1),
}


EVERY_TILE = pytest.mark.parametrize("tile", TILES.values(), ids=TILES, indirect=True)


@pytest.fixture
def tile(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(configs, OP, lambda *sizes, norms: request.param)


def random_layers(*shape: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(sum(shape))
    return [torch.randn(shape, generator=random) for _ in range(3)]


def assert_right(
    states: list[Tensor], weights: Tensor, ids: Tensor | None, normalize: str | None, device: str
) -> None:
    there = [layer.to(device) for layer in states]
    fused = fuse_layers(
        there, weights.to(device), None if ids is None else ids.to(device), normalize=normalize
    )
    rows = weights if weights.dim() == 2 else weights[None]
    expected = reference.fuse_layers(states, rows, ids, normalize or "none")
    tolerance = 1e-6 if fused.dtype == torch.float32 else 2**-7  # both round
    torch.testing.assert_close(fused.cpu(), expected, rtol=tolerance, atol=1e-6)


@NORMS
@EVERY_TILE
@pytest.mark.parametrize(
    ("tokens", "dim"), [(1, 1), (1, 17), (2, 8), (3, 9), (4, 7), (7, 3), (8, 2), (9, 1)]
)
def test_any_number_of_tokens_and_features(device, tile, tokens, dim, normalize) -> None:
    """Rows longer than a block are normalised in two passes."""
    weights = torch.tensor([[0.5, 0.0, -2.0], [1.0, 3.0, 0.25]])
    assert_right(random_layers(2, tokens, dim), weights, torch.tensor([1, 0]), normalize, device)


@pytest.mark.parametrize("dim", [4096, 4097, 8192, 8193])
def test_rows_around_the_longest_that_registers_hold(device, dim) -> None:
    layers = [layer.bfloat16() for layer in random_layers(1, 1, dim)]
    assert_right(layers, torch.tensor([0.5, 1.0, -2.0]), None, "rms", device)


@NORMS
@pytest.mark.parametrize("tile", [TILES["wider than high"]], indirect=True)
@pytest.mark.parametrize("dim", [8, 9])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_more_layers_than_a_launch_takes(device, monkeypatch, tile, count, dim, normalize) -> None:
    monkeypatch.setattr(configs, "LAYERS_PER_LAUNCH", 2)
    layers = [torch.ones(1, 1, dim, dtype=torch.bfloat16)] * count
    # In bfloat16, 256 and one more is 256: what a launch leaves to the next must be float32.
    assert_right(layers, torch.tensor([256.0, 1, 1, 1, 1])[:count], None, normalize, device)


def test_64_layers_and_one(device) -> None:
    layers = random_layers(1, 2, 3)[:1] * 65
    assert_right(layers, torch.arange(65.0), None, "rms", device)


@NORMS
@pytest.mark.parametrize("tile", [TILES["wider than high"]], indirect=True)
@pytest.mark.parametrize("dim", [8, 9])
def test_an_unused_layer_may_hold_anything(device, tile, dim, normalize) -> None:
    layers = random_layers(2, 2, dim)
    weights = torch.tensor([[0.5, 0.0, 1.0], [0.0, -0.0, 1.0]])
    layers[1].fill_(NAN)
    layers[0][1] = NAN
    assert_right(layers, weights, torch.tensor([0, 1]), normalize, device)


@NORMS
@pytest.mark.parametrize("tile", [TILES["wider than high"]], indirect=True)
@pytest.mark.parametrize("dim", [8, 9])
@pytest.mark.parametrize("category", [-1, 2, 2**40])
def test_a_category_out_of_range_stays_in_bounds(device, tile, dim, normalize, category) -> None:
    """Past the checks, as on a GPU: that image is NaN, the others are as they were."""
    layers = [layer.to(device) for layer in random_layers(2, 2, dim)]
    weights = torch.tensor([[0.5, 0.0, 1.0], [0.0, 2.0, 1.0]], device=device)
    ids = torch.tensor([1, category], device=device)
    op = torch.ops.clasp_kernels.fuse_layers.triton
    fused = op(layers, weights, ids, normalize or "none")
    assert fused[1].isnan().all()
    right = op(layers, weights, torch.tensor([1, 0], device=device), normalize or "none")
    assert torch.equal(fused[0], right[0])


@NORMS
def test_every_layer_has_strides_of_its_own(device, normalize) -> None:
    layers = random_layers(2, 3, 5)
    layers[0] = torch.cat([torch.full((2, 1, 5), NAN), layers[0]], 1)[:, 1:]
    layers[1] = layers[1].permute(2, 0, 1).contiguous().permute(1, 2, 0)
    layers[2] = layers[2][:1].expand(2, 3, 5)
    weights = torch.tensor([[0.5, 3.0], [9.0, 9.0], [1.0, 2.0], [9.0, 9.0], [-1.0, 0.0]]).T
    ids = torch.tensor([1, 9, 0])[::2]
    assert_right(layers, weights[:, ::2], ids, normalize, device)


@NORMS
def test_a_layer_may_come_twice(device, normalize) -> None:
    layer = random_layers(2, 3, 5)[0]
    assert_right([layer, layer], torch.tensor([0.5, 3.0]), None, normalize, device)
