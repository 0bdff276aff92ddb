"""On a GPU: right results at the sizes of real models, the same every time, in any batch."""

from __future__ import annotations

import itertools

import gpu_checks
import large
import pytest
import torch
from inputs import DTYPES

from clasp_kernels import fuse_layers, gather_tokens, use_backend

if not torch.cuda.is_available():
    pytest.skip("there is no GPU", allow_module_level=True)

TOKENS = (1, 31, 576, 577, 2880, 8192)
DIMS = (1, 63, 1024, 3584)
EVERY_SIZE = [large.Size(2, *size) for size in itertools.product(TOKENS, DIMS)]
SOME_SIZES = [size for size in EVERY_SIZE if size.dim == 1024 or size.tokens == 577]
REAL_SIZES = [large.Size(8, 576, 1024), large.Size(8, 2880, 1024)]


def sizes_and_dtypes() -> list:
    return [
        pytest.param(size, dtype, id=f"{size}-{dtype}")
        for dtype in DTYPES
        for size in (EVERY_SIZE if dtype == torch.bfloat16 else SOME_SIZES)
    ]


@pytest.mark.parametrize(("size", "dtype"), sizes_and_dtypes())
def test_right_at_every_size(op, size, dtype) -> None:
    if problem := gpu_checks.problem(op, "cuda"):
        pytest.skip(problem)
    gpu_checks.assert_right(op, size, dtype, "cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", REAL_SIZES, ids=str)
def test_twenty_runs_give_the_same_bits(op, size, dtype) -> None:
    gpu_checks.assert_same_bits_every_time(op, size, dtype, "cuda", times=20)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", REAL_SIZES, ids=str)
def test_an_image_does_not_depend_on_its_batch(op, size, dtype) -> None:
    gpu_checks.assert_images_are_independent(op, size, dtype, "cuda")


@pytest.fixture
def a_lot_of_memory() -> None:
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0]
    if free < 24 << 30:
        pytest.skip(f"needs 24 GiB of GPU memory, {free >> 30} are free")


BEYOND_32_BITS = (9, 65536, 4096)  # 2.4e9 elements


def test_fuses_layers_of_more_than_2_to_the_31_elements(a_lot_of_memory) -> None:
    with gpu_checks.kernels_of("fuse_layers"):
        layers = [
            torch.randn(BEYOND_32_BITS, dtype=torch.bfloat16, device="cuda") for _ in range(2)
        ]
        weights = torch.tensor([0.25, 0.75], device="cuda")
        fused = fuse_layers(layers, weights)
        for image in (0, 8):
            alone = fuse_layers([layer[image : image + 1].clone() for layer in layers], weights)
            assert torch.equal(fused[image], alone[0])
            expected = 0.25 * layers[0][image, -5:].double() + 0.75 * layers[1][image, -5:].double()
            torch.testing.assert_close(alone[0, -5:].double(), expected, rtol=2**-8, atol=1e-5)


def test_gathers_from_and_to_more_than_2_to_the_31_elements(a_lot_of_memory) -> None:
    with gpu_checks.kernels_of("gather_tokens"):
        tokens = torch.randn(BEYOND_32_BITS, dtype=torch.bfloat16, device="cuda")
        indices = torch.randint(tokens.shape[1], tokens.shape[:2], device="cuda")
        indices[:, -2] = tokens.shape[1] - 1
        gathered = gather_tokens(tokens, indices)
        for image in (0, 7, 8):
            assert torch.equal(gathered[image], tokens[image].index_select(0, indices[image]))


def test_the_reference_serves_a_gpu_too() -> None:
    """What the others are compared with there."""
    with use_backend("reference"):
        for name in large.OPS:
            gpu_checks.assert_right(name, large.Size(2, 31, 63), torch.bfloat16, "cuda")
