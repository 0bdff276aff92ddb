"""For the tests of kernels for GPUs: which are forced, and where they run."""

from __future__ import annotations

from collections.abc import Iterator

import gpu_kernels
import pytest
import torch

from clasp_kernels import backends, use_backend


@pytest.fixture(autouse=True)
def poisoned(poisoned_memory: None) -> None:
    """Every test of a kernel runs on poisoned memory."""


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where tensors have to be for the Triton kernels of the module's OP, whose backend is forced:
    on the GPU, or where there is none, as those are then interpreted, on the CPU."""
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    choice = backends.choose(request.module.OP, kind, "triton")
    if choice.backend is None:
        pytest.skip(choice.reason)
    with use_backend("triton"):
        yield kind


@pytest.fixture(params=gpu_kernels.OF_EACH_BACKEND, ids=str)
def op(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of an op on a GPU, for which these kernels are forced."""
    kernels: gpu_kernels.Kernels = request.param
    if problem := kernels.problem(gpu_kernels.DEVICE):
        pytest.skip(problem)
    with kernels.forced():
        yield kernels.op
