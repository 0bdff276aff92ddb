"""On a GPU: what the designs of the CUDA extension promise, to the last tie and byte of memory."""

from __future__ import annotations

import gpu_checks
import large
import pytest
import torch
from calling import assert_same_bits, run
from gpu_kernels import CUDA_DESIGN, DEVICE, Kernels, cuda, each, each_that_fits, with_sizes
from inputs import DTYPES

if not torch.cuda.is_available():
    pytest.skip("there is no GPU", allow_module_level=True)

DESIGNS = cuda("matrix", "steps")

weighted_too = pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])


EQUAL = [large.Size(3, 576, 1024), large.Size(2, 2880, 1024)]


@pytest.mark.parametrize("seed", range(3))
@with_sizes(each_that_fits(DESIGNS, EQUAL, DTYPES))
def test_equal_tokens_tie(op, size, dtype, seed) -> None:
    """Features whose sums round: a sum in another order would break the tie."""
    gpu_checks.assert_equal_tokens_tie(op, size, dtype, DEVICE, seed)


# Batches that do not go through at once: similarities of 33 MB an image, or of 256 MiB, and 0.3 MB
# an image for what a launch a step remembers.
MATRIX_WAVES = [large.Size(9, 2880, 1024), large.Size(17, 2880, 63), large.Size(2, 8192, 64)]
STEP_WAVES = [large.Size(1100, 16384, 2)]
WAVES = [
    *each_that_fits(cuda("matrix"), MATRIX_WAVES, [torch.bfloat16]),
    *each_that_fits(cuda("steps"), STEP_WAVES, [torch.bfloat16]),
    *each_that_fits(cuda("auto"), MATRIX_WAVES[:1], [torch.float32]),
]
# These go through at once, and should not take more either.
AT_ONCE = [
    *each_that_fits(cuda("steps"), [large.Size(256, 576, 64)], [torch.bfloat16]),
    *each_that_fits(cuda("steps", "auto"), [large.Size(1, 16384, 64)], [torch.float32]),
]


@weighted_too
@with_sizes(WAVES)
def test_an_image_does_not_depend_on_its_wave(op, size, dtype, weighted) -> None:
    gpu_checks.assert_images_are_independent(op, size, dtype, DEVICE, weighted=weighted)


@weighted_too
@with_sizes([case for case in WAVES if case.values[1].batch < 10])
def test_right_in_waves(op, size, dtype, weighted) -> None:
    gpu_checks.assert_right(op, size, dtype, DEVICE, weighted=weighted)


# One number of tokens for each block size of the scan.
WEIGHTED = [large.Size(3, 576, 1024), large.Size(3, 2880, 63), large.Size(2, 8192, 64)]


@with_sizes(each_that_fits(DESIGNS, WEIGHTED, DTYPES))
def test_right_with_weights(op, size, dtype) -> None:
    gpu_checks.assert_right(op, size, dtype, DEVICE, weighted=True)


@with_sizes(each_that_fits(DESIGNS, WEIGHTED, DTYPES))
def test_equal_weights_change_no_bit(op, size, dtype) -> None:
    given = large.arguments(op, size, dtype, DEVICE)
    expected = run(op, given)
    weights = torch.full((size.batch, size.tokens), 0.3, device=DEVICE)
    weights[~given["valid"]] = 2.0
    assert_same_bits(run(op, {**given, "weights": weights}), expected)


@weighted_too
@pytest.mark.parametrize("ragged", [False, True])
@with_sizes(WAVES + AT_ONCE)
def test_takes_no_more_than_a_workspace(op, size, dtype, ragged, weighted) -> None:
    given = large.arguments(op, size, dtype, DEVICE, ragged=ragged, weighted=weighted)
    gpu_checks.assert_takes_no_more_than_a_workspace(op, given)


@with_sizes(each_that_fits(cuda("matrix"), [large.Size(9, 2880, 64)], [torch.bfloat16]))
def test_what_memory_held_does_not_matter_to_waves(op, size, dtype) -> None:
    gpu_checks.assert_what_memory_held_does_not_matter(op, size, dtype, DEVICE)


@each(cuda("auto"))
def test_a_design_that_cannot_serve_says_so_and_is_not_chosen(op) -> None:
    """What the other tests leave out is what it refuses."""
    kernels, size = Kernels(op, "cuda", "matrix"), large.Size(1, 8193, 8)
    assert not kernels.fit(size)
    given = large.arguments(op, size, torch.bfloat16, DEVICE)
    with kernels.forced(), pytest.raises((RuntimeError, ValueError), match=CUDA_DESIGN):
        run(op, given)
    run(op, given)


@each(cuda("auto"))
def test_the_design_is_read_at_every_call(op, monkeypatch) -> None:
    given = large.arguments(op, large.Size(2, 65, 64), torch.float32, DEVICE)
    expected = run(op, given)
    for design in ("steps", "fastest", "matrix", "auto"):
        monkeypatch.setenv(CUDA_DESIGN, design)
        if design == "fastest":
            with pytest.raises((RuntimeError, ValueError), match="fastest"):
                run(op, given)
        else:
            # Noise, whose picks are nowhere near a tie.
            assert_same_bits(run(op, given), expected)
