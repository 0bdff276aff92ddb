"""What a benchmark on a GPU consists of: a case with its inputs, and who is timed on it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import timing
import torch
from machine import Counted
from rows import COMPILED, COPY, EAGER
from torch import Tensor

Inputs = tuple[Any, ...]
NO_CONTEXT = contextlib.nullcontext()
MOST_INPUT_BYTES = 40 << 30  # of one set of inputs; baselines that stack them need a multiple


class Case(Protocol):
    """``str`` names it, dtype included. ``priority``: 0 is timed first, then 1, then 2.
    ``compiles``: one of its implementations takes many seconds to compile."""

    op: str
    dtype: str
    priority: int
    compiles: bool

    def shape(self) -> dict[str, Any]: ...

    def small(self) -> Case: ...

    def inputs(self, device: str, seed: int) -> Inputs: ...

    def counted(self) -> Counted: ...

    def ours(self, *inputs: Any) -> Any: ...

    def agree(self, inputs: Inputs, ours: Any, theirs: Any) -> bool: ...

    def implementations(self) -> list[Implementation]: ...


class NotServed(Exception):
    """An implementation is not there, or not for this case; the message says why."""


@dataclass(frozen=True)
class Implementation:
    name: str
    kind: str
    make: Callable[[], Callable[..., Any]]
    """The function to be timed, which takes the case's inputs; made once a case."""
    adapt: Callable[[Inputs], Inputs] = lambda inputs: inputs
    """To inputs as they would be where this is used, before the clock starts."""
    restore: Callable[[Inputs, Any], Any] = lambda inputs, result: result
    """From its result, and the case's inputs, to a result as ours is; no part of what is timed."""
    within: Callable[[str], AbstractContextManager[None]] = lambda device: NO_CONTEXT
    """What holds around making it and all of its calls; may raise NotServed."""
    waits: str = ""
    """Why none of its calls can be captured in a graph, where torch cannot know."""


def eager(functions: dict[str, Callable[..., Any]], kind: str = EAGER) -> list[Implementation]:
    return [Implementation(name, kind, lambda it=it: it) for name, it in functions.items()]


def compiled(name: str, function: Callable[..., Any]) -> Implementation:
    return Implementation(name, COMPILED, lambda: timing.compiled(function))


def copy_of(counted: Counted) -> Implementation:
    """A copy between tensors on the device that moves the counted bytes, read plus written."""

    def adapt(inputs: Inputs) -> Inputs:
        device = next(tensor.device for tensor in tensors_of(inputs))
        source = torch.randint(256, (counted.bytes // 2,), dtype=torch.uint8, device=device)
        return source, torch.empty_like(source)

    return Implementation("copy", COPY, lambda: lambda source, target: target.copy_(source), adapt)


def first_line(error: Exception) -> str:
    text = str(error).strip() or "no message"
    return text.splitlines()[0][:300]


def tensors_of(inputs: Any) -> list[Tensor]:
    if isinstance(inputs, Tensor):
        return [inputs]
    if isinstance(inputs, (list, tuple)):
        return [tensor for item in inputs for tensor in tensors_of(item)]
    return []


class Maker:
    """Random tensors of one seed, made on the device they are for."""

    def __init__(self, device: str, seed: int) -> None:
        self.device = device
        self.random = torch.Generator(device).manual_seed(seed)

    def randn(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=self.random, device=self.device, dtype=dtype)

    def integers(self, end: int, *shape: int) -> Tensor:
        return torch.randint(end, shape, generator=self.random, device=self.device)
