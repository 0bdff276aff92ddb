"""A case of the Triton check: a builder of a launcher's arguments and its options."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One call of a launcher."""

    build: Callable[..., tuple[Any, ...]]
    options: dict[str, Any]
    wide: bool
    """Whether tokens must be accessed 16 bytes at a time."""

    def arguments(self, batch: int) -> tuple[Any, ...]:
        return self.build(batch, **self.options)

    def __str__(self) -> str:
        return ", ".join(f"{key}={_short(value)}" for key, value in self.options.items())


def _short(value: object) -> str:
    return str(value).removeprefix("torch.")


def case(build: Callable[..., tuple[Any, ...]]) -> Callable[..., Case]:
    """Turns a builder of arguments into a builder of cases; ``wide`` is the case's own field."""

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
