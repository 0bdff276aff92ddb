"""Few pivots, and the tokens that are least like them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from clasp_kernels import Selection, select_pivots

from ._selections import selection_of, without
from .registry import register_rule

_NUM_PIVOTS = 8


@register_rule("dart")
def dart(
    features: Tensor,
    salience: Tensor,
    budget: Sequence[int],
    *,
    valid: Tensor | None = None,
) -> Selection:
    """Keep up to 8 salient pivots; then each pivot in turn adds the tokens that are least like it.

    The pivots share what is left of the budget equally, the first ones taking one more where it
    does not divide. Similarity is by cosine; ties, up to rounding, go to the lower index. This
    differs from the authors' scripts, whose pivots are 4 image tokens, by the norm of their keys,
    and 4 text tokens.

    Needs salience. Costs 8 rounds of eager PyTorch over [B, N].

    Source: DART, arXiv 2502.11494.

    >>> import torch
    >>> features = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [1.0, 0.2]]])
    >>> salience = torch.tensor([[0.9, 0.5, 0.1, 0.2]])
    >>> dart(features, salience, [2]).indices
    tensor([[0, 2]])
    """
    num_images, num_tokens = salience.shape
    if num_images == 0 or num_tokens == 0 or max(budget) == 0:
        return selection_of(salience.new_empty(num_images, 0, dtype=torch.int64), budget)
    # At least one token is added where the budget has room for more than a pivot.
    wanted = [min(_NUM_PIVOTS, max(1, count // 2)) if count else 0 for count in budget]
    pivots = select_pivots(salience, wanted, valid=valid)  # [B, P]
    unit = functional.normalize(features.float(), dim=-1)
    rows = unit.gather(1, pivots.clamp_min(0)[..., None].expand(-1, -1, unit.shape[-1]))
    likeness = rows @ unit.mT  # [B, P, N]
    free = without(valid, pivots, num_tokens)
    picks = [pivots]
    for turn in range(pivots.shape[1]):
        shares = [
            (count - share) // share + (turn < (count - share) % share) if turn < share else 0
            for count, share in zip(budget, wanted, strict=True)
        ]
        least = select_pivots(-likeness[:, turn], shares, valid=free)
        free = without(free, least, num_tokens)
        picks.append(least)
    return selection_of(torch.cat(picks, dim=1), budget, pivots)
