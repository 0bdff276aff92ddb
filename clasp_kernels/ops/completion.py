"""Greedy coverage: picks the tokens that the kept tokens represent worst."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import backends, reference
from ..backends.table import OpSpec
from ._checks import FLOATS, INDEX, Arguments
from ._library import define_op


def complete_tokens(
    features: Tensor,
    selected: Tensor,
    num_tokens: int,
    *,
    weights: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Greedy farthest-first completion under cosine similarity.

    With ``covered[n] = max over j in selected of cos(features[n], features[j])``, each of the
    ``num_tokens`` steps picks the valid, unselected token with the smallest ``covered[n]``, and
    updates ``covered``. With ``weights``, a step picks the largest ``weights[n] * (1 -
    covered[n])`` instead: a token then counts for more if it is relevant as well as different.

    Args:
        features: [B, N, D]; float32, bfloat16 or float16.
        selected: [B, P] int64, the tokens kept so far, each at most once; -1 where unused.
        num_tokens: M, how many to pick per image.
        weights: [B, N], not negative; float32, bfloat16 or float16. All equal by default.
        valid: [B, N] bool; tokens where it is False are never picked. All by default.

    Returns:
        [B, M] int64 in order of picking, ending in -1 where tokens ran out.

    Ties go to the lower index. In an image with nothing selected, the first pick is the lowest
    valid index. A zero vector has similarity 0 to everything. Any other non-finite similarity
    counts as larger than every finite one, so tokens with NaN or Inf are picked last.

    If all valid tokens of an image have the same weight, its picks are those without weights, to
    the bit. Otherwise, tokens of weight 0 are picked last, the lowest index first, even after
    tokens with NaN or Inf. If nothing is
    selected, the first pick is the largest weight. A weight that is NaN, negative or below 2**-50
    counts as 0, and one above 2**50 as 2**50.

    Norms come from squares summed in float32. They are exact to rounding while the largest element
    of a vector is between about 1e-18 and 1e18 in magnitude (from 1e-16 for bfloat16, because CPUs
    with bfloat16 products treat subnormal products as zero). If the sum overflows, the similarity
    is 0, or non-finite if the dot product overflows too. If the sum underflows to 0, the vector
    counts as a zero vector.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape or device, a negative ``num_tokens``, an out-of-range or repeated
            index in ``selected``.

    Source: the completion stage of CLASP, arXiv 2604.12767; the greedy rule is Gonzalez (1985),
    "Clustering to minimize the maximum intercluster distance".

    >>> import torch
    >>> from clasp_kernels import complete_tokens
    >>> features = torch.tensor([[[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [-1.0, 0.0]]])
    >>> complete_tokens(features, torch.tensor([[0]]), 4)
    tensor([[ 3,  2,  1, -1]])
    """
    arguments = Arguments("complete_tokens")
    arguments.tensor("features", features, "B N D", FLOATS)
    arguments.tensor("selected", selected, "B P", INDEX)
    usable = arguments.weights("weights", weights, "B N")
    arguments.mask("valid", valid, "B N")
    num_picks = arguments.count("num_tokens", num_tokens)
    arguments.indices_in_range(
        "selected", selected, -1, features.shape[1], "a token, or -1 for none"
    )
    arguments.no_repeats("selected", selected)
    op = backends.overload("complete_tokens", features.device)
    return op(features, selected, num_picks, valid, usable)


def _fake(
    features: Tensor,
    selected: Tensor,
    num_picks: int,
    valid: Tensor | None,
    weights: Tensor | None = None,
) -> Tensor:
    return features.new_empty((features.shape[0], num_picks), dtype=torch.int64)


define_op(
    OpSpec(
        name="complete_tokens",
        schema="(Tensor features, Tensor selected, SymInt num_picks, Tensor? valid, "
        "Tensor? weights=None) -> Tensor",
        reference=reference.complete_tokens,
        fake=_fake,
        cpu=True,
        cuda=True,
        triton="clasp_kernels.triton.complete_tokens:complete_tokens",
        ordered_by_barriers=True,
    )
)
