"""select_pivots against topk and a stable sort, eager and under torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import eager_select_pivots
import pytest
import torch
from cases import BYTES, DTYPES, INDEX_BYTES
from machine import Counted
from timing import Implementation, eager, ours, pairs, to_compile
from torch import Tensor

from clasp_kernels import select_pivots


@dataclass(frozen=True)
class Case:
    batch: int
    num_tokens: int
    k: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.batch}x{self.num_tokens} {self.dtype} k{self.k}"

    def shape(self) -> dict[str, Any]:
        return asdict(self)

    def inputs(self) -> tuple[Tensor, int]:
        generator = torch.Generator().manual_seed(0)
        salience = torch.randn(self.batch, self.num_tokens, generator=generator)
        return salience.to(DTYPES[self.dtype]), self.k

    def counted(self) -> Counted:
        """No multiply-adds; comparisons are not counted."""
        moved = self.batch * (self.num_tokens * BYTES[self.dtype] + self.k * INDEX_BYTES)
        return Counted(moved, 0, self.dtype)


CASES = [
    Case(batch, num_tokens, num_tokens // 18, dtype)
    for batch in (1, 8)
    for num_tokens in (576, 2880)
    for dtype in DTYPES
]


def implementations(case: Case) -> list[Implementation]:
    return [
        ours(select_pivots),
        *eager(eager_select_pivots.EAGER),
        *to_compile({"compiled-topk": eager_select_pivots.topk}),
    ]


@pytest.mark.parametrize(("case", "implementation"), pairs(CASES, implementations))
def bench_select_pivots(
    case: Case, implementation: Implementation, measure: Callable[..., None]
) -> None:
    salience, _ = case.inputs()

    def agree(ours: Tensor, theirs: Tensor) -> bool:
        """In the numbers, as ties are broken differently."""
        return torch.equal(salience.gather(1, ours), salience.gather(1, theirs))

    measure("select_pivots", case, implementation, select_pivots, agree)
