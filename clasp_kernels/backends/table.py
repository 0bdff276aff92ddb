"""The table of ops: what defines each of them, and which backends have kernels for it.

Every op adds its own line, from its file in ``ops/``. Whatever lists ops reads this table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class OpSpec:
    """One op. Its backends are the reference, which serves every device, and those named here."""

    name: str
    schema: str
    """Arguments and results, as ``torch.library.Library.define`` takes them after the name."""
    reference: Callable[..., Any]
    """The op in plain torch."""
    fake: Callable[..., Any]
    """The op for tensors without data: the shapes and dtypes of its results."""
    vmap: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None
    """Makes the batching rule of an overload. None where every tensor begins with the images."""
    cpu: bool = False
    """Whether the C++ extension has a kernel."""
    cuda: bool = False
    """Whether the CUDA extension has a kernel."""
    triton: str | None = None
    """The function that launches the Triton kernels, as "module:function". It takes the arguments
    of the schema."""
    ordered_by_barriers: bool = False
    """Whether threads of the Triton kernels read, after a barrier, what other threads or programs
    wrote to global memory. On AMD GPUs the barrier does not wait for those writes."""


OPS: dict[str, OpSpec] = {}


def add(op: OpSpec) -> None:
    """
    Raises:
        ValueError: there is an op of this name.
    """
    if op.name in OPS:
        raise ValueError(f"there is an op named {op.name} already")
    OPS[op.name] = op


def has_kernel(op: str, backend: str) -> bool:
    """Whether ``backend``, "cpu", "triton" or "cuda", has a kernel for the op."""
    return bool(getattr(OPS[op], backend))


def ops_of(backend: str) -> tuple[str, ...]:
    """The ops that ``backend`` has kernels for, in the order of the table."""
    return tuple(op for op in OPS if has_kernel(op, backend))
