"""What others do to keep R of N visual tokens, in eager torch and our own words.

They do the same job by other rules, so they keep other tokens: they are shown for orientation, not
compared as the same computation. Each is written as fast as we know how: DivPrune's and CDPruner's
greedy steps update what they need instead of recomputing it.

features [B, N, D], salience [B, N] -> indices [B, R], ascending.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Select = Callable[[Tensor, Tensor, int, int], Tensor]  # features, salience, budget, pivots


def _cosines(features: Tensor) -> Tensor:
    unit = functional.normalize(features.float(), dim=-1)
    return torch.bmm(unit, unit.transpose(1, 2))


def divprune(features: Tensor, salience: Tensor, budget: int, num_pivots: int) -> Tensor:
    """DivPrune (Alvar et al., arXiv 2503.02175): max-min diversity over the full N x N distances.

    It starts at the token that is farthest from its nearest neighbour and then always takes the
    one farthest from those taken. Salience plays no part.
    """
    distances = 1 - _cosines(features)
    batch, tokens = distances.shape[:2]
    image = torch.arange(batch)
    picks = torch.empty(batch, budget, dtype=torch.int64)
    distances.diagonal(dim1=1, dim2=2).fill_(float("inf"))
    pick = distances.amin(-1).argmax(-1)
    nearest = torch.full((batch, tokens), float("inf"))
    for step in range(budget):
        picks[:, step] = pick
        torch.minimum(nearest, distances[image, pick], out=nearest)
        nearest.scatter_(1, picks[:, : step + 1], float("-inf"))
        pick = nearest.argmax(-1)
    return picks.sort(-1).values


def cdpruner(features: Tensor, salience: Tensor, budget: int, num_pivots: int) -> Tensor:
    """CDPruner (Zhang et al., arXiv 2506.10967): the likeliest subset of a determinantal point
    process whose kernel is the similarity conditioned on relevance, found greedily.

    Each step takes the token with the largest gain in determinant, which is the square of the next
    diagonal entry of a Cholesky factorisation that grows by one row a step.
    """
    relevance = salience.float()
    low, high = relevance.amin(-1, keepdim=True), relevance.amax(-1, keepdim=True)
    relevance = (relevance - low) / (high - low) + 1e-6
    kernel = _cosines(features).mul_(relevance[:, :, None]).mul_(relevance[:, None])
    batch, tokens = kernel.shape[:2]
    image = torch.arange(batch)
    gain = kernel.diagonal(dim1=1, dim2=2).clone()  # [B, N]
    factor = torch.zeros(batch, budget, tokens)
    picks = torch.empty(batch, budget, dtype=torch.int64)
    for step in range(budget):
        pick = gain.argmax(-1)
        picks[:, step] = pick
        known = factor[:, :step]
        row = kernel[image, pick]
        if step:
            row -= torch.bmm(known[image, :, pick][:, None], known)[:, 0]
        row *= gain[image, pick].clamp(min=1e-12).rsqrt()[:, None]
        factor[:, step] = row
        gain.addcmul_(row, row, value=-1)
        gain.scatter_(1, pick[:, None], float("-inf"))
    return picks.sort(-1).values


def vispruner(features: Tensor, salience: Tensor, budget: int, num_pivots: int) -> Tensor:
    """VisPruner (Zhang et al., arXiv 2412.01818): the most attended tokens, and from the rest what
    is left when duplicates have been removed again and again.

    Each round splits what remains into two halves, alternately, and drops from the one those most
    similar to any of the other; a round drops at most half of the remaining ones.
    """
    order = salience.argsort(-1, descending=True)
    pivots, rest = order[:, :num_pivots], order[:, num_pivots:].sort(-1).values
    unit = functional.normalize(features.float(), dim=-1)
    wanted = budget - num_pivots
    while rest.shape[1] > wanted:
        first, second = rest[:, ::2], rest[:, 1::2]
        rows = [
            unit.gather(1, half[..., None].expand(-1, -1, unit.shape[2]))
            for half in (first, second)
        ]
        duplicate = torch.bmm(rows[0], rows[1].transpose(1, 2)).amax(-1)
        kept = first.shape[1] - min(rest.shape[1] - wanted, first.shape[1])
        survivors = duplicate.topk(kept, largest=False).indices
        rest = torch.cat([first.gather(1, survivors), second], 1).sort(-1).values
    return torch.cat([pivots, rest], 1).sort(-1).values


def visionzip(features: Tensor, salience: Tensor, budget: int, num_pivots: int) -> Tensor:
    """VisionZip (Yang et al., arXiv 2412.04467): the dominant tokens by attention, and as targets
    for the others every so many of the rest. ``visionzip_merge`` is its other half."""
    order = salience.argsort(-1, descending=True)
    dominant, rest = order[:, :num_pivots], order[:, num_pivots:].sort(-1).values
    every = torch.linspace(0, rest.shape[1] - 1, budget - num_pivots).long()
    return torch.cat([dominant, rest[:, every]], 1).sort(-1).values


def visionzip_merge(tokens: Tensor, indices: Tensor) -> Tensor:
    """VisionZip's contextual merge: the first half of the kept tokens are dominant and stay as they
    are; the others each become the mean of themselves and of the tokens most similar to them, by a
    one-hot product. indices [B, R] -> [B, R, D]."""
    batch, count, width = tokens.shape
    num_dominant = indices.shape[1] // 2
    dominant, targets = indices[:, :num_dominant], indices[:, num_dominant:]
    kept = tokens.gather(1, dominant[..., None].expand(-1, -1, width))
    free = torch.ones(batch, count, dtype=torch.bool).scatter_(1, dominant, False)
    rest = tokens[free].view(batch, -1, width)
    place = free.long().cumsum(1).sub_(1).gather(1, targets)  # of the targets in ``rest``
    unit = functional.normalize(rest.float(), dim=-1).to(tokens.dtype)
    centres = unit.gather(1, place[..., None].expand(-1, -1, width))
    group = torch.bmm(unit, centres.transpose(1, 2)).argmax(-1)
    group.scatter_(1, place, torch.arange(place.shape[1]).expand_as(place))
    member = functional.one_hot(group, place.shape[1]).to(tokens.dtype)  # [B, N', R']
    sums = torch.bmm(member.transpose(1, 2), rest)
    merged = (sums / member.sum(1, dtype=torch.float32)[..., None]).to(tokens.dtype)
    return torch.cat([kept, merged], 1)


SELECT: dict[str, Select] = {
    "divprune": divprune,
    "cdpruner": cdpruner,
    "vispruner": vispruner,
    "visionzip": visionzip,
}
