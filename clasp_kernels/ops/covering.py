"""Greedy facility location: picks the tokens that together represent an image best."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import backends, reference
from ..backends.table import OpSpec
from ._checks import FLOATS, INDEX, Arguments
from ._library import define_op


def cover_tokens(
    features: Tensor,
    selected: Tensor,
    num_tokens: int | Sequence[int] | Tensor,
    *,
    weights: Tensor | None = None,
    preference: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Greedy facility location under cosine similarity.

    With ``best[n] = max over j in selected of s[n, j]`` (0 if nothing is selected), where ``s`` is
    the cosine similarity, or 0 if that is negative, each step picks the valid, unselected token j
    with the largest gain, ``preference[j] * sum over valid n of weights[n] * max(0, s[n, j] -
    best[n])``, and updates ``best``.

    :func:`complete_tokens` picks the token that is represented worst; this op picks the one that
    represents the others best, so that single outliers count for little.

    Args:
        features: [B, N, D]; float32, bfloat16 or float16.
        selected: [B, P] int64, the tokens kept so far, each at most once; -1 where unused.
        num_tokens: M, how many to pick per image: an int, or B ints (a list, or an int64 tensor on
            the CPU), of which M is the largest.
        weights: [B, N], how much it counts to represent a token, not negative; float32, bfloat16 or
            float16. All equal by default.
        preference: [B, N], how much it counts to pick a token, not negative; dtypes as of
            ``weights``. All equal by default.
        valid: [B, N] bool; tokens where it is False are neither picked nor counted. All by default.

    Returns:
        [B, M] int64 in order of picking, ending in -1 where tokens ran out.

    Ties go to the lower index. A similarity that is not finite counts as 0, so tokens with NaN or
    Inf add nothing and are picked with those of gain 0, last. If all valid tokens of an image have
    the same weight, its picks are those without weights, to the bit; so with ``preference``. A
    weight that is NaN, negative or below 2**-50 counts as 0, and one above 2**50 as 2**50; so does
    a preference. Features whose squares overflow or underflow float32 are treated as in
    :func:`complete_tokens`.

    Raises:
        TypeError: a wrong type or dtype; a ``num_tokens`` that is not on the host.
        ValueError: a wrong shape or device, a negative ``num_tokens``, an out-of-range or repeated
            index in ``selected``.

    Source: Nemhauser, Wolsey and Fisher (1978) for greedy maximization of submodular functions;
    SCOPE (arXiv 2510.24214) and MMTok (arXiv 2508.18264) for its use on visual tokens.

    >>> import torch
    >>> from clasp_kernels import cover_tokens
    >>> features = torch.tensor([[[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [-1.0, 0.0]]])
    >>> cover_tokens(features, torch.tensor([[0]]), 4)
    tensor([[ 2,  3,  1, -1]])
    """
    arguments = Arguments("cover_tokens")
    arguments.tensor("features", features, "B N D", FLOATS)
    arguments.tensor("selected", selected, "B P", INDEX)
    usable = arguments.weights("weights", weights, "B N")
    preferred = arguments.weights("preference", preference, "B N")
    arguments.mask("valid", valid, "B N")
    num_picks, counts = arguments.count_per_image("num_tokens", num_tokens)
    arguments.indices_in_range(
        "selected", selected, -1, features.shape[1], "a token, or -1 for none"
    )
    arguments.no_repeats("selected", selected)
    op = backends.overload("cover_tokens", features.device)
    return op(features, selected, num_picks, counts, usable, preferred, valid)


def _fake(
    features: Tensor,
    selected: Tensor,
    num_picks: int,
    counts: Tensor | None,
    weights: Tensor | None,
    preference: Tensor | None,
    valid: Tensor | None,
) -> Tensor:
    return features.new_empty((features.shape[0], num_picks), dtype=torch.int64)


define_op(
    OpSpec(
        name="cover_tokens",
        schema="(Tensor features, Tensor selected, SymInt num_picks, Tensor? counts, "
        "Tensor? weights, Tensor? preference, Tensor? valid) -> Tensor",
        reference=reference.cover_tokens,
        fake=_fake,
        cpu=True,
        triton="clasp_kernels.triton.cover_tokens:cover_tokens",
        ordered_by_barriers=True,
    )
)
