"""Run the ops of CPU tests on another device, by moving the tensors of each call.

So one set of tests, with inputs and oracles on the CPU, covers every device. The whole storage of a
tensor is moved, so its offset, strides and gaps, and memory shared with other arguments, stay the
same.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import clasp_kernels
from clasp_kernels import ops

NAMES = tuple(name for name in ops.__all__ if inspect.isfunction(getattr(ops, name)))
# Counts that determine output shapes must stay on the host. pivot_counts may stay there too.
ON_THE_HOST = ("k", "budget", "pivot_counts")


class Memory:
    """The storages of one call's arguments, on the CPU and on ``device``."""

    def __init__(self, device: torch.device | str) -> None:
        self.device = device
        self._blocks: dict[int, tuple[Tensor, Tensor]] = {}

    def moved(self, value: Any) -> Any:
        """Move a tensor, or the tensors in a list or tuple; return other values unchanged."""
        if isinstance(value, (list, tuple)):
            return type(value)(self.moved(item) for item in value)
        if not isinstance(value, Tensor) or value.is_nested or value.layout is not torch.strided:
            return value
        if value.device.type != "cpu":
            return value
        storage = self._block(value).untyped_storage()
        view = torch.empty(0, dtype=value.dtype, device=self.device)
        view.set_(storage, value.storage_offset(), value.size(), value.stride())
        return view.requires_grad_() if value.requires_grad else view

    def _block(self, tensor: Tensor) -> Tensor:
        """Return the copy on the device of the whole storage of ``tensor``, as bytes."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._blocks:
            here = torch.empty(0, dtype=torch.uint8).set_(storage)
            self._blocks[storage._cdata] = (here, here.to(self.device, copy=True))
        return self._blocks[storage._cdata][1]

    def assert_unchanged(self) -> None:
        for here, there in self._blocks.values():
            assert torch.equal(here, there.cpu()), "the op has written to its inputs"


def brought_back(result: Any) -> Any:
    """Move a tensor, or a tuple of tensors, to the CPU."""
    if isinstance(result, Tensor):
        return result.cpu()
    items = [brought_back(item) for item in result]
    return type(result)(*items) if hasattr(result, "_fields") else type(result)(items)


def on_device(op: Callable[..., Any], device: torch.device | str) -> Callable[..., Any]:
    """Wrap ``op`` to compute CPU tensors on ``device``. Fails if the op changes an input."""
    signature = inspect.signature(op)

    @functools.wraps(op)
    def call(*args: Any, **options: Any) -> Any:
        given = signature.bind(*args, **options)
        memory = Memory(device)
        for name, value in given.arguments.items():
            if name not in ON_THE_HOST:
                given.arguments[name] = memory.moved(value)
        result = op(*given.args, **given.kwargs)
        memory.assert_unchanged()
        return brought_back(result)

    return call


@contextlib.contextmanager
def ops_on(device: torch.device | str, module: ModuleType) -> Iterator[None]:
    """Wrap every op in ``module`` and in the package with :func:`on_device` within the block."""
    whole = {name: getattr(ops, name) for name in NAMES}
    wrapped = {op: on_device(op, device) for op in whole.values()}
    places = [(vars(clasp_kernels), name, op) for name, op in whole.items()]
    for name, value in list(vars(module).items()):
        if inspect.isfunction(value) and value in wrapped:
            places.append((vars(module), name, value))
    for names, name, op in places:
        names[name] = wrapped[op]
    try:
        yield
    finally:
        for names, name, op in places:
            names[name] = op
