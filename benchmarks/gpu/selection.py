"""select_tokens, complete_tokens and select_pivots against eager torch and torch.compile.

The features are random, the hardest case for a lazy evaluation, or 24 noisy clusters, which is
closer to an image.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import eager_select_pivots
import eager_select_tokens
import torch
from cases import BYTES, DTYPES, INDEX_BYTES, TokenCase
from machine import Counted
from rows import COMPILED
from timing import overlap
from torch import Tensor

from clasp_kernels import complete_tokens, select_pivots, select_tokens

from .implementation import Implementation, Inputs, Maker, compiled, eager

STEPS = 8  # a compiled call
CLUSTERS = 24


@dataclass(frozen=True)
class SelectCase(TokenCase):
    budget: int
    num_pivots: int
    features: str = "random"
    priority: int = 2
    compiles: bool = False

    op = "select_tokens"

    def __str__(self) -> str:
        return f"{super().__str__()} R{self.budget} P{self.num_pivots} {self.features}"

    def small(self) -> SelectCase:
        return replace(
            self, batch=min(self.batch, 2), num_tokens=21, dim=16, budget=7, num_pivots=3
        )

    def inputs(self, device: str, seed: int) -> Inputs:
        make = Maker(device, seed)
        features = make.randn(self.batch, self.num_tokens, self.dim)
        if self.features == "clusters":
            centre = make.integers(CLUSTERS, self.batch, self.num_tokens)
            features = make.randn(CLUSTERS, self.dim)[centre] + 0.5 * features
        salience = make.randn(self.batch, self.num_tokens)
        return features.to(DTYPES[self.dtype]), salience, self.budget, self.num_pivots

    def counted(self) -> Counted:
        """Features and salience are read once, whatever the steps read again."""
        read = self.num_tokens * (self.dim * self.element_bytes + BYTES["float32"])
        return Counted(self.batch * (read + self.budget * (INDEX_BYTES + 1)), 0, self.dtype)

    def ours(self, features: Tensor, salience: Tensor, budget: int, num_pivots: int) -> Tensor:
        return select_tokens(features, salience, budget, num_pivots).indices

    def agree(self, inputs: Inputs, ours: Tensor, theirs: Tensor) -> bool:
        return overlap(ours, theirs) > 0.85

    def completions(self) -> list[Implementation]:
        others = []
        if self.compiles:
            native = self.dtype != "float32"
            make = functools.partial(eager_select_tokens.compiled, STEPS, native)
            name = "compiled-native" if native else "compiled"
            others.append(Implementation(name, COMPILED, make))
        functions = dict(eager_select_tokens.EAGER)
        if self.dtype != "float32" and self.features == "random":
            # Similarities rounded to bfloat16 tell random tokens apart, but not those of a cluster.
            functions["eager-gram-native"] = eager_select_tokens.gram_native
        if self.batch > 8:
            del functions["eager-per-image"]  # which waits for the device B x R times
        return [*others, *eager(functions)]

    def implementations(self) -> list[Implementation]:
        def whole(make: Callable[[], Callable[..., Any]]) -> Callable[[], Callable[..., Any]]:
            select = eager_select_tokens.select_tokens
            return lambda: functools.partial(select, complete=make())

        return [replace(one, make=whole(one.make)) for one in self.completions()]


@dataclass(frozen=True)
class CompleteCase(SelectCase):
    op = "complete_tokens"

    def inputs(self, device: str, seed: int) -> Inputs:
        features, salience, budget, num_pivots = super().inputs(device, seed)
        return features, salience.topk(num_pivots, dim=1).indices, budget - num_pivots

    def ours(self, features: Tensor, selected: Tensor, num_tokens: int) -> Tensor:  # type: ignore[override]
        return complete_tokens(features, selected, num_tokens)

    def implementations(self) -> list[Implementation]:
        return self.completions()


@dataclass(frozen=True)
class PivotCase:
    batch: int
    num_tokens: int
    k: int
    dtype: str = "float32"
    priority: int = 2
    compiles: bool = False

    op = "select_pivots"

    def __str__(self) -> str:
        return f"{self.batch}x{self.num_tokens} {self.dtype} k{self.k}"

    def shape(self) -> dict[str, Any]:
        return asdict(self)

    def small(self) -> PivotCase:
        return replace(self, batch=min(self.batch, 2), num_tokens=19, k=5)

    def inputs(self, device: str, seed: int) -> Inputs:
        salience = Maker(device, seed).randn(self.batch, self.num_tokens)
        return salience.to(DTYPES[self.dtype]), self.k

    def counted(self) -> Counted:
        moved = self.batch * (self.num_tokens * BYTES[self.dtype] + self.k * INDEX_BYTES)
        return Counted(moved, 0, self.dtype)

    def ours(self, salience: Tensor, k: int) -> Tensor:
        return select_pivots(salience, k)

    def agree(self, inputs: Inputs, ours: Tensor, theirs: Tensor) -> bool:
        """In the numbers, as ties are broken differently."""
        return torch.equal(inputs[0].gather(1, ours), inputs[0].gather(1, theirs))

    def implementations(self) -> list[Implementation]:
        functions = dict(eager_select_pivots.EAGER)
        del functions["eager-topk-images"]  # B launches where eager-topk has one
        extra = [compiled("compiled-topk", eager_select_pivots.topk)] if self.compiles else []
        return [*extra, *eager(functions)]


def select_cases() -> list[SelectCase]:
    bf16 = "bfloat16"
    return [
        SelectCase(1, 576, 1024, bf16, 64, 32, priority=0, compiles=True),
        SelectCase(64, 576, 1024, bf16, 64, 32, priority=0),
        SelectCase(1, 2880, 1024, bf16, 320, 160, priority=0),
        SelectCase(64, 576, 1024, bf16, 64, 32, "clusters", priority=1),
        SelectCase(8, 576, 1024, bf16, 64, 32, priority=1),
        SelectCase(1, 576, 1024, "float32", 64, 32, priority=1),
        SelectCase(8, 2880, 1024, bf16, 320, 160),
        SelectCase(1, 576, 1024, bf16, 64, 32, "clusters"),
        SelectCase(1, 2880, 3584, bf16, 320, 160),
        SelectCase(64, 2880, 1024, bf16, 320, 160),
        SelectCase(1, 8192, 3584, bf16, 910, 455),
    ]


def complete_cases() -> list[CompleteCase]:
    return [
        CompleteCase(1, 576, 1024, "bfloat16", 64, 32, priority=1),
        CompleteCase(64, 576, 1024, "bfloat16", 64, 32),
    ]


def pivot_cases() -> list[PivotCase]:
    first = PivotCase(1, 576, 32, priority=0, compiles=True)
    return [
        first,
        PivotCase(64, 576, 32, priority=1),
        PivotCase(1, 16384, 910, priority=1),
        PivotCase(8, 576, 32),
        *(PivotCase(batch, n, n // 18) for n in (2880, 8192) for batch in (1, 8, 64)),
        PivotCase(64, 576, 32, "bfloat16"),
    ]
