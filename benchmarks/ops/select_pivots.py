"""select_pivots against topk and a stable sort.

``topk`` breaks ties as it likes and puts NaN first, the stable sort only the latter, so both do
less than the op; on distinct numbers all agree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import case
import torch
from case import (
    BYTES,
    DTYPES,
    INDEX_BYTES,
    Benchmark,
    Implementation,
    Inputs,
    Maker,
    compiled,
    eager,
)
from machine import Counted
from torch import Tensor

from clasp_kernels import select_pivots

Pivots = Callable[[Tensor, int], Tensor]  # salience [B, N], k -> [B, k]


def topk(salience: Tensor, k: int) -> Tensor:
    return salience.topk(k, dim=-1).indices


def topk_per_image(salience: Tensor, k: int) -> Tensor:
    picks = salience.new_empty(salience.shape[0], k, dtype=torch.int64)
    for row, pick in zip(salience.unbind(), picks.unbind(), strict=True):
        pick.copy_(row.topk(k).indices)
    return picks


def stable_sort(salience: Tensor, k: int) -> Tensor:
    return salience.sort(dim=-1, descending=True, stable=True).indices[:, :k].contiguous()


EAGER: dict[str, Pivots] = {
    "eager-topk": topk,
    "eager-topk-images": topk_per_image,
    "eager-stable-sort": stable_sort,
}


@dataclass(frozen=True)
class Case(case.Case):
    batch: int
    num_tokens: int
    k: int
    dtype: str = "float32"

    op = "select_pivots"
    # The images change from call to call, as they do in use: on one image again and again, a
    # processor learns each of the branches that topk takes, and needs half the time.
    turns = 64

    def __str__(self) -> str:
        return f"{self.batch}x{self.num_tokens} {self.dtype} k{self.k}"

    def small(self) -> Case:
        return replace(self, batch=min(self.batch, 2), num_tokens=19, k=5)

    def inputs(self, device: str, seed: int) -> Inputs:
        salience = Maker(device, seed).randn(self.batch, self.num_tokens)
        return salience.to(DTYPES[self.dtype]), self.k

    def counted(self) -> Counted:
        """No multiply-adds; comparisons are not counted."""
        moved = self.batch * (self.num_tokens * BYTES[self.dtype] + self.k * INDEX_BYTES)
        return Counted(moved, 0, self.dtype)

    def ours(self, salience: Tensor, k: int) -> Tensor:
        return select_pivots(salience, k)

    def agree(self, inputs: Inputs, ours: Tensor, theirs: Tensor) -> bool:
        """In the numbers, as ties are broken differently."""
        return torch.equal(inputs[0].gather(1, ours), inputs[0].gather(1, theirs))

    def baselines(self, gpu: bool) -> list[Implementation]:
        functions = dict(EAGER)
        if gpu:
            del functions["eager-topk-images"]  # B launches where eager-topk has one
        wanted = self.compiles or not gpu
        return [*eager(functions), *([compiled("compiled-topk", topk)] if wanted else [])]


BENCHMARK = Benchmark(
    cpu=[
        Case(batch, num_tokens, num_tokens // 18, dtype)
        for batch in (1, 8)
        for num_tokens in (576, 2880)
        for dtype in DTYPES
    ],
    gpu=[
        Case(1, 576, 32, priority=0, compiles=True),
        Case(64, 576, 32, priority=1),
        Case(1, 16384, 910, priority=1),
        Case(8, 576, 32),
        *(Case(batch, n, n // 18) for n in (2880, 8192) for batch in (1, 8, 64)),
        Case(64, 576, 32, "bfloat16"),
    ],
    telling=("1x576 float32 k32", "8x2880 float32 k160"),
)
