"""Column means of attention as one would write them without the package, in eager torch.

All form the attention matrix. They differ in how scale and mask get in and in what is done to the
matrix: every pass over it counts, as it is by far the largest tensor here. None repeats the keys
for the query heads that share them, which was slower at every shape. Rows are weighted alike.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

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
