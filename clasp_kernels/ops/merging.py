"""Fold the tokens that were dropped into the kept ones they resemble."""

from __future__ import annotations

from torch import Tensor

from .. import backends, reference
from ..backends.table import OpSpec
from ._checks import FLOATS, INDEX, Arguments
from ._library import define_op


def merge_tokens(
    tokens: Tensor, features: Tensor, indices: Tensor, *, valid: Tensor | None = None
) -> Tensor:
    """Every valid token that was not kept joins the kept token it is most similar to.

    Each kept token becomes the mean of its group, itself included, accumulated in float32.

    Args:
        tokens: [B, N, D], what is averaged; float32, bfloat16 or float16.
        features: [B, N, F], what is compared, by cosine similarity; float32, bfloat16 or float16.
        indices: [B, R] int64, the kept tokens, each at most once; -1 where unused.
        valid: [B, N] bool; tokens where it is False join no group. All by default. A token that
            is kept is in its own group either way.

    Returns:
        [B, R, D] contiguous, in the dtype of ``tokens`` and the order of ``indices``; a row of
        zeros for -1. Deterministic.

    Ties go to the kept token with the lower index. A zero vector has similarity 0 to everything;
    any other similarity that is not finite attracts least.

    Norms come from squares summed in float32, exact to rounding while a vector's largest element
    is between about 1e-18 (bfloat16: 1e-16, as processors that multiply it take subnormal
    products for zero) and 1e18 in magnitude. Where the sum overflows, a similarity is 0, or
    not finite if the dot product overflows as well; where it underflows to 0, the vector counts
    as a zero vector.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape or device, an index out of range or repeated.

    >>> import torch
    >>> from clasp_kernels import merge_tokens
    >>> tokens = torch.tensor([[[1.0, 0.0], [3.0, 0.0], [0.0, 5.0]]])
    >>> merge_tokens(tokens, tokens, torch.tensor([[0, 2]]))
    tensor([[[2., 0.],
             [0., 5.]]])
    """
    arguments = Arguments("merge_tokens")
    arguments.tensor("tokens", tokens, "B N D", FLOATS)
    arguments.tensor("features", features, "B N F", FLOATS)
    arguments.tensor("indices", indices, "B R", INDEX)
    arguments.mask("valid", valid, "B N")
    arguments.indices_in_range("indices", indices, -1, tokens.shape[1], "a token, or -1 for none")
    arguments.no_repeats("indices", indices)
    op = backends.overload("merge_tokens", tokens.device)
    return op(tokens, features, indices, valid)


def _fake(tokens: Tensor, features: Tensor, indices: Tensor, valid: Tensor | None) -> Tensor:
    return tokens.new_empty((*indices.shape, tokens.shape[2]))


define_op(
    OpSpec(
        name="merge_tokens",
        schema="(Tensor tokens, Tensor features, Tensor indices, Tensor? valid) -> Tensor",
        reference=reference.merge_tokens,
        fake=_fake,
        cpu=True,
        triton="clasp_kernels.triton.merge_tokens:merge_tokens",
    )
)
