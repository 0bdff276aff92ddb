"""On a GPU: right results at the sizes of real models, the same every time, in any batch."""

from __future__ import annotations

import itertools

import gpu_checks
import large
import pytest
import torch
from gpu_kernels import (
    DEVICE,
    OF_EACH_DESIGN,
    TRITON,
    Kernels,
    cuda,
    each,
    each_that_fits,
    with_sizes,
)
from inputs import DTYPES

from clasp_kernels import fuse_layers, gather_tokens, use_backend

if not torch.cuda.is_available():
    pytest.skip("there is no GPU", allow_module_level=True)

TOKENS = (1, 31, 576, 577, 2880, 8192)
DIMS = (1, 63, 1024, 3584)
EVERY_SIZE = [large.Size(2, *size) for size in itertools.product(TOKENS, DIMS)]
SOME_SIZES = [size for size in EVERY_SIZE if size.dim == 1024 or size.tokens == 577]
REAL_SIZES = [large.Size(8, 576, 1024), large.Size(8, 2880, 1024)]
# Past what any design but "steps" holds; the last once only, as it takes longest.
MOST_TOKENS = [large.Size(2, 16384, 1), large.Size(2, 16384, 63), large.Size(2, 16384, 1024)]
LARGEST = large.Size(1, 16384, 3584)
HALF = [torch.bfloat16]

# Every size in bfloat16 only; the designs of the CUDA extension that it does not choose by itself
# with some sizes only.
RIGHT = [
    *each_that_fits(TRITON + cuda("auto"), EVERY_SIZE, HALF),
    *each_that_fits(TRITON, SOME_SIZES, [dtype for dtype in DTYPES if dtype not in HALF]),
    *each_that_fits(cuda("matrix", "steps"), SOME_SIZES, DTYPES),
    *each_that_fits(cuda("auto"), MOST_TOKENS, HALF),
    *each_that_fits([Kernels("select_tokens", "cuda", "auto")], [LARGEST], HALF),
]


@with_sizes(RIGHT)
def test_right_at_every_size(op, size, dtype) -> None:
    if problem := gpu_checks.problem(op, DEVICE):
        pytest.skip(problem)
    gpu_checks.assert_right(op, size, dtype, DEVICE)


@with_sizes(each_that_fits(OF_EACH_DESIGN, REAL_SIZES, DTYPES))
def test_twenty_runs_give_the_same_bits(op, size, dtype) -> None:
    gpu_checks.assert_same_bits_every_time(op, size, dtype, DEVICE, times=20)


@with_sizes(each_that_fits(OF_EACH_DESIGN, REAL_SIZES, DTYPES))
def test_an_image_does_not_depend_on_its_batch(op, size, dtype) -> None:
    gpu_checks.assert_images_are_independent(op, size, dtype, DEVICE)


@with_sizes(each_that_fits(OF_EACH_DESIGN, [large.Size(2, 576, 1024)], DTYPES))
def test_what_memory_held_does_not_matter(op, size, dtype) -> None:
    gpu_checks.assert_what_memory_held_does_not_matter(op, size, dtype, DEVICE)


@pytest.fixture
def a_lot_of_memory() -> None:
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0]
    if free < 24 << 30:
        pytest.skip(f"needs 24 GiB of GPU memory, {free >> 30} are free")


BEYOND_32_BITS = (9, 65536, 4096)  # 2.4e9 elements


@each([Kernels("fuse_layers", "triton")])
def test_fuses_layers_of_more_than_2_to_the_31_elements(op, a_lot_of_memory) -> None:
    layers = [torch.randn(BEYOND_32_BITS, dtype=torch.bfloat16, device=DEVICE) for _ in range(2)]
    weights = torch.tensor([0.25, 0.75], device=DEVICE)
    fused = fuse_layers(layers, weights)
    for image in (0, 8):
        alone = fuse_layers([layer[image : image + 1].clone() for layer in layers], weights)
        assert torch.equal(fused[image], alone[0])
        expected = 0.25 * layers[0][image, -5:].double() + 0.75 * layers[1][image, -5:].double()
        torch.testing.assert_close(alone[0, -5:].double(), expected, rtol=2**-8, atol=1e-5)


@each([Kernels("gather_tokens", "triton")])
def test_gathers_from_and_to_more_than_2_to_the_31_elements(op, a_lot_of_memory) -> None:
    tokens = torch.randn(BEYOND_32_BITS, dtype=torch.bfloat16, device=DEVICE)
    indices = torch.randint(tokens.shape[1], tokens.shape[:2], device=DEVICE)
    indices[:, -2] = tokens.shape[1] - 1
    gathered = gather_tokens(tokens, indices)
    for image in (0, 7, 8):
        assert torch.equal(gathered[image], tokens[image].index_select(0, indices[image]))


def test_the_reference_serves_a_gpu_too() -> None:
    """What the others are compared with there."""
    with use_backend("reference"):
        for name in large.OPS:
            gpu_checks.assert_right(name, large.Size(2, 31, 63), torch.bfloat16, DEVICE)
