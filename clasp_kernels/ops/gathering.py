"""Copies the kept tokens into a tensor of their own."""

from __future__ import annotations

from torch import Tensor

from .. import backends, reference
from ..backends.table import OpSpec
from ._checks import FLOATS, INDEX, Arguments
from ._library import define_op


def gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """Copies the indexed tokens of each image.

    Args:
        tokens: [B, N, D]; float32, bfloat16 or float16.
        indices: [B, R] int64 in -1..N-1, in any order, repeats allowed.

    Returns:
        [B, R, D] contiguous, in the dtype of ``tokens``; index -1 gives a row of zeros.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape or device, or an index out of range.

    >>> import torch
    >>> from clasp_kernels import gather_tokens
    >>> tokens = torch.arange(6.0).view(1, 3, 2)
    >>> gather_tokens(tokens, torch.tensor([[2, 0, -1]]))
    tensor([[[4., 5.],
             [0., 1.],
             [0., 0.]]])
    """
    arguments = Arguments("gather_tokens")
    arguments.tensor("tokens", tokens, "B N D", FLOATS)
    arguments.tensor("indices", indices, "B R", INDEX)
    arguments.indices_in_range("indices", indices, -1, tokens.shape[1], "a token, or -1 for none")
    op = backends.overload("gather_tokens", tokens.device)
    return op(tokens, indices)


def _fake(tokens: Tensor, indices: Tensor) -> Tensor:
    return tokens.new_empty((*indices.shape, tokens.shape[2]))


define_op(
    OpSpec(
        name="gather_tokens",
        schema="(Tensor tokens, Tensor indices) -> Tensor",
        reference=reference.gather_tokens,
        fake=_fake,
        cpu=True,
        triton="clasp_kernels.triton.gather_tokens:gather_tokens",
    )
)
