"""attention_salience against eager torch and torch.compile, which form the attention matrix.

Language models: 32 heads of 128, alone or sharing 8 key heads, the last T of S positions, causal.
Vision encoder: the CLS row of 16 heads of 64, reported for the 576 patches.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import eager_attention_salience
import pytest
import torch
from cases import DTYPES, SalienceCase
from timing import Implementation, close, eager, ours, pairs, to_compile
from torch import Tensor

from clasp_kernels import attention_salience


@dataclass(frozen=True)
class Case(SalienceCase):
    def inputs(self) -> tuple[Tensor, Tensor, bool, tuple[int, int]]:
        generator = torch.Generator().manual_seed(0)
        query = torch.randn(
            self.batch, self.query_heads, self.rows, self.width, generator=generator
        )
        key = torch.randn(self.batch, self.key_heads, self.keys, self.width, generator=generator)
        dtype = DTYPES[self.dtype]
        return query.to(dtype), key.to(dtype), self.causal, self.key_range


CASES = [
    *(
        Case(1, 32, key_heads, rows, keys, 128, dtype, True, (0, keys))
        for rows in (1, 8, 32, 64)
        for keys in (640, 4096)
        for key_heads in (8, 32)
        for dtype in DTYPES
    ),
    *(Case(8, 32, 8, 32, 640, 128, dtype, True, (0, 640)) for dtype in DTYPES),
    *(
        Case(batch, 16, 16, 1, 577, 64, dtype, False, (1, 577))
        for batch in (1, 8)
        for dtype in DTYPES
    ),
]


def our_salience(query: Tensor, key: Tensor, causal: bool, key_range: tuple[int, int]) -> Tensor:
    return attention_salience(query, key, causal=causal, key_range=key_range)


def implementations(case: Case) -> list[Implementation]:
    if case.dtype == "float32":
        return [
            ours(our_salience),
            *to_compile({"compiled": eager_attention_salience.expression}),
            *eager(eager_attention_salience.EAGER),
        ]
    native = functools.partial(eager_attention_salience.expression, native=True)
    return [
        ours(our_salience),
        *to_compile({"compiled": eager_attention_salience.expression, "compiled-native": native}),
        *eager(eager_attention_salience.EAGER | eager_attention_salience.EAGER_NATIVE),
    ]


@pytest.mark.parametrize(("case", "implementation"), pairs(CASES, implementations))
def bench_attention_salience(
    case: Case, implementation: Implementation, measure: Callable[..., None]
) -> None:
    def agree(ours: Tensor, theirs: Tensor) -> bool:
        # Relative to the mean of 1 / S; the native ones round logits to bfloat16.
        tolerance = 1e-3 if case.dtype == "float32" else 5e-2
        return close(ours * case.keys, theirs * case.keys, tolerance)

    measure("attention_salience", case, implementation, our_salience, agree)
