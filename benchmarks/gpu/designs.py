"""The ways in which a GPU may compute a selection, timed side by side with the automatic choice.

They are the designs of the CUDA extension and the Triton kernels. Each is forced, so that a shape
that it does not serve is refused, and said to be.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

from case import Implementation, NotServed, first_line
from rows import DESIGN

from clasp_kernels import backends, use_backend
from clasp_kernels.backends.table import has_kernel

ENVIRONMENT = "CLASP_KERNELS_CUDA_DESIGN"
# Name: backend, and design of the CUDA extension.
DESIGNS = {
    "cuda-matrix": ("cuda", "matrix"),
    "cuda-steps": ("cuda", "steps"),
    "triton": ("triton", "auto"),
}


@contextlib.contextmanager
def design(name: str) -> Iterator[None]:
    """Within the block the CUDA extension, which looks at every call, is told the design."""
    before = os.environ.get(ENVIRONMENT)
    os.environ[ENVIRONMENT] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ[ENVIRONMENT]
        else:
            os.environ[ENVIRONMENT] = before


@contextlib.contextmanager
def forced(op: str, backend: str, name: str, device: str) -> Iterator[None]:
    choice = backends.choose(op, device, backend)
    if choice.backend is None:
        raise NotServed(choice.reason)
    with use_backend(backend), design(name):
        try:
            yield
        except (RuntimeError, ValueError) as error:
            # What a design refuses it refuses by this name; anything else has gone wrong.
            if ENVIRONMENT not in str(error):
                raise
            raise NotServed(first_line(error)) from error


def implementations(op: str, ours: Callable[..., Any]) -> list[Implementation]:
    """Return our designs for an op that has CUDA kernels."""
    if not has_kernel(op, "cuda"):
        return []
    return [
        Implementation(
            name, DESIGN, lambda: ours, within=functools.partial(forced, op, backend, design_name)
        )
        for name, (backend, design_name) in DESIGNS.items()
    ]
