"""The most salient tokens, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from clasp_kernels import Selection, select_tokens

from .registry import register_rule


@register_rule("attention")
def attention(
    features: Tensor,
    salience: Tensor,
    budget: Sequence[int],
    *,
    valid: Tensor | None = None,
) -> Selection:
    """Keep the tokens with the highest salience, ties to the lower index.

    This is the selection of FastV (arXiv 2403.06764), which scores tokens by attention inside the
    LLM, and of FasterVLM (arXiv 2412.01818), which scores them by the CLS token's attention in the
    vision tower. Which attention it is here depends on where the stage is.

    Needs salience. Costs one :func:`~clasp_kernels.select_tokens` that compares no features.

    >>> import torch
    >>> features = torch.ones(1, 4, 2)
    >>> attention(features, torch.tensor([[0.9, 0.5, 0.1, 0.6]]), [2]).indices
    tensor([[0, 3]])
    """
    return select_tokens(features, salience, list(budget), list(budget), valid=valid)
