"""The ``clasp_kernels`` operator library: one schema per op, whoever computes it.

Each schema is defined twice. The default overload goes through the dispatcher: the reference
serves every device (CompositeExplicitAutograd) until a native kernel registers for one. The
``.reference`` overload is bound to the reference alone, so that it can be forced, also inside a
compiled graph, where the dispatcher's choice cannot be overridden any more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

NAMESPACE = "clasp_kernels"
LIBRARY = torch.library.Library(NAMESPACE, "DEF")
OP_NAMES: list[str] = []


def define_op(
    name: str, signature: str, *, reference: Callable[..., Any], fake: Callable[..., Any]
) -> None:
    """Registers ``name`` and ``name.reference``; both record no autograd graph."""
    for overload in (name, f"{name}.reference"):
        LIBRARY.define(f"{overload}{signature}", tags=(torch.Tag.pt2_compliant_tag,))
        LIBRARY.impl(overload, reference, "CompositeExplicitAutograd")
        # Without this, torch's default for ops that lack a derivative makes outputs require grad
        # and warns in backward. Kernels see tensors that require grad and must not record.
        LIBRARY.impl(overload, torch.library.fallthrough_kernel, "Autograd")
        torch.library.register_fake(f"{NAMESPACE}::{overload}", fake, lib=LIBRARY)
    OP_NAMES.append(name)
