"""CLASP with clusters: one representative of each group of tokens that the pivots leave."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from clasp_kernels import Selection, complete_tokens, select_pivots
from clasp_kernels.upload import upload

from ._clasp import num_pivots
from ._selections import selection_of, without
from .registry import register_rule

_ROUNDS = 5


@register_rule("clasp_clusters")
def clasp_clusters(
    features: Tensor,
    salience: Tensor,
    budget: Sequence[int],
    *,
    valid: Tensor | None = None,
) -> Selection:
    """Keep salient pivots, cluster the other tokens by similarity, and keep one of each cluster.

    This is how the paper's public material words the second stage; :func:`clasp` approximates it
    by a greedy choice. The number of clusters is what the pivots leave of the budget. The clusters
    are those of k-means on unit vectors, in 5 rounds. The first centres are the tokens that
    farthest-first traversal picks after the pivots. A cluster's representative is the token most
    similar to its mean. If a cluster ends up empty, the token that the kept ones cover worst takes
    its place. Ties, up to rounding, go to the lower index.

    Needs salience. Costs two :func:`~clasp_kernels.complete_tokens`, and 6 products of all tokens
    with all centres in eager PyTorch.

    Source: arXiv 2604.12767, which gives neither the algorithm nor its settings.

    >>> import torch
    >>> features = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.1, 1.0], [0.2, 1.0]]])
    >>> clasp_clusters(features, torch.tensor([[0.9, 0.1, 0.1, 0.1]]), [2]).indices
    tensor([[0, 2]])
    """
    pivots = select_pivots(salience, [num_pivots(count) for count in budget], valid=valid)
    num_clusters = [count - num_pivots(count) for count in budget]
    seeds = complete_tokens(features, pivots, max(num_clusters, default=0), valid=valid)
    if seeds.numel() == 0 or features.shape[1] == 0:
        return selection_of(pivots, budget, pivots)
    slot = torch.arange(seeds.shape[1], device=seeds.device)
    wanted = upload(num_clusters, seeds.device)[:, None]
    is_cluster = (seeds >= 0) & (slot < wanted)  # [B, K]

    unit = functional.normalize(features.float(), dim=-1)
    members = without(valid, pivots, features.shape[1])
    members = members & unit.isfinite().all(-1)
    unit = unit.masked_fill(~members[..., None], 0.0)
    width = unit.shape[-1]
    centres = unit.gather(1, seeds.clamp_min(0)[..., None].expand(-1, -1, width))
    for _ in range(_ROUNDS):
        belongs = _belongs(unit, centres, is_cluster, members)[0]
        # A product instead of a scattered sum, whose order is not fixed on a GPU.
        total = belongs.float().mT @ unit
        is_empty = ~belongs.any(1)[..., None]
        centres = torch.where(is_empty, centres, functional.normalize(total, dim=-1))
    belongs, likeness = _belongs(unit, centres, is_cluster, members)
    nearest = likeness.masked_fill(~belongs, float("-inf")).argmax(1)  # [B, K]
    nearest = nearest.where(belongs.any(1), -1)
    kept = torch.cat([pivots, nearest], 1)
    more = complete_tokens(features, kept, seeds.shape[1], valid=valid)
    return selection_of(torch.cat([kept, more], 1), budget, pivots)


def _belongs(
    unit: Tensor, centres: Tensor, is_cluster: Tensor, members: Tensor
) -> tuple[Tensor, Tensor]:
    """Return whether a token belongs to a cluster, and their similarity; both [B, N, K]."""
    likeness = unit @ centres.mT
    best = likeness.masked_fill(~is_cluster[:, None], float("-inf")).argmax(2)
    belongs = functional.one_hot(best, centres.shape[1]).bool()
    return belongs & members[..., None] & is_cluster[:, None], likeness
