"""The k most salient tokens in eager torch.

``topk`` breaks ties as it likes and puts NaN first, the stable sort only the latter, so both do
less than the op; on distinct numbers all agree.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

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
