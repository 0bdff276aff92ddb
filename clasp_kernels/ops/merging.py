"""Merges each dropped token into the kept token it is most similar to."""

from __future__ import annotations

from torch import Tensor

from .. import backends, reference
from ..backends.table import OpSpec
from ._checks import FLOATS, INDEX, Arguments
from ._library import define_op


def merge_tokens(
    tokens: Tensor, features: Tensor, indices: Tensor, *, valid: Tensor | None = None
) -> Tensor:
    """Merges each valid token that is not kept into its most similar kept token.

    Each kept token becomes the mean of its group, including itself, accumulated in float32.

    Args:
        tokens: [B, N, D], the tokens that are averaged; float32, bfloat16 or float16.
        features: [B, N, F], compared by cosine similarity; float32, bfloat16 or float16.
        indices: [B, R] int64, the kept tokens, each at most once; -1 where unused.
        valid: [B, N] bool; tokens where it is False join no group. All by default. A kept token
            is in its own group in any case.

    Returns:
        [B, R, D] contiguous, in the dtype of ``tokens`` and the order of ``indices``; a row of
        zeros for -1. Deterministic.

    Ties go to the kept token with the lower index. A zero vector has similarity 0 to everything.
    Any other non-finite similarity counts as smaller than every finite one.

    Norms come from squares summed in float32. They are exact to rounding while the largest element
    of a vector is between about 1e-18 and 1e18 in magnitude (from 1e-16 for bfloat16, because CPUs
    with bfloat16 products treat subnormal products as zero). If the sum overflows, the similarity
    is 0, or non-finite if the dot product overflows too. If the sum underflows to 0, the vector
    counts as a zero vector.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape or device, an out-of-range or repeated index.

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
