"""complete_tokens: the best greedy completions in eager torch that we know of, and the kernels of
others for one that starts from a single token.

The eager ones normalise once, keep ``covered`` up to date instead of recomputing it, and allocate
nothing inside the loop. They differ in where the similarities come from, and which is best depends
on the shape, so a benchmark has to run them all.

The features are random, the hardest case for a lazy evaluation, or 24 noisy clusters, which is
closer to an image.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import farthest_points
import torch
from case import (
    BYTES,
    DTYPES,
    INDEX_BYTES,
    TOKENS,
    Benchmark,
    Implementation,
    Inputs,
    Maker,
    TokenCase,
    eager,
    given,
)
from machine import Counted
from rows import COMPILED, PEER
from timing import worst_choice
from torch import Tensor

from clasp_kernels import complete_tokens

Complete = Callable[[Tensor, Tensor, int], Tensor]
BUDGETS = {576: (64, 32), 2880: (320, 160), 2048: (256, 128)}  # N: (R, P)
STEPS = 8  # a compiled call
CLUSTERS = 24


def _unit_rows(features: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features.float(), dim=-1)


def _covered_by(unit: Tensor, selected: Tensor) -> Tensor:
    """[B, N]: the largest similarity to a selected token; inf for the selected ones."""
    rows = unit.gather(1, selected[..., None].expand(-1, -1, unit.shape[2]))
    covered = torch.bmm(unit, rows.transpose(1, 2)).amax(-1)
    return covered.scatter_(1, selected, float("inf"))


def per_image(features: Tensor, selected: Tensor, num_tokens: int) -> Tensor:
    """One matrix-vector product a step and image. The fastest for float32 at most shapes: the
    batched product below is far slower than as many products one by one."""
    picks = selected.new_empty(features.shape[0], num_tokens)
    for image in range(features.shape[0]):
        unit = _unit_rows(features[image : image + 1])
        covered = _covered_by(unit, selected[image : image + 1])[0]
        rows = unit[0]
        similarity = torch.empty_like(covered)
        for step in range(num_tokens):
            pick = int(covered.argmin())
            picks[image, step] = pick
            torch.mv(rows, rows[pick], out=similarity)
            torch.maximum(covered, similarity, out=covered)
            covered[pick] = float("inf")
    return picks


def batched(features: Tensor, selected: Tensor, num_tokens: int) -> Tensor:
    """One batched matrix-vector product a step."""
    unit = _unit_rows(features)
    covered = _covered_by(unit, selected)
    picks = selected.new_empty(features.shape[0], num_tokens)
    image = torch.arange(features.shape[0], device=features.device)
    similarity = covered.new_empty(*covered.shape, 1)
    for step in range(num_tokens):
        pick = covered.argmin(1)
        picks[:, step] = pick
        torch.bmm(unit, unit[image, pick].unsqueeze(-1), out=similarity)
        torch.maximum(covered, similarity[..., 0], out=covered)
        covered.scatter_(1, pick[:, None], float("inf"))
    return picks


def gram(features: Tensor, selected: Tensor, num_tokens: int) -> Tensor:
    """All N x N similarities first, then steps that only look them up."""
    unit = _unit_rows(features)
    return _look_up(torch.bmm(unit, unit.transpose(1, 2)), selected, num_tokens)


def _look_up(similarities: Tensor, selected: Tensor, num_tokens: int) -> Tensor:
    image = torch.arange(similarities.shape[0], device=similarities.device)
    covered = similarities[image[:, None], selected].amax(1)
    covered.scatter_(1, selected, float("inf"))
    picks = selected.new_empty(similarities.shape[0], num_tokens)
    for step in range(num_tokens):
        pick = covered.argmin(1)
        picks[:, step] = pick
        torch.maximum(covered, similarities[image, pick], out=covered)
        covered.scatter_(1, pick[:, None], float("inf"))
    return picks


def weighted_gram(features: Tensor, selected: Tensor, num_tokens: int, weights: Tensor) -> Tensor:
    """``gram`` for picks by weight times distance."""
    unit = _unit_rows(features)
    similarities = torch.bmm(unit, unit.transpose(1, 2))
    image = torch.arange(features.shape[0], device=features.device)
    covered = similarities[image[:, None], selected].amax(1)
    covered.scatter_(1, selected, float("inf"))
    picks = selected.new_empty(features.shape[0], num_tokens)
    for step in range(num_tokens):
        pick = (weights * (1 - covered)).argmax(1)
        picks[:, step] = pick
        torch.maximum(covered, similarities[image, pick], out=covered)
        covered.scatter_(1, pick[:, None], float("inf"))
    return picks


def gram_native(features: Tensor, selected: Tensor, num_tokens: int) -> Tensor:
    """``gram`` with the product in the features' dtype, which half precision has faster units for;
    the similarities are then rounded to it."""
    unit = _unit_rows(features).to(features.dtype)
    similarities = torch.bmm(unit, unit.transpose(1, 2))
    return _look_up(similarities, selected, num_tokens)


def _start(features: Tensor, selected: Tensor, native: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the features that the steps read [B, N, D], their inverse norms, and ``covered``."""
    if not native:
        unit = _unit_rows(features)
        return unit, unit.new_ones(unit.shape[:2]), _covered_by(unit, selected)
    inverse = features.float().square().sum(-1).rsqrt()
    rows = features.gather(1, selected[..., None].expand(-1, -1, features.shape[2])).float()
    rows = rows * inverse.gather(1, selected)[..., None]
    covered = torch.bmm(features.float(), rows.transpose(1, 2)).amax(-1) * inverse
    return features, inverse, covered.scatter(1, selected, float("inf"))


def _steps(features: Tensor, inverse: Tensor, covered: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """``count`` steps, unrolled. Products and sums, which fuse with the conversion to float32; as a
    matrix product each would be ``batched`` again."""
    picks = []
    for _ in range(count):
        pick = covered.argmin(1, keepdim=True)
        row = features.gather(1, pick[..., None].expand(-1, -1, features.shape[2]))
        row = row.float() * inverse.gather(1, pick)[..., None]
        similarity = (features.float() * row).sum(-1) * inverse
        covered = covered.maximum(similarity).scatter(1, pick, float("inf"))
        picks.append(pick)
    return torch.cat(picks, 1), covered


@functools.cache  # so that cases of one shape share what is compiled
def compiled(steps: int, native: bool) -> Complete:
    """``torch.compile`` on the start and on a few steps at once: one fused pass over the features a
    step. Several steps a call, as one call costs about as much as a step over a small image.

    ``native`` keeps half precision as it is in memory and converts on the fly.
    """
    torch._dynamo.config.recompile_limit = 32  # shapes and dtypes; 8 would be too few
    start = torch.compile(functools.partial(_start, native=native), fullgraph=True, dynamic=False)
    step = torch.compile(functools.partial(_steps, count=steps), fullgraph=True, dynamic=False)

    def complete(features: Tensor, selected: Tensor, num_tokens: int) -> Tensor:
        features, inverse, covered = start(features, selected)
        picks = []
        for _ in range(0, num_tokens, steps):
            some, covered = step(features, inverse, covered)
            picks.append(some)
        return torch.cat(picks, 1)[:, :num_tokens]

    return complete


EAGER: dict[str, Complete] = {
    "eager-per-image": per_image,
    "eager-batched": batched,
    "eager-gram": gram,
}


@dataclass(frozen=True)
class SelectionCase(TokenCase):
    """A case of selecting tokens, of which completing is all but the pivots."""

    budget: int
    num_pivots: int
    features: str = "random"

    def __str__(self) -> str:
        return f"{super().__str__()} R{self.budget} P{self.num_pivots} {self.features}"

    @property
    def is_slow(self) -> bool:
        """On a CPU."""
        return self.batch * self.num_tokens * self.dim > 2**24

    def small(self) -> SelectionCase:
        batch, pivots = min(self.batch, 2), min(self.num_pivots, 3)
        return replace(self, batch=batch, num_tokens=13, dim=16, budget=6, num_pivots=pivots)

    def made(self, device: str, seed: int) -> tuple[Tensor, Tensor]:
        """Features [B, N, D] and salience [B, N]."""
        make = Maker(device, seed)
        features = make.randn(self.batch, self.num_tokens, self.dim)
        if self.features == "clusters":
            centre = make.integers(CLUSTERS, self.batch, self.num_tokens)
            features = make.randn(CLUSTERS, self.dim)[centre] + 0.5 * features
        return features.to(DTYPES[self.dtype]), make.randn(self.batch, self.num_tokens)

    def counted(self) -> Counted:
        """Features and salience are read once. The similarities that no evaluation can do without,
        however lazy: of each completion token to all that were selected before it, as its
        coverage must be known, of each token that is never selected to one selected token, as
        that alone can show it is covered, and the norms."""
        steps = self.budget - self.num_pivots
        similarities = (
            steps * self.num_pivots
            + steps * (steps - 1) // 2
            + (self.num_tokens - self.budget)
            + self.num_tokens
        )
        read = self.num_tokens * (self.dim * self.element_bytes + BYTES["float32"])
        moved = read + self.budget * (INDEX_BYTES + 1)
        return Counted(self.batch * moved, self.batch * similarities * self.dim, self.dtype)

    def completions(self, gpu: bool) -> list[Implementation]:
        """Of ``complete_tokens``."""
        half, slow = self.dtype != "float32", self.is_slow and not gpu
        functions = dict(EAGER)
        if half and self.features == "random":
            # Similarities rounded to bfloat16 tell random tokens apart, but not those of a cluster.
            functions["eager-gram-native"] = gram_native
        if slow:
            del functions["eager-batched"]
        if self.batch > 8:
            del functions["eager-per-image"]  # which on a GPU waits for it B x R times
        if gpu:
            natives = [half] if self.compiles else []
        else:
            natives = [False, True] if half and not slow else [False]
        return [
            *eager(functions),
            *(
                Implementation(
                    "compiled-native" if native else "compiled",
                    COMPILED,
                    functools.partial(compiled, STEPS, native),
                )
                for native in natives
            ),
        ]


@dataclass(frozen=True)
class Case(SelectionCase):
    """From the most salient tokens, or from the first one alone, where farthest point sampling
    begins."""

    op = "complete_tokens"

    def inputs(self, device: str, seed: int) -> Inputs:
        features, salience = self.made(device, seed)
        selected = salience.topk(self.num_pivots, dim=1).indices
        if self.num_pivots == 1:
            selected.zero_()
        return features, selected, self.budget - self.num_pivots

    def ours(self, features: Tensor, selected: Tensor, num_tokens: int) -> Tensor:
        return complete_tokens(features, selected, num_tokens)

    def agree(self, inputs: Inputs, ours: Tensor, theirs: Tensor) -> bool:
        """Check that each pick is as good as the best candidate at that step, up to rounding."""
        features, selected, _ = inputs
        allowed = 1e-4 if self.dtype == "float32" else 2e-3
        return ours.shape == theirs.shape and worst_choice(features, selected, theirs) <= allowed

    def baselines(self, gpu: bool) -> list[Implementation]:
        others = farthest_points.implementations(gpu) if self.num_pivots == 1 else []
        return [*others, *self.completions(gpu)]


@dataclass(frozen=True)
class WeightedCase(Case):
    """With weights that are all 1, which changes no pick, or random ones."""

    weights: str = "uniform"

    def __str__(self) -> str:
        return f"{super().__str__()} {self.weights} weights"

    def inputs(self, device: str, seed: int) -> Inputs:
        inputs = super().inputs(device, seed)
        weights = torch.ones(self.batch, self.num_tokens, device=device)
        if self.weights == "random":
            weights += Maker(device, seed).randn(self.batch, self.num_tokens).abs()
        return *inputs, weights

    def ours(  # type: ignore[override]
        self, features: Tensor, selected: Tensor, num_tokens: int, weights: Tensor
    ) -> Tensor:
        return complete_tokens(features, selected, num_tokens, weights=weights)

    def agree(self, inputs: Inputs, ours: Tensor, theirs: Tensor) -> bool:
        features, selected, _, weights = inputs
        return ours.shape == theirs.shape and (
            worst_choice(features, selected, theirs, weights) <= 1e-4
        )

    def baselines(self, gpu: bool) -> list[Implementation]:
        """Beside the eager one, our own without weights, which shows what they cost."""
        unweighted = Implementation(
            "without weights", PEER, given(complete_tokens), lambda inputs: inputs[:3]
        )
        return [*eager({"eager-gram": weighted_gram}), unweighted]


BF16 = "bfloat16"
BENCHMARK = Benchmark(
    cpu=[
        *(
            Case(*shape, dtype, *BUDGETS[576])
            for shape in TOKENS
            for dtype in DTYPES
            if shape[1] == 576
        ),
        Case(1, 576, 1024, "float32", 64, 1),
        Case(8, 576, 1024, "float32", 64, 1),
        Case(1, 2880, 1024, "float32", 320, 1),
        WeightedCase(1, 576, 1024, "float32", 64, 32, weights="uniform"),
        WeightedCase(1, 576, 1024, "float32", 64, 32, weights="random"),
    ],
    gpu=[
        Case(1, 576, 1024, BF16, 64, 1, priority=0),
        Case(64, 576, 1024, BF16, 64, 1, priority=0),
        Case(1, 2880, 1024, BF16, 320, 1, priority=1),
        Case(1, 576, 1024, "float32", 64, 1, priority=1),
        Case(64, 576, 1024, "float32", 64, 1, priority=1),
        Case(1, 576, 1024, BF16, 64, 32, priority=1),
        Case(64, 576, 1024, BF16, 64, 32, priority=1),
    ],
    telling=("8x576x1024 float32 R64 P32 random",),
    packages=farthest_points.PACKAGES,
)
