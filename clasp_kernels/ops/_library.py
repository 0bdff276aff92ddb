"""The ``clasp_kernels`` operator library: one schema per op for all backends.

Each schema is defined three times. The default overload goes through the dispatcher. The reference
serves every device (CompositeExplicitAutograd) unless a kernel is registered for it. The C++ and
CUDA libraries register theirs when they are loaded; Triton kernels are registered for ops without a
CUDA kernel. The ``.reference`` and ``.triton`` overloads are bound to one backend each, so that it
can also be forced inside a compiled graph, where the dispatcher's choice can no longer be
overridden.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..backends import cuda, table, triton
from ..backends.chooser import choose
from ..triton import INTERPRETED
from ._vmap import batching_rule

NAMESPACE = "clasp_kernels"
LIBRARY = torch.library.Library(NAMESPACE, "DEF")


def define_op(spec: table.OpSpec) -> None:
    """Adds an op to the table and registers its overloads.

    The overloads are ``name``, ``name.reference`` and ``name.triton``. None of them records an
    autograd graph.
    """
    table.add(spec)
    name = spec.name
    for overload in (name, f"{name}.reference", f"{name}.triton"):
        LIBRARY.define(f"{overload}{spec.schema}", tags=(torch.Tag.pt2_compliant_tag,))
        # Without this, torch's default for ops without a derivative makes outputs require grad and
        # warns in backward. Inputs may require grad, but kernels must not record a graph.
        LIBRARY.impl(overload, torch.library.fallthrough_kernel, "Autograd")
        qualified = f"{NAMESPACE}::{overload}"
        torch.library.register_fake(qualified, spec.fake, lib=LIBRARY)
        kind = overload.partition(".")[2] or "default"
        op = getattr(getattr(torch.ops.clasp_kernels, name), kind)
        rule = spec.vmap or batching_rule
        torch.library.register_vmap(qualified, rule(op), lib=LIBRARY)
    for overload in (name, f"{name}.reference"):
        LIBRARY.impl(overload, spec.reference, "CompositeExplicitAutograd")
    if spec.triton and triton.installed():
        LIBRARY.impl(f"{name}.triton", _on_device(name), "CUDA")
        if INTERPRETED:
            LIBRARY.impl(f"{name}.triton", _on_device(name), "CPU")
    if _gpu_kernels_are_registered:
        _register_gpu_kernel(name)


# Whether the CUDA extension was loaded, if it is there. Its kernels are registered first.
_gpu_kernels_are_registered = False


def register_gpu_kernels() -> None:
    """Registers the Triton launchers of the ops that have no CUDA kernel, and of later ops."""
    global _gpu_kernels_are_registered
    for name in table.OPS:
        _register_gpu_kernel(name)
    _gpu_kernels_are_registered = True


def _register_gpu_kernel(name: str) -> None:
    if triton.installed() and table.has_kernel(name, "triton") and not cuda.registered(name):
        LIBRARY.impl(name, on_gpu(name), "CUDA")


def _on_device(name: str) -> Callable[..., Any]:
    """Launches the Triton kernels on the device of the tensors, which need not be current."""

    def launch(first: Tensor | list[Tensor], *rest: object) -> Any:
        tensor = first if isinstance(first, Tensor) else first[0]
        with torch.cuda.device_of(tensor):
            return triton.launcher(name)(first, *rest)

    return launch


def on_gpu(name: str) -> Callable[..., Any]:
    """The Triton kernels, or the reference on a GPU that they do not support.

    An exported graph calls the default overload, so it makes the same choice.
    """
    launch, reference = _on_device(name), table.OPS[name].reference

    # Cached, because the backend of an op does not change within a process.
    @functools.cache
    def chosen() -> Callable[..., Any]:
        return launch if choose(name, "cuda", "auto").backend == "triton" else reference

    return lambda *arguments: chosen()(*arguments)
