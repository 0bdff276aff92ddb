"""select_tokens, complete_tokens and select_pivots against eager torch and torch.compile.

The features are random, the hardest case for a lazy evaluation, or 24 noisy clusters, which is
closer to an image.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import cases
import eager_select_pivots
import eager_select_tokens
import torch
from cases import DTYPES
from rows import COMPILED
from timing import overlap, worst_choice
from torch import Tensor

from clasp_kernels import complete_tokens, select_pivots, select_tokens

from . import designs, farthest_points
from .implementation import Implementation, Inputs, Maker, compiled, eager

STEPS = 8  # a compiled call
CLUSTERS = 24


@dataclass(frozen=True)
class SelectCase(cases.SelectCase):
    priority: int = 2
    compiles: bool = False

    op = "select_tokens"

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
        return [*eager(functions), *others]  # what is compiled last, as it takes long

    def implementations(self) -> list[Implementation]:
        def whole(make: Callable[[], Callable[..., Any]]) -> Callable[[], Callable[..., Any]]:
            select = eager_select_tokens.select_tokens
            return lambda: functools.partial(select, complete=make())

        ways = designs.implementations(self.op, self.ours)
        return [*ways, *(replace(one, make=whole(one.make)) for one in self.completions())]


@dataclass(frozen=True)
class CompleteCase(SelectCase):
    op = "complete_tokens"

    def inputs(self, device: str, seed: int) -> Inputs:
        features, salience, budget, num_pivots = super().inputs(device, seed)
        return features, salience.topk(num_pivots, dim=1).indices, budget - num_pivots

    def ours(self, features: Tensor, selected: Tensor, num_tokens: int) -> Tensor:  # type: ignore[override]
        return complete_tokens(features, selected, num_tokens)

    def agree(self, inputs: Inputs, ours: Tensor, theirs: Tensor) -> bool:
        """Whoever picks, each pick is as good as the best was at that point, but for rounding."""
        features, selected, _ = inputs
        allowed = 1e-4 if self.dtype == "float32" else 2e-3
        return ours.shape == theirs.shape and worst_choice(features, selected, theirs) <= allowed

    def implementations(self) -> list[Implementation]:
        return [*designs.implementations(self.op, self.ours), *self.completions()]


@dataclass(frozen=True)
class FarthestPointCase(CompleteCase):
    """From the first token alone, where farthest point sampling begins."""

    def small(self) -> FarthestPointCase:
        return replace(super().small(), num_pivots=1)

    def inputs(self, device: str, seed: int) -> Inputs:
        features, selected, num_tokens = super().inputs(device, seed)
        return features, torch.zeros_like(selected), num_tokens

    def completions(self) -> list[Implementation]:
        return [*farthest_points.implementations(), *super().completions()]


@dataclass(frozen=True)
class PivotCase(cases.PivotCase):
    priority: int = 2
    compiles: bool = False

    op = "select_pivots"

    def small(self) -> PivotCase:
        return replace(self, batch=min(self.batch, 2), num_tokens=19, k=5)

    def inputs(self, device: str, seed: int) -> Inputs:
        salience = Maker(device, seed).randn(self.batch, self.num_tokens)
        return salience.to(DTYPES[self.dtype]), self.k

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
        # What the targets are about.
        SelectCase(1, 576, 1024, bf16, 64, 32, priority=0, compiles=True),
        SelectCase(64, 576, 1024, bf16, 64, 32, priority=0),
        SelectCase(1, 2880, 1024, bf16, 320, 160, priority=0),
        SelectCase(8, 576, 1024, bf16, 64, 32, priority=0),
        SelectCase(16, 576, 1024, bf16, 64, 32, priority=0),
        SelectCase(8, 2880, 1024, bf16, 320, 160, priority=0),
        SelectCase(1, 576, 1024, "float32", 64, 32, priority=0),
        SelectCase(64, 576, 1024, "float32", 64, 32, priority=0),
        # Where one design takes over from another.
        SelectCase(1, 1280, 1024, bf16, 128, 64, priority=1),
        SelectCase(1, 729, 1152, bf16, 128, 64, priority=1),
        SelectCase(1, 256, 1024, bf16, 32, 16, priority=1),
        SelectCase(1, 640, 1024, bf16, 64, 32, priority=1),
        SelectCase(1, 640, 1024, "float32", 64, 32, priority=1),
        SelectCase(1, 576, 1024, bf16, 192, 96, priority=1),
        SelectCase(1, 16384, 1024, bf16, 512, 256, priority=1),
        SelectCase(64, 576, 1024, bf16, 64, 32, "clusters", priority=1),
        SelectCase(64, 256, 1024, bf16, 32, 16),
        SelectCase(64, 729, 1152, bf16, 128, 64),
        SelectCase(64, 1280, 1024, bf16, 128, 64),
        SelectCase(1, 576, 1024, bf16, 64, 32, "clusters"),
        SelectCase(1, 2880, 3584, bf16, 320, 160),
        SelectCase(64, 2880, 1024, bf16, 320, 160),
        SelectCase(1, 8192, 3584, bf16, 910, 455),
    ]


def complete_cases() -> list[CompleteCase]:
    bf16 = "bfloat16"
    return [
        FarthestPointCase(1, 576, 1024, bf16, 64, 1, priority=0),
        FarthestPointCase(64, 576, 1024, bf16, 64, 1, priority=0),
        FarthestPointCase(1, 2880, 1024, bf16, 320, 1, priority=1),
        FarthestPointCase(1, 576, 1024, "float32", 64, 1, priority=1),
        FarthestPointCase(64, 576, 1024, "float32", 64, 1, priority=1),
        CompleteCase(1, 576, 1024, bf16, 64, 32, priority=1),
        CompleteCase(64, 576, 1024, bf16, 64, 32, priority=1),
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
