"""CLASP: attention-salient pivots, then the tokens that they cover worst."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from clasp_kernels import Selection, select_tokens

from .registry import register_rule

# Our default, not the paper's, which publishes no ratios.
_PIVOT_RATIO = 0.5


@register_rule("clasp")
def clasp(
    features: Tensor,
    salience: Tensor,
    budget: Sequence[int],
    *,
    valid: Tensor | None = None,
) -> Selection:
    """Keep salient pivots, then complete them greedily by farthest-first traversal.

    Half of the budget is pivots. In a patched model the profile says how many, for the category of
    each prompt.

    Needs salience. Costs one :func:`~clasp_kernels.select_tokens`.

    Source: arXiv 2604.12767.

    >>> import torch
    >>> features = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [1.0, 0.2]]])
    >>> clasp(features, torch.tensor([[0.9, 0.5, 0.1, 0.2]]), [2]).indices
    tensor([[0, 2]])
    """
    pivots = [num_pivots(count) for count in budget]
    return select_tokens(features, salience, list(budget), pivots, valid=valid)


def num_pivots(budget: int) -> int:
    """Return how many tokens of a budget are pivots: half, at least 1, and none of no budget."""
    return min(budget, max(1, round(_PIVOT_RATIO * budget)))
