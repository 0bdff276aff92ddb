"""select_tokens: the pivots and every completion of ``complete_tokens``, and what others select.

The others do the same job by other rules, so they keep other tokens: they are shown for
orientation, not compared as the same computation. Each is written in eager torch and our own words,
as fast as we know how: DivPrune's and CDPruner's greedy steps update what they need instead of
recomputing it. They take features [B, N, D] and salience [B, N] to indices [B, R], ascending.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from case import DTYPES, TOKENS, Benchmark, Implementation, Inputs, Memory, eager
from rows import PEER
from timing import overlap
from torch import Tensor
from torch.nn import functional

from clasp_kernels import select_tokens

from .complete_tokens import BUDGETS, Complete, SelectionCase

Select = Callable[[Tensor, Tensor, int, int], Tensor]  # features, salience, budget, pivots
SLOW = (
    "runs for seconds: three rounds where a call takes 0.4 s; left out: eager-batched, "
    "compiled-native and, in bfloat16, others' methods"
)


def select(
    features: Tensor, salience: Tensor, budget: int, num_pivots: int, complete: Complete
) -> Tensor:
    """The kept indices [B, R], ascending."""
    pivots = salience.topk(num_pivots, dim=1).indices
    completion = complete(features, pivots, budget - num_pivots)
    return torch.cat([pivots, completion], dim=1).sort(dim=1).values


def _cosines(features: Tensor) -> Tensor:
    unit = functional.normalize(features.float(), dim=-1)
    return torch.bmm(unit, unit.transpose(1, 2))


def divprune(features: Tensor, salience: Tensor, budget: int, num_pivots: int) -> Tensor:
    """DivPrune (Alvar et al., arXiv 2503.02175): max-min diversity over the full N x N distances.

    It starts at the token that is farthest from its nearest neighbour and then always takes the
    one farthest from those taken. Salience plays no part.
    """
    distances = 1 - _cosines(features)
    batch, tokens = distances.shape[:2]
    image = torch.arange(batch)
    picks = torch.empty(batch, budget, dtype=torch.int64)
    distances.diagonal(dim1=1, dim2=2).fill_(float("inf"))
    pick = distances.amin(-1).argmax(-1)
    nearest = torch.full((batch, tokens), float("inf"))
    for step in range(budget):
        picks[:, step] = pick
        torch.minimum(nearest, distances[image, pick], out=nearest)
        nearest.scatter_(1, picks[:, : step + 1], float("-inf"))
        pick = nearest.argmax(-1)
    return picks.sort(-1).values


def cdpruner(features: Tensor, salience: Tensor, budget: int, num_pivots: int) -> Tensor:
    """CDPruner (Zhang et al., arXiv 2506.10967): the likeliest subset of a determinantal point
    process whose kernel is the similarity conditioned on relevance, found greedily.

    Each step takes the token with the largest gain in determinant, which is the square of the next
    diagonal entry of a Cholesky factorisation that grows by one row a step.
    """
    relevance = salience.float()
    low, high = relevance.amin(-1, keepdim=True), relevance.amax(-1, keepdim=True)
    relevance = (relevance - low) / (high - low) + 1e-6
    kernel = _cosines(features).mul_(relevance[:, :, None]).mul_(relevance[:, None])
    batch, tokens = kernel.shape[:2]
    image = torch.arange(batch)
    gain = kernel.diagonal(dim1=1, dim2=2).clone()  # [B, N]
    factor = torch.zeros(batch, budget, tokens)
    picks = torch.empty(batch, budget, dtype=torch.int64)
    for step in range(budget):
        pick = gain.argmax(-1)
        picks[:, step] = pick
        known = factor[:, :step]
        row = kernel[image, pick]
        if step:
            row -= torch.bmm(known[image, :, pick][:, None], known)[:, 0]
        row *= gain[image, pick].clamp(min=1e-12).rsqrt()[:, None]
        factor[:, step] = row
        gain.addcmul_(row, row, value=-1)
        gain.scatter_(1, pick[:, None], float("-inf"))
    return picks.sort(-1).values


def vispruner(features: Tensor, salience: Tensor, budget: int, num_pivots: int) -> Tensor:
    """VisPruner (Zhang et al., arXiv 2412.01818): the most attended tokens, and from the rest what
    is left when duplicates have been removed again and again.

    Each round splits what remains into two halves, alternately, and drops from the one those most
    similar to any of the other; a round drops at most half of the remaining ones.
    """
    order = salience.argsort(-1, descending=True)
    pivots, rest = order[:, :num_pivots], order[:, num_pivots:].sort(-1).values
    unit = functional.normalize(features.float(), dim=-1)
    wanted = budget - num_pivots
    while rest.shape[1] > wanted:
        first, second = rest[:, ::2], rest[:, 1::2]
        rows = [
            unit.gather(1, half[..., None].expand(-1, -1, unit.shape[2]))
            for half in (first, second)
        ]
        duplicate = torch.bmm(rows[0], rows[1].transpose(1, 2)).amax(-1)
        kept = first.shape[1] - min(rest.shape[1] - wanted, first.shape[1])
        survivors = duplicate.topk(kept, largest=False).indices
        rest = torch.cat([first.gather(1, survivors), second], 1).sort(-1).values
    return torch.cat([pivots, rest], 1).sort(-1).values


def visionzip(features: Tensor, salience: Tensor, budget: int, num_pivots: int) -> Tensor:
    """VisionZip (Yang et al., arXiv 2412.04467): the dominant tokens by attention, and as targets
    for the others every so many of the rest. Its other half is a
    baseline of merge_tokens."""
    order = salience.argsort(-1, descending=True)
    dominant, rest = order[:, :num_pivots], order[:, num_pivots:].sort(-1).values
    every = torch.linspace(0, rest.shape[1] - 1, budget - num_pivots).long()
    return torch.cat([dominant, rest[:, every]], 1).sort(-1).values


PEERS: dict[str, Select] = {
    "divprune": divprune,
    "cdpruner": cdpruner,
    "vispruner": vispruner,
    "visionzip": visionzip,
}


@dataclass(frozen=True)
class Case(SelectionCase):
    op = "select_tokens"

    def inputs(self, device: str, seed: int) -> Inputs:
        return *self.made(device, seed), self.budget, self.num_pivots

    def ours(self, features: Tensor, salience: Tensor, budget: int, num_pivots: int) -> Tensor:
        return select_tokens(features, salience, budget, num_pivots).indices

    def agree(self, inputs: Inputs, ours: Tensor, theirs: Tensor) -> bool:
        return overlap(ours, theirs) > 0.85

    def note(self, gpu: bool) -> str:
        return SLOW if self.is_slow and not gpu else ""

    def baselines(self, gpu: bool) -> list[Implementation]:
        def whole(make: Callable[[], Complete]) -> Callable[[], Callable[..., Any]]:
            return lambda: functools.partial(select, complete=make())

        ways = [replace(one, make=whole(one.make)) for one in self.completions(gpu)]
        # The peers' time does not depend on what the features hold, and they convert to float32.
        alike = self.features != "random" or (self.is_slow and self.dtype != "float32")
        return [*ways, *([] if gpu or alike else eager(PEERS, PEER))]


CPU = [
    Case(*shape, dtype, *BUDGETS[shape[1]], features)
    for shape in TOKENS
    for dtype in DTYPES
    for features in ("random", "clusters")
]
BF16 = "bfloat16"
GPU = [
    # The shapes of the project's targets.
    Case(1, 576, 1024, BF16, 64, 32, priority=0, compiles=True),
    Case(64, 576, 1024, BF16, 64, 32, priority=0),
    Case(1, 2880, 1024, BF16, 320, 160, priority=0),
    Case(8, 576, 1024, BF16, 64, 32, priority=0),
    Case(16, 576, 1024, BF16, 64, 32, priority=0),
    Case(8, 2880, 1024, BF16, 320, 160, priority=0),
    Case(1, 576, 1024, "float32", 64, 32, priority=0),
    Case(64, 576, 1024, "float32", 64, 32, priority=0),
    # The sizes at which one design takes over from another.
    Case(1, 1280, 1024, BF16, 128, 64, priority=1),
    Case(1, 729, 1152, BF16, 128, 64, priority=1),
    Case(1, 256, 1024, BF16, 32, 16, priority=1),
    Case(1, 640, 1024, BF16, 64, 32, priority=1),
    Case(1, 640, 1024, "float32", 64, 32, priority=1),
    Case(1, 576, 1024, BF16, 192, 96, priority=1),
    Case(1, 16384, 1024, BF16, 512, 256, priority=1),
    Case(64, 576, 1024, BF16, 64, 32, "clusters", priority=1),
    Case(64, 256, 1024, BF16, 32, 16),
    Case(64, 729, 1152, BF16, 128, 64),
    Case(64, 1280, 1024, BF16, 128, 64),
    Case(1, 576, 1024, BF16, 64, 32, "clusters"),
    Case(1, 2880, 3584, BF16, 320, 160),
    Case(64, 2880, 1024, BF16, 320, 160),
    Case(1, 8192, 3584, BF16, 910, 455),
]
BENCHMARK = Benchmark(
    cpu=CPU,
    gpu=GPU,
    telling=(
        "1x576x1024 float32 R64 P32 random",
        "1x576x1024 bfloat16 R64 P32 clusters",
        "8x576x1024 float32 R64 P32 random",
        "8x576x1024 bfloat16 R64 P32 clusters",
        "1x2880x1024 float32 R320 P160 random",
        "1x2880x1024 bfloat16 R320 P160 clusters",
        "4x2048x3584 bfloat16 R256 P128 clusters",
    ),
    memory=Memory(
        [case for case in CPU if case.features == "random"],
        against="eager-gram",
        few=lambda case: replace(case, num_tokens=16, budget=8, num_pivots=4),
        # No N x N matrix.
        limit=lambda case: 8 * case.batch * case.num_tokens * case.num_pivots,
    ),
)
