"""Coverage of the other tokens, times salience."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clasp_kernels import Selection, cover_tokens

from ._selections import relative_to_largest, selection_of
from .registry import register_rule


@register_rule("scope")
def scope(
    features: Tensor,
    salience: Tensor,
    budget: Sequence[int],
    *,
    valid: Tensor | None = None,
) -> Selection:
    """Keep tokens that are salient and represent many others that no kept token represents.

    Each pick is the token with the largest product of its salience, relative to the image's most
    salient token, and of what it adds to the coverage: the sum over all tokens of how much more
    similar to a kept token they become. Negative similarities count as 0.

    Needs salience. Costs one :func:`~clasp_kernels.cover_tokens`.

    Source: SCOPE, arXiv 2510.24214. Its exponent of the salience is 1 here.

    >>> import torch
    >>> features = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [1.0, 0.2]]])
    >>> scope(features, torch.tensor([[0.4, 0.5, 0.2, 0.3]]), [2]).indices
    tensor([[1, 2]])
    """
    counts = salience.isfinite() if valid is None else salience.isfinite() & valid
    # The attention over thousands of tokens is small, and only its ratio matters.
    preference = relative_to_largest(salience.float(), counts)
    nothing = torch.empty(len(features), 0, dtype=torch.int64, device=features.device)
    picks = cover_tokens(features, nothing, list(budget), preference=preference, valid=valid)
    return selection_of(picks, budget)
