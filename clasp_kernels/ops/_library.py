"""The ``clasp_kernels`` operator library: one schema per op, whoever computes it.

Each schema is defined three times. The default overload goes through the dispatcher: the reference
serves every device (CompositeExplicitAutograd) until a kernel registers for one, as those in C++
and CUDA do when their library is loaded, and Triton's for GPUs where that leaves a place. The
``.reference`` and ``.triton`` overloads are bound to one backend each, so that it can be forced,
also inside a compiled graph, where the dispatcher's choice cannot be overridden any more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _cuda, _triton
from ._vmap import batching_rule

NAMESPACE = "clasp_kernels"
LIBRARY = torch.library.Library(NAMESPACE, "DEF")
OP_NAMES: list[str] = []
_REFERENCES: dict[str, Callable[..., Any]] = {}


def define_op(
    name: str,
    signature: str,
    *,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    vmap: Callable[[Callable[..., Any]], Callable[..., Any]] = batching_rule,
) -> None:
    """Registers ``name``, ``name.reference`` and ``name.triton``, none of which records a graph."""
    for overload in (name, f"{name}.reference", f"{name}.triton"):
        LIBRARY.define(f"{overload}{signature}", tags=(torch.Tag.pt2_compliant_tag,))
        # Without this, torch's default for ops that lack a derivative makes outputs require grad
        # and warns in backward. Kernels see tensors that require grad and must not record.
        LIBRARY.impl(overload, torch.library.fallthrough_kernel, "Autograd")
        qualified = f"{NAMESPACE}::{overload}"
        torch.library.register_fake(qualified, fake, lib=LIBRARY)
        kind = overload.partition(".")[2] or "default"
        op = getattr(getattr(torch.ops.clasp_kernels, name), kind)
        torch.library.register_vmap(qualified, vmap(op), lib=LIBRARY)
    for overload in (name, f"{name}.reference"):
        LIBRARY.impl(overload, reference, "CompositeExplicitAutograd")
    if _triton.installed():
        LIBRARY.impl(f"{name}.triton", _on_device(name), "CUDA")
        if _triton.INTERPRETED:
            LIBRARY.impl(f"{name}.triton", _on_device(name), "CPU")
    OP_NAMES.append(name)
    _REFERENCES[name] = reference


def register_gpu_kernels() -> None:
    """Triton's launchers, for the ops that have no CUDA kernel by now."""
    if not _triton.installed():
        return
    for name, reference in _REFERENCES.items():
        if not _cuda.registered(name):
            LIBRARY.impl(name, _on_gpu(name, reference), "CUDA")


def _on_device(name: str) -> Callable[..., Any]:
    """Launches the Triton kernels on the tensors' device, which need not be the current one."""

    def launch(first: Tensor | list[Tensor], *rest: object) -> Any:
        tensor = first if isinstance(first, Tensor) else first[0]
        with torch.cuda.device_of(tensor):
            return _triton.launcher(name)(first, *rest)

    return launch


def _on_gpu(name: str, reference: Callable[..., Any]) -> Callable[..., Any]:
    """The Triton kernels, or on a GPU they do not support the reference, which an exported graph
    then finds too."""
    launch = _on_device(name)

    def serve(*arguments: object) -> Any:
        served = _triton.problem(name, "cuda") is None
        return launch(*arguments) if served else reference(*arguments)

    return serve
