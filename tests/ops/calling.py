"""Calling an op by its name, and comparing what comes out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import clasp_kernels


def run(op: str, arguments: dict[str, Any]) -> tuple[Tensor, ...]:
    result = getattr(clasp_kernels, op)(**arguments)
    return (result,) if isinstance(result, Tensor) else tuple(result)


def tensors_mapped(arguments: dict[str, Any], change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    mapped = {}
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            mapped[name] = change(value)
        elif isinstance(value, list) and isinstance(value[0], Tensor):
            mapped[name] = [change(item) for item in value]
        else:
            mapped[name] = value
    return mapped


def assert_same_bits(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def handed_to_torch(op: str, arguments: dict[str, Any]) -> tuple[Any, ...]:
    """The arguments that the public function hands to the torch op."""
    seen: list[tuple[Any, ...]] = []

    class Spy(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "clasp_kernels":
                seen.append(args)
            return func(*args, **(kwargs or {}))

    with Spy():
        run(op, arguments)
    return seen[0]
