"""The parts of an op's benchmark: cases with their inputs, and the implementations to time.

A file of ``benchmarks/ops`` says all of that once, as a ``Benchmark``; the runners for CPU and GPU
walk over these files.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import KW_ONLY, asdict, dataclass, fields, replace
from typing import Any, ClassVar

import torch
from machine import Counted
from rows import COMPILED, COPY, EAGER, OURS, PEER
from torch import Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BYTES = {"float32": 4, "bfloat16": 2}
INDEX_BYTES = 8
# B, N, D: LLaVA-1.5 and a batch of it, LLaVA-NeXT, and four images of Qwen2.5-VL.
TOKENS = ((1, 576, 1024), (8, 576, 1024), (1, 2880, 1024), (4, 2048, 3584))

Inputs = tuple[Any, ...]
NO_CONTEXT = contextlib.nullcontext()


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
    """A context for making the function and for all of its calls. It may raise NotServed."""
    waits: str = ""
    """Why none of its calls can be captured in a graph, where torch cannot know."""
    note: str = ""

    def agrees(self, case: Case, inputs: Inputs, expected: Any, result: Any) -> bool:
        """Whether it computes what ours does, if it is meant to."""
        if self.kind in (COPY, PEER):
            return True
        return case.agree(inputs, expected, self.restore(inputs, result))


@dataclass(frozen=True)
class Case(ABC):
    """An op on inputs of one shape. ``str`` names it, dtype included."""

    op: ClassVar[str]
    turns: ClassVar[int] = 1
    """How many sets of inputs take turns on a CPU."""
    _: KW_ONLY
    priority: int = 2
    """On a GPU 0 is timed first, then 1, then 2."""
    compiles: bool = False
    """Whether torch.compile is timed on a GPU too, where it takes many seconds."""

    def shape(self) -> dict[str, Any]:
        ours = {field.name for field in fields(Case)}
        return {name: value for name, value in asdict(self).items() if name not in ours}

    @abstractmethod
    def small(self) -> Case:
        """The same case at a size at which it is tested."""

    @abstractmethod
    def inputs(self, device: str, seed: int) -> Inputs: ...

    @abstractmethod
    def counted(self) -> Counted:
        """The work of a call, from which its floor follows."""

    @abstractmethod
    def ours(self, *inputs: Any, **options: Any) -> Any: ...

    @abstractmethod
    def agree(self, inputs: Inputs, ours: Any, theirs: Any) -> bool: ...

    @abstractmethod
    def baselines(self, gpu: bool) -> list[Implementation]:
        """Return the baselines for a CPU or a GPU. Those that take long to compile come last."""

    def note(self, gpu: bool) -> str:
        """Return the note of the rows of this case."""
        return ""

    def implementations(self, gpu: bool) -> list[Implementation]:
        ours = Implementation(OURS, "ours", given(self.ours), note=self.note(gpu))
        return [ours, *self.baselines(gpu)]


@dataclass(frozen=True)
class TokenCase(Case):
    """A case with visual tokens [B, N, D]."""

    batch: int
    num_tokens: int
    dim: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.batch}x{self.num_tokens}x{self.dim} {self.dtype}"

    @property
    def element_bytes(self) -> int:
        return BYTES[self.dtype]


def few_tokens(case: Any) -> Any:
    """The same case with so few tokens that they take next to no memory."""
    return replace(case, num_tokens=16)


@dataclass(frozen=True)
class Memory:
    """The cases of an op that ``peak_memory.py`` measures."""

    cases: Sequence[Case]
    against: str | None = None
    """The baseline that is measured beside ours."""
    few: Callable[[Any], Case] = few_tokens
    limit: Callable[[Any], int | None] = lambda case: None
    """The bytes that the op promises not to exceed."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """All of an op's, as its file has them."""

    cpu: Sequence[Case]
    gpu: Sequence[Case]
    telling: tuple[str, ...]
    """The CPU's cases that docs/results.md shows: small and large, the easy dtype and the hard
    one."""
    packages: tuple[str, ...] = ()
    """Modules of others that it is compared with, where they are installed."""
    memory: Memory | None = None


def token_cases(case: Any, **more: Any) -> list[Any]:
    """One of ``case`` for every shape of tokens and dtype."""
    return [case(*shape, dtype, **more) for shape in TOKENS for dtype in DTYPES]


def given(function: Callable[..., Any]) -> Callable[[], Callable[..., Any]]:
    """Return an ``Implementation.make`` for an existing function."""
    return lambda: function


def eager(functions: dict[str, Callable[..., Any]], kind: str = EAGER) -> list[Implementation]:
    return [Implementation(name, kind, given(it)) for name, it in functions.items()]


def compiled(name: str, function: Callable[..., Any]) -> Implementation:
    """For the one case at hand: what was compiled before is forgotten, so that neither a limit on
    recompilation nor the guards of other shapes get in the way."""

    def make() -> Callable[..., Any]:
        torch.compiler.reset()
        return torch.compile(function, fullgraph=True, dynamic=False)

    return Implementation(name, COMPILED, make)


def memcpy(counted: Counted) -> Implementation:
    """``Tensor.copy_`` of half of the counted bytes: read and written, it moves all of them."""

    def adapt(inputs: Inputs) -> Inputs:
        device = next(tensor.device for tensor in tensors_of(inputs))
        source = torch.randint(256, (counted.bytes // 2,), dtype=torch.uint8, device=device)
        return source, torch.empty_like(source)

    def copy(source: Tensor, target: Tensor) -> Tensor:
        return target.copy_(source)

    return Implementation("memcpy", COPY, given(copy), adapt)


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
