"""The table of ops: the definition of each op and the backends that have kernels for it.

Each file in ``ops/`` adds its op. All lists of ops are made from this table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class OpSpec:
    """One op. The reference serves it on every device, besides the backends named here."""

    name: str
    schema: str
    """Arguments and results in the syntax of ``torch.library.Library.define``."""
    reference: Callable[..., Any]
    """The op in plain torch."""
    fake: Callable[..., Any]
    """The op for tensors without data: returns tensors of the output shapes and dtypes."""
    vmap: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None
    """Makes the batching rule of an overload. None if every tensor begins with the batch."""
    cpu: bool = False
    """Whether the C++ extension has a kernel."""
    cuda: bool = False
    """Whether the CUDA extension has a kernel."""
    triton: str | None = None
    """The launcher of the Triton kernels, "module:function", which takes the schema's arguments."""
    ordered_by_barriers: bool = False
    """Whether the Triton kernels rely on a barrier to order writes to global memory before the
    reads of other threads or programs. On AMD GPUs the barrier does not wait for those writes."""


OPS: dict[str, OpSpec] = {}


def add(op: OpSpec) -> None:
    """Adds an op to the table.

    Raises:
        ValueError: an op of this name exists.
    """
    if op.name in OPS:
        raise ValueError(f"there is an op named {op.name} already")
    OPS[op.name] = op


def has_kernel(op: str, backend: str) -> bool:
    """Whether ``backend`` ("cpu", "triton" or "cuda") has a kernel for the op."""
    return bool(getattr(OPS[op], backend))


def ops_of(backend: str) -> tuple[str, ...]:
    """The ops that ``backend`` has kernels for, in the order of the table."""
    return tuple(op for op in OPS if has_kernel(op, backend))
