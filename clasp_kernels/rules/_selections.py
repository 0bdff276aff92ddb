"""Make a :class:`~clasp_kernels.Selection` of picks in order, or of the best scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clasp_kernels import Selection, select_pivots
from clasp_kernels.upload import upload


def selection_of(picks: Tensor, budget: Sequence[int], num_pivots: int) -> Selection:
    """Return the first ``budget[b]`` picks of each image, in ascending order of index.

    Args:
        picks: [B, M] int64, distinct indices, padded with -1.
        budget: the number to keep of each image.
        num_pivots: how many picks, from the first, are pivots.
    """
    width = max(budget, default=0)
    if picks.shape[1] < width:
        missing = picks.new_full((len(picks), width - picks.shape[1]), -1)
        picks = torch.cat([picks, missing], dim=1)
    picks = picks[:, :width]
    slots = torch.arange(width, device=picks.device)
    kept = (slots < upload(list(budget), picks.device)[:, None]) & (picks >= 0)
    last = torch.iinfo(torch.int64).max
    order = picks.where(kept, last).argsort(dim=1)
    indices = picks.where(kept, -1).gather(1, order)
    is_pivot = (kept & (slots < num_pivots)).gather(1, order)
    return Selection(indices, is_pivot, kept.sum(1))


def with_pivots(picks: Tensor, pivots: Tensor, budget: Sequence[int]) -> Selection:
    """Return the first ``budget[b]`` picks of each image, skipping -1; ``pivots`` are among them.

    Args:
        picks: [B, M] int64, distinct indices, with -1 anywhere.
        pivots: [B, P] int64, -1 where unused.
        budget: the number to keep of each image.
    """
    order = (picks < 0).to(torch.int8).argsort(dim=1, stable=True)
    selection = selection_of(picks.gather(1, order), budget, 0)
    is_pivot = (selection.indices[..., None] == pivots[:, None, :]).any(-1)
    return selection._replace(is_pivot=is_pivot & (selection.indices >= 0))


def without(free: Tensor, picks: Tensor) -> Tensor:
    """Return ``free`` [B, N] without the tokens in ``picks`` [B, M], of which -1 names none."""
    index = torch.arange(free.shape[1], device=free.device)
    return free & (index != picks[..., None]).all(1)


def best_of(scores: Tensor, budget: Sequence[int], valid: Tensor | None) -> Selection:
    """Return the ``budget[b]`` tokens of the highest scores [B, N], ties to the lower index."""
    return selection_of(select_pivots(scores, list(budget), valid=valid), budget, 0)
