"""Controls: rules that look at neither features nor salience."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clasp_kernels import Selection
from clasp_kernels.upload import upload

from ._selections import best_of
from .registry import register_rule


@register_rule("random", uses_salience=False)
def random(
    features: Tensor,
    salience: Tensor,
    budget: Sequence[int],
    *,
    valid: Tensor | None = None,
) -> Selection:
    """Keep random tokens.

    The same shape on the same kind of device gives the same tokens, because the seed is fixed.
    PyTorch's global generators are not used, so sampling is not affected.

    Needs nothing but the number of tokens. Costs a random number per token and one
    :func:`~clasp_kernels.select_pivots`. A control of this package; it is of no paper.

    >>> import torch
    >>> random(torch.ones(1, 8, 2), torch.zeros(1, 8), [3]).counts
    tensor([3])
    """
    device = features.device
    generator = torch.Generator(device).manual_seed(0)
    scores = torch.rand(features.shape[:2], generator=generator, device=device)
    return best_of(scores, budget, valid)


@register_rule("uniform", uses_salience=False)
def uniform(
    features: Tensor,
    salience: Tensor,
    budget: Sequence[int],
    *,
    valid: Tensor | None = None,
) -> Selection:
    """Keep tokens at equal distances in the image's order of tokens.

    Needs nothing but the number of tokens. Costs a running sum over them and one
    :func:`~clasp_kernels.select_pivots`. A control of this package; it is of no paper.

    >>> import torch
    >>> uniform(torch.ones(1, 8, 2), torch.zeros(1, 8), [4]).indices
    tensor([[1, 3, 5, 7]])
    """
    images, num_tokens = features.shape[:2]
    if valid is None:
        valid = torch.ones(images, num_tokens, dtype=torch.bool, device=features.device)
    place = valid.cumsum(1)  # 1 for an image's first token
    count = upload(list(budget), features.device)[:, None]
    total = valid.sum(1, keepdim=True).clamp_min(1)
    # The token at which the share of the budget that is due reaches the next whole number.
    is_due = place * count // total > (place - 1) * count // total
    return best_of(is_due.float(), budget, valid)
