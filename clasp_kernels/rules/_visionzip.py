"""The most salient tokens, and an even sample of the rest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clasp_kernels import Selection, select_pivots
from clasp_kernels.upload import upload

from ._selections import selection_of, without
from .registry import register_rule


@register_rule("visionzip")
def visionzip(
    features: Tensor,
    salience: Tensor,
    budget: Sequence[int],
    *,
    valid: Tensor | None = None,
) -> Selection:
    """Keep the dominant tokens by salience, and tokens at equal distances among the others.

    5 of 32 tokens of the budget, rounded, are contextual ones, as in the paper's settings (10 of
    64, 20 of 128, 30 of 192). In the paper, each contextual token is the mean of the tokens most
    similar to it; ``apply_clasp(..., merge=True)`` does that, for dominant tokens too.

    Needs salience. Costs two :func:`~clasp_kernels.select_pivots`.

    Source: VisionZip, arXiv 2412.04467.

    >>> import torch
    >>> salience = torch.tensor([[0.9, 0.5, 0.1, 0.6, 0.2, 0.3, 0.2, 0.1]])
    >>> visionzip(torch.ones(1, 8, 2), salience, [4]).indices
    tensor([[0, 1, 2, 3]])
    """
    num_contextual = [(5 * count + 16) // 32 for count in budget]
    num_dominant = [count - own for count, own in zip(budget, num_contextual, strict=True)]
    dominant = select_pivots(salience, num_dominant, valid=valid)
    free = without(valid, dominant, salience.shape[1])
    place = free.cumsum(1) - 1
    wanted = upload(num_contextual, salience.device)[:, None]
    step = (free.sum(1, keepdim=True) // wanted.clamp_min(1)).clamp_min(1)
    is_target = (place % step == 0) & (place // step < wanted)
    contextual = select_pivots(is_target.float(), num_contextual, valid=free)
    return selection_of(torch.cat([dominant, contextual], 1), budget, dominant)
