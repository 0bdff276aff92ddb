"""Make a :class:`~clasp_kernels.Selection` of picks in order, or of the best scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from clasp_kernels import Selection, select_pivots
from clasp_kernels.upload import upload


def selection_of(picks: Tensor, budget: Sequence[int], pivots: Tensor | None = None) -> Selection:
    """Return the first ``budget[b]`` picks of each image, in ascending order of index.

    Args:
        picks: [B, M] int64, distinct indices, with -1 anywhere.
        budget: the number to keep of each image.
        pivots: [B, P] int64, the picks that are pivots, -1 where unused. None by default.
    """
    width = max(budget, default=0)
    found = picks >= 0
    kept = found & (found.cumsum(1) <= upload(list(budget), picks.device)[:, None])
    last = torch.iinfo(torch.int64).max
    indices = picks.where(kept, last).sort(dim=1).values[:, :width]
    indices = indices.masked_fill(indices == last, -1)
    indices = functional.pad(indices, (0, width - indices.shape[1]), value=-1)
    is_pivot = torch.zeros_like(indices, dtype=torch.bool)
    if pivots is not None:
        is_pivot = (indices[..., None] == pivots[:, None]).any(-1) & (indices >= 0)
    return Selection(indices, is_pivot, kept.sum(1))


def without(valid: Tensor | None, picks: Tensor, num_tokens: int) -> Tensor:
    """Return which of the ``valid`` tokens are not among ``picks`` [B, M], [B, N] bool.

    -1 in ``picks`` names no token. ``valid`` may be None, for all ``num_tokens`` tokens.
    """
    index = torch.arange(num_tokens, device=picks.device)
    others = (index != picks[..., None]).all(1)
    return others if valid is None else others & valid


def relative_to_largest(values: Tensor, counts: Tensor) -> Tensor:
    """Return ``values`` [B, N] divided by each image's largest one where ``counts`` [B, N] is True.

    An image whose largest value is not positive is left as it is.
    """
    if values.shape[1] == 0:
        return values
    most = values.masked_fill(~counts, 0.0).amax(1, keepdim=True)
    return values / torch.where(most > 0, most, 1.0)


def best_of(scores: Tensor, budget: Sequence[int], valid: Tensor | None) -> Selection:
    """Return the ``budget[b]`` tokens of the highest scores [B, N], ties to the lower index."""
    return selection_of(select_pivots(scores, list(budget), valid=valid), budget)
