"""Max-min diversity over all tokens, without salience."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from clasp_kernels import Selection, complete_tokens

from ._selections import selection_of
from .registry import register_rule

# Rows of similarities that exist at a time, so that memory does not grow with N * N.
_ROWS = 512


@register_rule("divprune", uses_salience=False)
def divprune(
    features: Tensor,
    salience: Tensor,
    budget: Sequence[int],
    *,
    valid: Tensor | None = None,
) -> Selection:
    """Keep tokens that are as far from each other as possible, by cosine distance.

    The first token is the one whose nearest neighbour is farthest. Each further token is the one
    whose nearest kept token is farthest (greedy max-min). Ties, up to rounding for the first token,
    go to the lower index. A zero vector is similar to nothing, and a token that is not finite is
    kept last, as in :func:`~clasp_kernels.complete_tokens`.

    Needs features alone. Costs one :func:`~clasp_kernels.complete_tokens`, and all N x N
    similarities once to find the first token, in eager PyTorch and in blocks of rows.

    Source: DivPrune, arXiv 2503.02175.

    >>> import torch
    >>> features = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [1.0, 0.2]]])
    >>> divprune(features, torch.zeros(1, 4), [2]).indices
    tensor([[0, 2]])
    """
    if features.shape[1] == 0:
        return selection_of(features.new_empty(len(features), 0, dtype=torch.int64), budget)
    first = _loneliest(features, valid)
    more = complete_tokens(features, first, max(budget, default=0), valid=valid)
    # There is no first token if none is finite.
    return selection_of(torch.cat([first, more], dim=1), budget)


def _loneliest(features: Tensor, valid: Tensor | None) -> Tensor:
    """[B, 1]: the token with the smallest similarity to its nearest neighbour, -1 for none."""
    unit = functional.normalize(features.float(), dim=-1)
    candidates = unit.isfinite().all(-1)
    if valid is not None:
        candidates = candidates & valid
    unit = unit.masked_fill(~candidates[..., None], 0.0)
    nearest = []
    for start in range(0, unit.shape[1], _ROWS):
        block = unit[:, start : start + _ROWS] @ unit.mT
        block = block.masked_fill(~candidates[:, None, :], float("-inf"))
        own = torch.arange(start, start + block.shape[1], device=unit.device)
        block.scatter_(2, own.expand(len(block), -1)[..., None], float("-inf"))
        nearest.append(block.amax(dim=2))
    closeness = torch.cat(nearest, dim=1).masked_fill(~candidates, float("inf"))
    first = closeness.argmin(dim=1, keepdim=True)  # the first of equal ones
    # Without candidates, complete_tokens takes what is valid.
    return first.where(candidates.any(dim=1, keepdim=True), -1)
