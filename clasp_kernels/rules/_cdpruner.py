"""The most probable subset of a determinantal point process, conditioned on the prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from clasp_kernels import Selection

from ._selections import selection_of
from .registry import register_rule
from .relevance import as_weights

# A token whose variance is explained by the kept ones to this share cannot be told from noise.
_LEAST_VARIANCE = 1e-6


@register_rule("cdpruner", uses_salience=False, uses_relevance=True)
def cdpruner(
    features: Tensor,
    salience: Tensor,
    budget: Sequence[int],
    *,
    relevance: Tensor | None = None,
    valid: Tensor | None = None,
) -> Selection:
    """Keep tokens that are relevant to the prompt and unlike each other.

    The kernel is r[i] * cos(i, j) * r[j], with the relevance r of each token scaled to 0..1 in its
    image, or 1 without a prompt. Each pick is the token with the largest variance that the kept
    ones leave unexplained, weighted by r squared: greedy maximization of the kernel's determinant.
    Where nothing is left but what the kept tokens explain, the order is by index. Ties, up to
    rounding, go to the lower index; a token that is not finite, or whose square overflows float32,
    is kept last.

    Needs features, and the prompt's relevance. Costs a matrix-vector product and a row of a
    Cholesky factor for each pick, in eager PyTorch: no op of this package fits.

    Source: CDPruner, arXiv 2506.10967, which takes relevance from a CLIP text encoder where a model
    has one; here it is :func:`prompt_relevance`. The greedy algorithm is from "Fast greedy MAP
    inference for determinantal point process" (Chen et al., 2018).

    >>> import torch
    >>> features = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [1.0, 0.2]]])
    >>> cdpruner(features, torch.zeros(1, 4), [2]).indices
    tensor([[0, 2]])
    """
    num_images, num_tokens, _ = features.shape
    num_picks = min(max(budget, default=0), num_tokens)
    picks = torch.full((num_images, num_picks), -1, dtype=torch.int64, device=features.device)
    if picks.numel() == 0:
        return selection_of(picks, budget)
    unit = functional.normalize(features.float(), dim=-1)
    finite = unit.isfinite().all(-1)
    unit = unit.masked_fill(~finite[..., None], 0.0)
    weights = as_weights(relevance, valid)
    quality = unit.new_ones(unit.shape[:2]) if weights is None else weights
    free = torch.ones_like(finite) if valid is None else valid.clone()
    # The variance of each token that the kept ones leave unexplained: 1 at first, without rounding.
    left = unit.any(-1).float()
    # The Cholesky factor of the kernel without relevance: a row for each pick so far.
    factor = unit.new_zeros(num_images, num_picks, num_tokens)
    image = torch.arange(num_images, device=features.device)
    for step in range(num_picks):
        explained = left <= _LEAST_VARIANCE
        gain = (quality.square() * left).masked_fill(explained | (quality == 0), 0.0)
        gain = gain.masked_fill(~finite, -1.0).masked_fill(~free, -2.0)
        chosen = gain.argmax(1)  # the first of equal ones
        picks[:, step] = chosen.where(free.any(1), -1)
        free.scatter_(1, chosen[:, None], False)
        # Products and sums, because the rounding of a batched matrix product depends on the batch.
        similarity = (unit * unit[image, chosen][:, None]).sum(2)
        seen = (factor[:, :step] * factor[image, :step, chosen][..., None]).sum(1)
        variance = left[image, chosen].clamp_min(_LEAST_VARIANCE)
        row = (similarity - seen) / variance.sqrt()[:, None]
        row = row.masked_fill(explained[image, chosen][:, None], 0.0)
        factor[:, step] = row
        left = (left - row.square()).clamp_min(0.0)
    return selection_of(picks, budget)
