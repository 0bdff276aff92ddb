"""select_tokens and complete_tokens against eager torch, torch.compile and what others select.

The features are random, the hardest case for a lazy evaluation, or 24 noisy clusters, which is
closer to an image.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import eager_peers
import eager_select_tokens
import pytest
import torch
from cases import DTYPES, TOKENS, SelectCase
from rows import COMPILED
from timing import Implementation, eager, ours, overlap, pairs, peers
from torch import Tensor

from clasp_kernels import complete_tokens, select_tokens

BUDGETS = {576: (64, 32), 2880: (320, 160), 2048: (256, 128)}  # N: (R, P)
STEPS = 8  # a compiled call
SLOW = (
    "runs for seconds: three rounds where a call takes 0.4 s; left out: eager-batched, "
    "compiled-native and, in bfloat16, others' methods"
)


@dataclass(frozen=True)
class Case(SelectCase):
    @property
    def is_slow(self) -> bool:
        return self.batch * self.num_tokens * self.dim > 2**24

    def inputs(self) -> tuple[Tensor, Tensor, int, int]:
        features = self.randn(self.batch, self.num_tokens, self.dim)
        if self.features == "clusters":
            generator = torch.Generator().manual_seed(1)
            centre = torch.randint(24, (self.batch, self.num_tokens), generator=generator)
            features = self.randn(24, self.dim, seed=2)[centre] + 0.5 * features
        salience = self.randn(self.batch, self.num_tokens, seed=3)
        return features.to(DTYPES[self.dtype]), salience, self.budget, self.num_pivots


@dataclass(frozen=True)
class CompleteCase(Case):
    def inputs(self) -> tuple[Tensor, Tensor, int]:  # type: ignore[override]
        features, salience, _, num_pivots = super().inputs()
        return features, salience.topk(num_pivots, dim=1).indices, self.budget - num_pivots


def cases(case: type[Case]) -> list[Case]:
    return [
        case(*shape, dtype, *BUDGETS[shape[1]], features)
        for shape in TOKENS
        for dtype in DTYPES
        for features in ("random", "clusters")
    ]


CASES = cases(Case)
COMPLETE_CASES = [
    case for case in cases(CompleteCase) if case.num_tokens == 576 and case.features == "random"
]


def our_select(features: Tensor, salience: Tensor, budget: int, num_pivots: int) -> Tensor:
    return select_tokens(features, salience, budget, num_pivots).indices


def _completions(case: Case) -> list[Implementation]:
    """Of ``complete_tokens``."""
    half = case.dtype != "float32"
    compiled = {"compiled": False}
    completions = dict(eager_select_tokens.EAGER)
    if half and case.features == "random":
        # Similarities rounded to bfloat16 tell random tokens apart, but not those of a cluster.
        completions["eager-gram-native"] = eager_select_tokens.gram_native
    if half and not case.is_slow:
        compiled["compiled-native"] = True
    if case.is_slow:
        del completions["eager-batched"]
    return [
        *(
            Implementation(
                name,
                COMPILED,
                lambda _, native=native: eager_select_tokens.compiled(STEPS, native),
            )
            for name, native in compiled.items()
        ),
        *eager(completions),
    ]


def _whole(completion: Implementation) -> Implementation:
    """``select_tokens`` by a completion."""

    def prepare(case: Case) -> Callable[..., Tensor]:
        return functools.partial(
            eager_select_tokens.select_tokens, complete=completion.prepare(case)
        )

    return Implementation(completion.name, completion.kind, prepare)


def select_implementations(case: Case) -> list[Implementation]:
    """The peers' time does not depend on what the features hold, and they convert to float32."""
    with_others = case.features == "random" and not (case.is_slow and case.dtype != "float32")
    others = peers(eager_peers.SELECT) if with_others else []
    note = SLOW if case.is_slow else ""
    return [
        ours(our_select, note),
        *(_whole(completion) for completion in _completions(case)),
        *others,
    ]


def complete_implementations(case: CompleteCase) -> list[Implementation]:
    return [ours(complete_tokens), *_completions(case)]


@pytest.mark.parametrize(("case", "implementation"), pairs(CASES, select_implementations))
def bench_select_tokens(
    case: Case, implementation: Implementation, measure: Callable[..., None]
) -> None:
    def agree(ours: Tensor, theirs: Tensor) -> bool:
        return overlap(ours, theirs) > 0.9

    measure("select_tokens", case, implementation, our_select, agree)


@pytest.mark.parametrize(
    ("case", "implementation"), pairs(COMPLETE_CASES, complete_implementations)
)
def bench_complete_tokens(
    case: CompleteCase, implementation: Implementation, measure: Callable[..., None]
) -> None:
    def agree(ours: Tensor, theirs: Tensor) -> bool:
        return overlap(ours, theirs) > 0.85

    measure("complete_tokens", case, implementation, complete_tokens, agree)
