"""select_tokens and complete_tokens against eager torch and torch.compile, on the CPU.

The features are random, the hardest case for a lazy evaluation, or 24 noisy clusters, which is
closer to an image. The baselines convert bfloat16 to float32 first, as the kernels accumulate in
float32 too.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import eager
import pytest
import torch
from torch import Tensor

from clasp_kernels import complete_tokens, select_tokens, use_backend

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    batch: int
    num_tokens: int
    dim: int
    budget: int
    num_pivots: int
    dtype: str
    features: str

    def __str__(self) -> str:
        return (
            f"B={self.batch} {self.num_tokens}x{self.dim} -> {self.budget} "
            f"(P={self.num_pivots}) {self.dtype} {self.features}"
        )

    def inputs(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)

        def randn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        features = randn(self.batch, self.num_tokens, self.dim)
        if self.features == "clusters":
            centre = torch.randint(24, (self.batch, self.num_tokens), generator=generator)
            features = randn(24, self.dim)[centre] + 0.5 * features
        return features.to(DTYPES[self.dtype]), randn(self.batch, self.num_tokens)


CASES = [
    Case(batch, num_tokens, 1024, budget, num_pivots, dtype, features)
    for batch, num_tokens, budget, num_pivots in (
        (1, 576, 64, 32),
        (8, 576, 64, 32),
        (1, 2880, 320, 160),
    )
    for dtype in DTYPES
    for features in ("random", "clusters")
]
IMPLEMENTATIONS = ["clasp_kernels", *eager.COMPLETIONS]


@pytest.fixture(autouse=True)
def cpu_backend() -> Any:
    """A benchmark that fell back to the reference would be worse than none."""
    with torch.no_grad(), use_backend("cpu"):
        yield


def agree(ours: Tensor, theirs: Tensor) -> bool:
    """Rounding may flip a pick; a baseline that computes something else flips nearly all."""
    return bool((ours == theirs).float().mean() > 0.9)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", CASES, ids=str)
def bench_select_tokens(case: Case, implementation: str, benchmark: Any, rows: Any) -> None:
    features, salience = case.inputs()

    def ours() -> Tensor:
        return select_tokens(features, salience, case.budget, case.num_pivots).indices

    def baseline() -> Tensor:
        complete = eager.COMPLETIONS[implementation]
        return eager.select_tokens(features, salience, case.budget, case.num_pivots, complete)

    benchmark.group = f"select_tokens {case}"
    kept = benchmark(ours if implementation == "clasp_kernels" else baseline)
    assert agree(ours(), kept)
    rows.add(benchmark, implementation, asdict(case))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", [case for case in CASES if case.num_tokens == 576], ids=str)
def bench_complete_tokens(case: Case, implementation: str, benchmark: Any, rows: Any) -> None:
    features, salience = case.inputs()
    pivots = salience.topk(case.num_pivots, dim=1).indices
    count = case.budget - case.num_pivots

    def ours() -> Tensor:
        return complete_tokens(features, pivots, count)

    def baseline() -> Tensor:
        return eager.COMPLETIONS[implementation](features, pivots, count)

    benchmark.group = f"complete_tokens {case}"
    picks = benchmark(ours if implementation == "clasp_kernels" else baseline)
    assert agree(ours().sort(1).values, picks.sort(1).values)
    rows.add(benchmark, implementation, asdict(case))
