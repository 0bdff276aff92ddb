"""cover_tokens: greedy facility location in eager torch, and by two packages for it.

The eager ones make all similarities once and update ``best`` in place. They differ in what a step
passes over: all N x N similarities, or only the candidates whose stale gain could still be the best
one, which is the lazy evaluation of Minoux (1978) with a block of candidates a time.

The packages are given features, as users have them: submodlib (MIT, C++, one thread) and apricot
(MIT, numba) make no cosine similarities of their own that are clamped at 0, so the product that
makes them is timed too.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from case import (
    BYTES,
    INDEX_BYTES,
    Benchmark,
    Implementation,
    Inputs,
    Memory,
    NotServed,
    eager,
    first_line,
    given,
)
from machine import Counted
from rows import COMPILED, LIBRARY
from torch import Tensor

from clasp_kernels import cover_tokens

from .complete_tokens import BUDGETS, SelectionCase

Cover = Callable[[Tensor, Tensor, int], Tensor]
STEPS = 8  # a compiled call
BLOCK = 32  # candidates that the lazy formulation evaluates at a time


def _similarities(features: Tensor) -> Tensor:
    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    return torch.bmm(unit, unit.mT).clamp_(min=0)


def _start(features: Tensor, selected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Similarities [B, N, N], ``best`` [B, N], and which tokens can be picked."""
    similarities = _similarities(features)
    image = torch.arange(features.shape[0], device=features.device)[:, None]
    nothing = similarities.new_zeros(features.shape[0], 1, features.shape[1])
    best = torch.cat([nothing, similarities[image, selected]], 1).amax(1)
    free = torch.ones_like(best, dtype=torch.bool).scatter(1, selected, False)
    return similarities, best, free


def every_gain(features: Tensor, selected: Tensor, num_tokens: int) -> Tensor:
    """One pass over all similarities a step, in a buffer that is made once."""
    similarities, best, free = _start(features, selected)
    image = torch.arange(features.shape[0], device=features.device)
    added = torch.empty_like(similarities)
    picks = selected.new_empty(features.shape[0], num_tokens)
    for step in range(num_tokens):
        torch.sub(similarities, best[:, None], out=added)
        gain = added.clamp_(min=0).sum(-1).masked_fill_(~free, -1)
        pick = gain.argmax(1)
        picks[:, step] = pick
        torch.maximum(best, similarities[image, pick], out=best)
        free.scatter_(1, pick[:, None], False)
    return picks


def lazy(features: Tensor, selected: Tensor, num_tokens: int) -> Tensor:
    """Per image, the candidates with the largest stale gains a block at a time, until the largest
    gain of a step is one that was computed in it."""
    picks = selected.new_empty(features.shape[0], num_tokens)
    for b in range(features.shape[0]):
        one = slice(b, b + 1)
        similarities, best, free = (value[0] for value in _start(features[one], selected[one]))
        gain = (similarities - best).clamp_(min=0).sum(-1).masked_fill_(~free, -1)
        block = min(BLOCK, len(gain))
        for step in range(num_tokens):
            fresh = torch.zeros_like(free)
            while True:
                top = gain.topk(block).indices
                if bool(fresh[gain.argmax()]):
                    break
                stale = top[~fresh[top]]
                gain[stale] = (similarities[stale] - best).clamp_(min=0).sum(-1)
                gain.masked_fill_(~free, -1)
                fresh[stale] = True
            pick = gain.argmax()
            picks[b, step] = pick
            torch.maximum(best, similarities[pick], out=best)
            free[pick] = False
            gain[pick] = -1
    return picks


def _steps(
    similarities: Tensor, best: Tensor, free: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    picks = []
    for _ in range(count):
        gain = (similarities - best[:, None]).clamp(min=0).sum(-1)
        pick = gain.masked_fill(~free, -1).argmax(1, keepdim=True)
        row = similarities.gather(1, pick[..., None].expand(-1, -1, similarities.shape[2]))
        best = best.maximum(row[:, 0])
        free = free.scatter(1, pick, False)
        picks.append(pick)
    return torch.cat(picks, 1), best, free


@functools.cache
def compiled() -> Cover:
    """``every_gain`` under ``torch.compile``: one fused pass a step, a few steps a call."""
    torch._dynamo.config.recompile_limit = 32
    start = torch.compile(_start, fullgraph=True, dynamic=False)
    step = torch.compile(functools.partial(_steps, count=STEPS), fullgraph=True, dynamic=False)

    def cover(features: Tensor, selected: Tensor, num_tokens: int) -> Tensor:
        similarities, best, free = start(features, selected)
        picks = []
        for _ in range(0, num_tokens, STEPS):
            some, best, free = step(similarities, best, free)
            picks.append(some)
        return torch.cat(picks, 1)[:, :num_tokens]

    return cover


@contextlib.contextmanager
def installed(module: str, device: str) -> Iterator[None]:
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise NotServed(f"{module} cannot be imported: {first_line(error)}") from error
    yield


def submodlib(features: Tensor, selected: Tensor, num_tokens: int) -> Tensor:
    """Nothing is selected in these cases: the package's greedy starts from nothing."""
    rows = []
    for similarities in _similarities(features).numpy():
        function = importlib.import_module("submodlib").FacilityLocationFunction(
            n=len(similarities), mode="dense", sijs=similarities, separate_rep=False
        )
        chosen = function.maximize(
            budget=num_tokens,
            optimizer="LazyGreedy",
            stopIfZeroGain=False,
            stopIfNegativeGain=False,
            verbose=False,
            show_progress=False,
        )
        rows.append([token for token, _ in chosen])
    return torch.tensor(rows)


def apricot(features: Tensor, selected: Tensor, num_tokens: int) -> Tensor:
    rows = []
    for similarities in _similarities(features).double().numpy():
        selection = importlib.import_module("apricot").FacilityLocationSelection(
            num_tokens, metric="precomputed", optimizer="lazy", verbose=False
        )
        rows.append(torch.as_tensor(selection.fit(similarities).ranking.copy()))
    return torch.stack(rows).long()


def worst_gain(features: Tensor, selected: Tensor, picks: Tensor) -> float:
    """By how much of all that can be covered the worst of the picks [B, M] gained less than the
    best candidate, given the picks before it; similarities in float64. Infinite if a token is
    picked twice or is none."""
    if picks.numel() and not 0 <= picks.min() <= picks.max() < features.shape[1]:
        return math.inf
    unit = torch.nn.functional.normalize(features.double(), dim=-1)
    similarities = torch.bmm(unit, unit.mT).clamp_(min=0)
    image = torch.arange(features.shape[0])
    best = torch.zeros_like(similarities[:, 0])
    if selected.shape[1]:
        best = similarities[image[:, None], selected].amax(1)
    free = torch.ones_like(best, dtype=torch.bool).scatter_(1, selected, False)
    worst = 0.0
    for pick in picks.unbind(1):
        gain = (similarities - best[:, None]).clamp_(min=0).sum(-1)
        gain = gain.masked_fill(~free, -math.inf)
        worst = max(worst, float((gain.amax(1) - gain[image, pick]).max()))
        best = best.maximum(similarities[image, pick])
        free[image, pick] = False
    return worst / features.shape[1]


@dataclass(frozen=True)
class Case(SelectionCase):
    """From nothing: R of N tokens."""

    op = "cover_tokens"

    def inputs(self, device: str, seed: int) -> Inputs:
        features, salience = self.made(device, seed)
        selected = salience.topk(self.num_pivots, dim=1).indices
        return features, selected, self.budget - self.num_pivots

    def counted(self) -> Counted:
        """Features are read once. The first pick needs the gain of every token, and so the
        similarity of every pair, each computed once. What the later picks need depends on the
        features, and is not counted."""
        pairs = self.num_tokens * (self.num_tokens + 1) // 2
        moved = self.num_tokens * self.dim * BYTES[self.dtype] + self.budget * INDEX_BYTES
        return Counted(self.batch * moved, self.batch * pairs * self.dim, self.dtype)

    def ours(self, features: Tensor, selected: Tensor, num_tokens: int) -> Tensor:
        return cover_tokens(features, selected, num_tokens)

    def agree(self, inputs: Inputs, ours: Tensor, theirs: Tensor) -> bool:
        features, selected, _ = inputs
        allowed = 1e-5 if self.dtype == "float32" else 2e-3
        return ours.shape == theirs.shape and worst_gain(features, selected, theirs) <= allowed

    def baselines(self, gpu: bool) -> list[Implementation]:
        ways = eager({"eager": every_gain} | ({} if gpu else {"eager-lazy": lazy}))
        if not gpu and self.num_pivots == 0:
            ways += [
                Implementation(
                    name,
                    LIBRARY,
                    given(function),
                    within=functools.partial(installed, name),
                )
                for name, function in (("submodlib", submodlib), ("apricot", apricot))
                if name == "submodlib" or not self.is_slow  # apricot runs for minutes
            ]
        if not gpu or self.compiles:
            ways.append(Implementation("compiled", COMPILED, compiled))
        return ways


SHAPES = ((1, 576, 1024), (8, 576, 1024), (1, 2880, 1024))
CPU = [
    Case(batch, tokens, dim, dtype, BUDGETS[tokens][0], 0, features)
    for batch, tokens, dim in SHAPES
    for dtype in ("float32", "bfloat16")
    for features in ("random", "clusters")
]
BF16 = "bfloat16"
BENCHMARK = Benchmark(
    cpu=[*CPU, Case(1, 576, 1024, "float32", 64, 32), Case(1, 576, 1024, BF16, 64, 32)],
    gpu=[
        Case(1, 576, 1024, BF16, 64, 0, priority=1),
        Case(64, 576, 1024, BF16, 64, 0, priority=1),
        Case(1, 2880, 1024, BF16, 320, 0, priority=1),
        Case(1, 576, 1024, "float32", 64, 0),
        Case(1, 16384, 1024, BF16, 512, 0),
    ],
    telling=("1x576x1024 float32 R64 P0 random", "1x2880x1024 bfloat16 R320 P0 clusters"),
    packages=("submodlib", "apricot"),
    memory=Memory(
        [case for case in CPU if case.features == "random"],
        against="eager",
        few=lambda case: replace(case, num_tokens=16, budget=8),
        # The similarities of each image that is worked on: two at a time, on two cores.
        limit=lambda case: (
            min(case.batch, 2) * (4 * case.num_tokens**2 + 64 * case.num_tokens) + 2**20
        ),
    ),
)
