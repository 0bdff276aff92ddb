"""attention_salience against eager torch, torch.compile and the public column-sum kernel.

Language models: 32 heads of 128, alone or sharing 8 key heads, the last T of S positions, causal.
Vision encoder: the class token's row of 16 heads of 64, reported for the 576 patches.

The eager forms form the attention matrix. They differ in how scale and mask get in and in what is
done to the matrix: every pass over it counts, as it is by far the largest tensor here. None repeats
the keys for the query heads that share them, which was slower at every shape. Rows are weighted
alike.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import case
import torch
from case import (
    BYTES,
    DTYPES,
    Benchmark,
    Implementation,
    Inputs,
    Maker,
    Memory,
    compiled,
    eager,
    memcpy,
)
from machine import Counted
from rows import LIBRARY, PEER
from timing import close
from torch import Tensor

from clasp_kernels import attention_salience

# query [B, Hq, T, d], key [B, Hkv, S, d], causal, (start, stop) -> [B, N] float32
Salience = Callable[[Tensor, Tensor, bool, tuple[int, int]], Tensor]


def _grouped(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """[B Hkv, G T, d] and [B Hkv, d, S]: the heads that share a key head become more rows."""
    batch, key_heads, keys, width = key.shape
    rows = query.shape[1] // key_heads * query.shape[2]
    return (
        query.reshape(batch * key_heads, rows, width),
        key.reshape(batch * key_heads, keys, width).transpose(1, 2),
    )


def _mask_corner_(logits: Tensor, rows: int) -> Tensor:
    """Causal, in place: only the last T keys are hidden from any of the last T rows."""
    later = torch.ones(rows, rows, dtype=torch.bool, device=logits.device).triu(1)
    corner = logits.view(logits.shape[0], -1, rows, logits.shape[-1])[..., -rows:]
    corner.masked_fill_(later, float("-inf"))
    return logits


def _column_mean(probability: Tensor, batch: int, key_range: tuple[int, int]) -> Tensor:
    """The mean over all rows, [B Hkv, G T, S] -> [B, N]."""
    flat = probability.view(batch, -1, probability.shape[-1])
    flat = flat[..., key_range[0] : key_range[1]]
    return flat.sum(1, dtype=torch.float32).div_(flat.shape[1])


def softmax_grouped(
    query: Tensor, key: Tensor, causal: bool, key_range: tuple[int, int], native: bool = False
) -> Tensor:
    """No key is repeated, and the scale goes into the query, which is small.

    ``native`` multiplies in the dtype of the inputs and only then converts.
    """
    batch, _, rows, width = query.shape
    if not native:
        query, key = query.float(), key.float()
    grouped, columns = _grouped(query * (1 / math.sqrt(width)), key)
    logits = torch.bmm(grouped, columns)
    if causal:
        _mask_corner_(logits, rows)
    return _column_mean(logits.softmax(-1, dtype=torch.float32), batch, key_range)


def softmax_baddbmm(query: Tensor, key: Tensor, causal: bool, key_range: tuple[int, int]) -> Tensor:
    """Scale and mask as part of the product."""
    batch, _, rows, width = query.shape
    grouped, columns = _grouped(query.float(), key.float())
    keys = columns.shape[-1]
    mask = grouped.new_zeros(rows, keys)
    if causal:
        mask[:, keys - rows :] = grouped.new_full((rows, rows), float("-inf")).triu_(1)
    mask = mask.repeat(grouped.shape[1] // rows, 1)
    logits = torch.baddbmm(mask, grouped, columns, alpha=1 / math.sqrt(width))
    return _column_mean(logits.softmax(-1), batch, key_range)


def unnormalised(
    query: Tensor, key: Tensor, causal: bool, key_range: tuple[int, int], native: bool = False
) -> Tensor:
    """exp in place, and the softmax's denominators become the weights of the mean: the matrix is
    passed over less often, and its mean is a matrix-vector product."""
    batch, _, rows, width = query.shape
    if not native:
        query, key = query.float(), key.float()
    grouped, columns = _grouped(query * (1 / math.sqrt(width)), key)
    logits = torch.bmm(grouped, columns).float()
    if causal:
        _mask_corner_(logits, rows)
    powers = logits.sub_(logits.amax(-1, keepdim=True)).exp_()
    weight = powers.sum(-1).reciprocal_().view(batch, 1, -1)  # [B, 1, Hq T]
    powers = powers.view(batch, -1, powers.shape[-1])[..., key_range[0] : key_range[1]]
    return torch.bmm(weight, powers)[:, 0].div_(weight.shape[-1])


def expression(
    query: Tensor, key: Tensor, causal: bool, key_range: tuple[int, int], native: bool = False
) -> Tensor:
    """``softmax_grouped`` without anything in place, for ``torch.compile``."""
    batch, _, rows, width = query.shape
    if not native:
        query, key = query.float(), key.float()
    grouped, columns = _grouped(query * (1 / math.sqrt(width)), key)
    logits = torch.bmm(grouped, columns).float()
    if causal:
        keys = columns.shape[-1]
        row = torch.arange(grouped.shape[1], device=key.device)[:, None] % rows
        column = torch.arange(keys, device=key.device)
        logits = logits.masked_fill(column > row + keys - rows, float("-inf"))
    probability = logits.softmax(-1).view(batch, -1, columns.shape[-1])
    return probability[..., key_range[0] : key_range[1]].mean(1)


EAGER: dict[str, Salience] = {
    "eager-grouped": softmax_grouped,
    "eager-baddbmm": softmax_baddbmm,
    "eager-exp": unnormalised,
}
# The same thing in float32, so only run for half precision.
EAGER_NATIVE: dict[str, Salience] = {
    "eager-grouped-native": functools.partial(softmax_grouped, native=True),
    "eager-exp-native": functools.partial(unnormalised, native=True),
}


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

    return [
        Implementation("flash-colreduce", LIBRARY, lambda: make(True)),
        Implementation("flash-colreduce-per-head", PEER, lambda: make(False)),
    ]


@dataclass(frozen=True)
class Case(case.Case):
    batch: int
    query_heads: int
    key_heads: int
    rows: int
    keys: int
    width: int
    dtype: str
    causal: bool
    key_range: tuple[int, int]

    op = "attention_salience"

    def __str__(self) -> str:
        heads = f"H{self.query_heads}/{self.key_heads} d{self.width}"
        return f"B{self.batch} T{self.rows} S{self.keys} {self.dtype} {heads}"

    def small(self) -> Case:
        return replace(
            self,
            batch=1,
            query_heads=4,
            key_heads=4 * self.key_heads // self.query_heads,
            rows=min(self.rows, 3),
            keys=9,
            width=16,
            key_range=(self.key_range[0], 9),
        )

    def inputs(self, device: str, seed: int) -> Inputs:
        make, dtype = Maker(device, seed), DTYPES[self.dtype]
        query = make.randn(self.batch, self.query_heads, self.rows, self.width, dtype=dtype)
        key = make.randn(self.batch, self.key_heads, self.keys, self.width, dtype=dtype)
        return query, key, self.causal, self.key_range

    def counted(self) -> Counted:
        """Every logit that the mask allows, d multiply-adds each."""
        heads = self.query_heads * self.rows + self.key_heads * self.keys
        read = self.batch * heads * self.width * BYTES[self.dtype]
        written = self.batch * (self.key_range[1] - self.key_range[0]) * 4
        logits = self.rows * self.keys
        if self.causal:
            logits -= self.rows * (self.rows - 1) // 2
        multiply_adds = self.batch * self.query_heads * logits * self.width
        return Counted(read + written, multiply_adds, self.dtype)

    def ours(self, query: Tensor, key: Tensor, causal: bool, key_range: tuple[int, int]) -> Tensor:
        return attention_salience(query, key, causal=causal, key_range=key_range)

    def agree(self, inputs: Inputs, ours: Tensor, theirs: Tensor) -> bool:
        # Relative to the mean of 1 / S; others round logits or results to bfloat16.
        tolerance = 1e-3 if self.dtype == "float32" else 5e-2
        return close(ours * self.keys, theirs * self.keys, tolerance)

    def baselines(self, gpu: bool) -> list[Implementation]:
        half = self.dtype != "float32"
        others = eager(EAGER | (EAGER_NATIVE if half else {}))
        if self.compiles or not gpu:
            native = functools.partial(expression, native=True)
            forms = {"compiled": expression} if not (gpu and half) else {}
            forms |= {"compiled-native": native} if half else {}
            others += [compiled(name, form) for name, form in forms.items()]
        if not gpu:
            return others
        summed = self.query_heads == self.key_heads and self.key_range == (0, self.keys)
        return [memcpy(self.counted()), *(column_sums() if summed else []), *others]


def text(rows: int, keys: int, key_heads: int, dtype: str, batch: int = 1, **more: Any) -> Case:
    return Case(batch, 32, key_heads, rows, keys, 128, dtype, True, (0, keys), **more)


def vision(batch: int, dtype: str, **more: Any) -> Case:
    return Case(batch, 16, 16, 1, 577, 64, dtype, False, (1, 577), **more)


CPU = [
    *(
        text(rows, keys, key_heads, dtype)
        for rows in (1, 8, 32, 64)
        for keys in (640, 4096)
        for key_heads in (8, 32)
        for dtype in DTYPES
    ),
    *(text(32, 640, 8, dtype, batch=8) for dtype in DTYPES),
    *(vision(batch, dtype) for batch in (1, 8) for dtype in DTYPES),
]
BF16 = "bfloat16"
FIRST = [
    text(64, 16384, 32, BF16, priority=0, compiles=True),
    text(1, 16384, 32, BF16, priority=0, compiles=True),
    text(32, 4096, 8, BF16, priority=0, compiles=True),
    vision(1, BF16, priority=0, compiles=True),
    text(1, 32768, 8, BF16, priority=1),
    text(1, 32768, 32, BF16, priority=1),
    vision(8, BF16, priority=1),
    vision(64, BF16, priority=1),
    text(32, 4096, 8, "float32", priority=1),
    text(32, 4096, 8, BF16, batch=8, priority=1),
]
REST = [
    text(rows, keys, key_heads, BF16)
    for keys in (16384, 4096, 1024)
    for rows in (1, 8, 32, 64)
    for key_heads in (32, 8)
]
BENCHMARK = Benchmark(
    cpu=CPU,
    gpu=[*FIRST, *(one for one in REST if str(one) not in map(str, FIRST))],
    telling=(
        "B1 T1 S4096 bfloat16 H32/8 d128",
        "B1 T32 S640 float32 H32/32 d128",
        "B1 T64 S4096 bfloat16 H32/8 d128",
        "B8 T1 S577 float32 H16/16 d64",
    ),
    packages=("flash_colreduce",),
    memory=Memory(
        [one for one in CPU if one.rows in (1, 64) and one.keys == 4096 and one.key_heads == 8],
        few=lambda one: replace(one, keys=one.rows, key_range=(0, one.rows)),
    ),
)
