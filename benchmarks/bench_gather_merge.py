"""gather_tokens and merge_tokens of N / 9 tokens against eager torch and torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cases
import eager_gather_merge
import eager_peers
import pytest
import torch
from cases import DTYPES, token_cases
from timing import (
    Implementation,
    eager,
    memcpy,
    ours,
    pairs,
    peers,
    rows_agree,
    to_compile,
)
from torch import Tensor

from clasp_kernels import gather_tokens, merge_tokens


@dataclass(frozen=True)
class Case(cases.GatherCase):
    def inputs(self) -> tuple[Tensor, Tensor]:
        tokens = self.randn(self.batch, self.num_tokens, self.dim).to(DTYPES[self.dtype])
        order = self.randn(self.batch, self.num_tokens, seed=1).argsort(-1)
        return tokens, order[:, : self.num_kept].sort(-1).values


@dataclass(frozen=True)
class MergeCase(Case, cases.MergeCase):
    pass


CASES = token_cases(Case)
MERGE_CASES = token_cases(MergeCase)


def our_merge(tokens: Tensor, indices: Tensor) -> Tensor:
    return merge_tokens(tokens, tokens, indices)


def _by_own_similarity(merge: eager_gather_merge.Merge) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda tokens, indices: merge(tokens, tokens, indices)


def gather_implementations(case: Case) -> list[Implementation]:
    return [
        ours(gather_tokens),
        memcpy(),
        *to_compile({"compiled": eager_gather_merge.gather_indexed}),
        *eager(eager_gather_merge.GATHER),
    ]


def merge_implementations(case: MergeCase) -> list[Implementation]:
    baselines = {
        name: _by_own_similarity(merge) for name, merge in eager_gather_merge.MERGE.items()
    }
    return [
        ours(our_merge),
        *to_compile(
            {"compiled-one-hot": _by_own_similarity(eager_gather_merge.merge_one_hot_native)}
        ),
        *eager(baselines),
        *peers({"visionzip": eager_peers.visionzip_merge}),
    ]


@pytest.mark.parametrize(("case", "implementation"), pairs(CASES, gather_implementations))
def bench_gather_tokens(
    case: Case, implementation: Implementation, measure: Callable[..., None]
) -> None:
    measure("gather_tokens", case, implementation, gather_tokens, torch.equal)


@pytest.mark.parametrize(("case", "implementation"), pairs(MERGE_CASES, merge_implementations))
def bench_merge_tokens(
    case: MergeCase, implementation: Implementation, measure: Callable[..., None]
) -> None:
    # Rounding decides for some tokens which kept one is the most similar, and a group's mean
    # differs if one of its nine or so tokens does.
    least = 0.98 if case.dtype == "float32" else 0.7

    def agree(ours: Tensor, theirs: Tensor) -> bool:
        return rows_agree(ours, theirs, 2e-2) >= least

    measure("merge_tokens", case, implementation, our_merge, agree)
