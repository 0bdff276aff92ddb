"""Max-min diversity of what sets tokens apart from their image's mean."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clasp_kernels import Selection, complete_tokens

from ._selections import relative_to_largest, selection_of
from .registry import register_rule


@register_rule("cenprune", uses_salience=False)
def cenprune(
    features: Tensor,
    salience: Tensor,
    budget: Sequence[int],
    *,
    valid: Tensor | None = None,
) -> Selection:
    """Keep tokens that differ from the image's mean, and from each other in how they do.

    The mean of an image's valid tokens is subtracted from them. A token's weight is the length of
    what is left, relative to the longest. Picks are greedy, by weight times distance to the kept
    tokens; the first pick is the token farthest from the mean. A token that is not finite counts
    neither for the mean nor for the weights, and is kept last. So is one whose square overflows
    float32.

    Needs features alone. Costs one :func:`~clasp_kernels.complete_tokens` with weights, and one for
    tokens that are not finite.

    Source: descriptions of Cen-Prune as centred and weighted max-min pruning; its paper was not
    read, and none is named here for that reason. The weight by distance from the mean is this
    package's reading.

    >>> import torch
    >>> features = torch.tensor([[[9.0, 0.0], [9.0, 0.2], [9.0, 4.0], [9.0, -3.0]]])
    >>> cenprune(features, torch.zeros(1, 4), [2]).indices
    tensor([[2, 3]])
    """
    rows = features.float()
    counts = rows.square().sum(-1).isfinite()
    if valid is not None:
        counts = counts & valid
    finite = rows.masked_fill(~counts[..., None], 0.0)
    # One image's sum does not depend on the others: it runs over its own tokens alone.
    mean = finite.sum(1, keepdim=True) / counts.sum(1).clamp_min(1)[:, None, None]
    centred = rows - mean
    weights = centred.square().sum(-1).sqrt().masked_fill(~counts, 0.0)
    weights = relative_to_largest(weights, counts)
    nothing = torch.empty(len(features), 0, dtype=torch.int64, device=features.device)
    num_picks = max(budget, default=0)
    picks = complete_tokens(centred, nothing, num_picks, weights=weights, valid=counts)
    last = complete_tokens(centred, picks, num_picks, valid=valid)
    return selection_of(torch.cat([picks, last], 1), budget)
