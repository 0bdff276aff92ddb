"""select_pivots against topk and a stable sort, eager and under torch.compile.

The images change from call to call, as they do in use: on one image again and again, a processor
learns each of the branches that topk takes, and needs half the time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import eager_select_pivots
import pytest
import timing
import torch
from cases import DTYPES, PivotCase
from timing import Implementation, eager, ours, pairs, to_compile
from torch import Tensor

from clasp_kernels import select_pivots

NUM_INPUTS = 64


@dataclass(frozen=True)
class Case(PivotCase):
    def inputs(self) -> tuple[tuple[Tensor, ...], int]:
        """Several saliences, to take turns."""
        generator = torch.Generator().manual_seed(0)
        salience = torch.randn(NUM_INPUTS, self.batch, self.num_tokens, generator=generator)
        return tuple(salience.to(DTYPES[self.dtype]).unbind()), self.k


CASES = [
    Case(batch, num_tokens, num_tokens // 18, dtype)
    for batch in (1, 8)
    for num_tokens in (576, 2880)
    for dtype in DTYPES
]


def taking_turns(implementation: Implementation) -> Implementation:
    """With the next of the inputs in every call, beginning with the first."""

    def prepare(case: timing.Case) -> Callable[..., Tensor]:
        function = implementation.prepare(case)
        turns = itertools.cycle(range(NUM_INPUTS))
        return lambda saliences, k: function(saliences[next(turns)], k)

    return replace(implementation, prepare=prepare)


def implementations(case: Case) -> list[Implementation]:
    same_work = [
        ours(select_pivots),
        *eager(eager_select_pivots.EAGER),
        *to_compile({"compiled-topk": eager_select_pivots.topk}),
    ]
    return [taking_turns(implementation) for implementation in same_work]


@pytest.mark.parametrize(("case", "implementation"), pairs(CASES, implementations))
def bench_select_pivots(
    case: Case, implementation: Implementation, measure: Callable[..., None]
) -> None:
    first = case.inputs()[0][0]

    def select_first(saliences: tuple[Tensor, ...], k: int) -> Tensor:
        return select_pivots(saliences[0], k)

    def agree(ours: Tensor, theirs: Tensor) -> bool:
        """In the numbers, as ties are broken differently."""
        return torch.equal(first.gather(1, ours), first.gather(1, theirs))

    measure("select_pivots", case, implementation, select_first, agree)
