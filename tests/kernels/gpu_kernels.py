"""The kernels that a GPU has: those of each backend, and of the CUDA extension each design."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple
from unittest import mock

import large
import pytest
import torch

import clasp_kernels.ops  # noqa: F401  registers them, before extensions with kernels are loaded
from clasp_kernels import backends, use_backend
from clasp_kernels.backends import table

DEVICE = "cuda"  # of the tensors in the tests that need a GPU
CUDA_DESIGN = "CLASP_KERNELS_CUDA_DESIGN"
MATRIX_TOKENS = 8192  # the most of an image


class Kernels(NamedTuple):
    """What serves an op."""

    op: str
    backend: str
    design: str | None = None
    """Of the CUDA extension; with "auto" it chooses by shape."""

    def __str__(self) -> str:
        return "-".join(filter(None, self))

    def problem(self, device: str) -> str | None:
        """Why they cannot serve on ``device``, or None where they can."""
        choice = backends.choose(self.op, torch.device(device).type, self.backend)
        return choice.reason if choice.backend is None else None

    def fit(self, size: large.Size) -> bool:
        """Whether features of this size are any that they serve."""
        return self.design != "matrix" or size.tokens <= MATRIX_TOKENS

    @contextlib.contextmanager
    def forced(self) -> Iterator[None]:
        """Within the block nothing else serves."""
        chosen = {} if self.design is None else {CUDA_DESIGN: self.design}
        with use_backend(self.backend), mock.patch.dict(os.environ, chosen):
            yield


def cuda(*designs: str) -> list[Kernels]:
    return [Kernels(op, "cuda", design) for design in designs for op in table.ops_of("cuda")]


TRITON = [Kernels(op, "triton") for op in large.OPS]
# For what depends on how a backend is called, not on its kernels.
OF_EACH_BACKEND = TRITON + cuda("auto")
# For what the kernels do: "auto" is one of the others then.
OF_EACH_DESIGN = TRITON + cuda("matrix", "steps")


def each(kernels: Iterable[Kernels]) -> pytest.MarkDecorator:
    """Runs a test that asks for ``op`` with all these."""
    return pytest.mark.parametrize("op", list(kernels), indirect=True, ids=str)


def each_that_fits(
    kernels: Iterable[Kernels], sizes: Iterable[large.Size], dtypes: Iterable[torch.dtype]
) -> list:
    """Of every combination those that the kernels serve, for :func:`with_sizes`."""
    return [
        pytest.param(chosen, size, dtype, id=f"{chosen}-{size}-{dtype}")
        for chosen in kernels
        for dtype in dtypes
        for size in sizes
        if chosen.fit(size)
    ]


def with_sizes(cases: list) -> pytest.MarkDecorator:
    """Runs a test that asks for ``op``, ``size`` and ``dtype`` with all these."""
    return pytest.mark.parametrize(("op", "size", "dtype"), cases, indirect=["op"])
