"""gather_tokens and merge_tokens of N / 9 tokens against eager torch and torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import cases
import eager_gather_merge
import torch
from cases import DTYPES
from timing import rows_agree
from torch import Tensor

from clasp_kernels import gather_tokens, merge_tokens

from .implementation import Implementation, Inputs, Maker, compiled, copy_of, eager


@dataclass(frozen=True)
class GatherCase(cases.GatherCase):
    priority: int = 2
    compiles: bool = False

    op = "gather_tokens"

    def small(self) -> GatherCase:
        return replace(self, batch=min(self.batch, 2), num_tokens=27, dim=16)

    def inputs(self, device: str, seed: int) -> Inputs:
        make = Maker(device, seed)
        size = (self.batch, self.num_tokens)
        tokens = make.randn(*size, self.dim, dtype=DTYPES[self.dtype])
        return tokens, make.randn(*size).argsort(-1)[:, : self.num_kept].sort(-1).values

    def ours(self, tokens: Tensor, indices: Tensor) -> Tensor:
        return gather_tokens(tokens, indices)

    def agree(self, inputs: Inputs, ours: Tensor, theirs: Tensor) -> bool:
        return torch.equal(ours, theirs)

    def implementations(self) -> list[Implementation]:
        baselines = dict(eager_gather_merge.GATHER)
        if self.batch > 8:
            del baselines["eager-index-select-images"]  # B launches where others have one
        extra = [compiled("compiled", eager_gather_merge.gather_indexed)] if self.compiles else []
        return [copy_of(self.counted()), *extra, *eager(baselines)]


@dataclass(frozen=True)
class MergeCase(GatherCase, cases.MergeCase):
    op = "merge_tokens"

    def ours(self, tokens: Tensor, indices: Tensor) -> Tensor:
        return merge_tokens(tokens, tokens, indices)

    def agree(self, inputs: Inputs, ours: Tensor, theirs: Tensor) -> bool:
        # Rounding decides for some tokens which kept one is the most similar, and a group's mean
        # differs if one of its nine or so tokens does.
        return rows_agree(ours, theirs, 2e-2) >= (0.98 if self.dtype == "float32" else 0.7)

    def implementations(self) -> list[Implementation]:
        def by_itself(merge: eager_gather_merge.Merge) -> Callable[[Tensor, Tensor], Tensor]:
            return lambda tokens, indices: merge(tokens, tokens, indices)

        one_hot = by_itself(eager_gather_merge.merge_one_hot_native)
        extra = [compiled("compiled-one-hot", one_hot)] if self.compiles else []
        merges = eager_gather_merge.MERGE.items()
        return [*extra, *eager({name: by_itself(merge) for name, merge in merges})]


def gather_cases() -> list[GatherCase]:
    return [
        GatherCase(64, 576, 1024, "bfloat16", priority=0, compiles=True),
        GatherCase(1, 576, 1024, "bfloat16", priority=1),
        GatherCase(8, 2880, 3584, "bfloat16", priority=1),
        GatherCase(8, 576, 1024, "bfloat16"),
        GatherCase(64, 2880, 1024, "bfloat16"),
        GatherCase(8, 8192, 3584, "bfloat16"),
        GatherCase(64, 576, 1024, "float32"),
    ]


def merge_cases() -> list[MergeCase]:
    return [
        MergeCase(8, 576, 1024, "bfloat16", priority=0, compiles=True),
        MergeCase(1, 576, 1024, "bfloat16", priority=1),
        MergeCase(64, 576, 1024, "bfloat16", priority=1),
        MergeCase(1, 2880, 1024, "bfloat16"),
        MergeCase(8, 2880, 3584, "bfloat16"),
        MergeCase(8, 576, 1024, "float32"),
    ]
