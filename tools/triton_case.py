"""A case of the Triton check: a builder of a launcher's arguments, and what to build them with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from triton_resources import Resources


@dataclass(frozen=True)
class Case:
    """One call of a launcher."""

    build: Callable[..., tuple[Any, ...]]
    options: dict[str, Any]
    wide: bool
    """Whether the tokens must be accessed 16 bytes at a time."""

    def arguments(self, batch: int) -> tuple[Any, ...]:
        return self.build(batch, **self.options)

    def __str__(self) -> str:
        return ", ".join(f"{key}={_short(value)}" for key, value in self.options.items())


@dataclass(frozen=True)
class FewWarps:
    """Lets the registers of a kernel halve occupancy; an exception that is not needed fails."""

    kernel: str
    """As the summary names it, with its module."""
    warps: int
    """The fewest that must still fit."""
    reason: str
    capabilities: tuple[int, ...] = (80, 90, 100)

    def concerns(self, resources: Resources) -> bool:
        return resources.registers_halve_occupancy

    def suffices(self, resources: Resources) -> bool:
        return resources.warps_by_registers >= self.warps

    def __str__(self) -> str:
        return f"may leave {self.warps} of 64 warps"


@dataclass(frozen=True)
class Spills:
    """Lets a kernel use local memory; an exception that is not needed fails."""

    kernel: str
    """As the summary names it, with its module."""
    spilled: int
    """The most bytes a thread."""
    reason: str
    capabilities: tuple[int, ...] = (80, 90, 100)

    def concerns(self, resources: Resources) -> bool:
        return resources.spilled > 0

    def suffices(self, resources: Resources) -> bool:
        return resources.spilled <= self.spilled

    def __str__(self) -> str:
        return f"may spill {self.spilled} bytes"


Exemption = FewWarps | Spills


def _short(value: object) -> str:
    return str(value).removeprefix("torch.")


def case(build: Callable[..., tuple[Any, ...]]) -> Callable[..., Case]:
    """Makes a builder of arguments one of cases; ``wide`` is the case's, the rest are options."""

    @functools.wraps(build)
    def make(*, wide: bool = False, **options: Any) -> Case:
        return Case(build, options, wide)

    return make


def meta(*shape: int, scalar: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=scalar, device="meta")


def indices(*shape: int) -> Tensor:
    return meta(*shape, scalar=torch.int64)


def mask(*shape: int) -> Tensor:
    return meta(*shape, scalar=torch.bool)
