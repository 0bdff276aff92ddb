"""attention_salience against eager torch, torch.compile and the public column-sum kernel.

Language models: 32 heads of 128, alone or sharing 8 key heads, the last T of S positions, causal.
Vision encoder: the class token's row of 16 heads of 64, reported for the 576 patches.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import cases
import eager_attention_salience as baselines
from cases import DTYPES
from rows import LIBRARY, PEER
from timing import close
from torch import Tensor

from clasp_kernels import attention_salience

from .implementation import Implementation, Inputs, Maker, compiled, copy_of, eager


@dataclass(frozen=True)
class SalienceCase(cases.SalienceCase):
    priority: int = 2
    compiles: bool = False

    op = "attention_salience"

    def small(self) -> SalienceCase:
        rows = min(self.rows, 3)
        keys = 9
        start = self.key_range[0]
        heads = {"query_heads": 4, "key_heads": 4 * self.key_heads // self.query_heads}
        return replace(
            self, batch=1, rows=rows, keys=keys, key_range=(start, keys), width=16, **heads
        )

    def inputs(self, device: str, seed: int) -> Inputs:
        make, dtype = Maker(device, seed), DTYPES[self.dtype]
        query = make.randn(self.batch, self.query_heads, self.rows, self.width, dtype=dtype)
        key = make.randn(self.batch, self.key_heads, self.keys, self.width, dtype=dtype)
        return query, key, self.causal, self.key_range

    def ours(self, query: Tensor, key: Tensor, causal: bool, key_range: tuple[int, int]) -> Tensor:
        return attention_salience(query, key, causal=causal, key_range=key_range)

    def agree(self, inputs: Inputs, ours: Tensor, theirs: Tensor) -> bool:
        # Relative to the mean of 1 / S; others round logits or results to bfloat16.
        tolerance = 1e-3 if self.dtype == "float32" else 5e-2
        return close(ours * self.keys, theirs * self.keys, tolerance)

    def implementations(self) -> list[Implementation]:
        others = []
        if self.query_heads == self.key_heads and self.key_range == (0, self.keys):
            others += column_sums()
        half = self.dtype != "float32"
        if self.compiles:
            expression = functools.partial(baselines.expression, native=half)
            others.append(compiled("compiled-native" if half else "compiled", expression))
        others += eager(baselines.EAGER_NATIVE if half else {})
        return [copy_of(self.counted()), *others, *eager(baselines.EAGER)]


def column_sums() -> list[Implementation]:
    """flash-colreduce (MIT, z-lab), where it is installed: a sum per head, without grouped queries,
    padding, row weights or a key range. Timed with the mean over heads that the op is defined to
    give, and without it."""
    if importlib.util.find_spec("flash_colreduce") is None:
        return []

    def make(mean: bool) -> Callable[..., Tensor]:
        from flash_colreduce import flash_colreduce

        def per_head(query: Tensor, key: Tensor, causal: bool, _: tuple[int, int]) -> Tensor:
            return flash_colreduce(query, key, reduction="sum", is_causal=causal)

        def of_all_heads(query: Tensor, *rest: Any) -> Tensor:
            return per_head(query, *rest).float().mean(1).div_(query.shape[2])

        return of_all_heads if mean else per_head

    whole = eager({"flash-colreduce": lambda *inputs: make(True)(*inputs)}, LIBRARY)
    return [*whole, *eager({"flash-colreduce-per-head": lambda *it: make(False)(*it)}, PEER)]


def salience_cases() -> list[SalienceCase]:
    def text(rows: int, keys: int, key_heads: int, **more: Any) -> SalienceCase:
        dtype, batch = more.pop("dtype", "bfloat16"), more.pop("batch", 1)
        return SalienceCase(batch, 32, key_heads, rows, keys, 128, dtype, True, (0, keys), **more)

    def vision(batch: int, **more: Any) -> SalienceCase:
        return SalienceCase(batch, 16, 16, 1, 577, 64, "bfloat16", False, (1, 577), **more)

    first = [
        text(64, 16384, 32, priority=0, compiles=True),
        text(1, 16384, 32, priority=0, compiles=True),
        text(32, 4096, 8, priority=0, compiles=True),
        vision(1, priority=0, compiles=True),
        text(1, 32768, 8, priority=1),
        text(1, 32768, 32, priority=1),
        vision(8, priority=1),
        vision(64, priority=1),
        text(32, 4096, 8, dtype="float32", priority=1),
        text(32, 4096, 8, batch=8, priority=1),
    ]
    known = {str(case) for case in first}
    rest = [
        text(rows, keys, key_heads)
        for keys in (16384, 4096, 1024)
        for rows in (1, 8, 32, 64)
        for key_heads in (32, 8)
    ]
    return [*first, *(case for case in rest if str(case) not in known)]
