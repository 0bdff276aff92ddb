"""Selects tokens and gathers or merges them in one call."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import backends
from ._checks import FLOATS, Arguments
from .selection import Selection, check_selection


def prune_tokens(
    tokens: Tensor,
    features: Tensor,
    salience: Tensor,
    budget: int | Sequence[int] | Tensor,
    pivot_counts: int | Sequence[int] | Tensor,
    *,
    valid: Tensor | None = None,
    merge: bool = False,
) -> tuple[Tensor, Selection]:
    """:func:`select_tokens`, then :func:`gather_tokens`, or :func:`merge_tokens` if ``merge``.

    Args:
        tokens: [B, N, D], the tokens to prune; float32, bfloat16 or float16.
        features: [B, N, F], from which coverage is computed; float32, bfloat16 or float16.
        salience: [B, N]; float32, bfloat16 or float16.
        budget: tokens kept per image: an int, or B ints (a list, or an int64 tensor on the CPU).
        pivot_counts: how many of them are pivots, clamped to 1..budget: an int, or B ints (a
            list, or an int64 tensor on any device).
        valid: [B, N] bool; tokens where it is False are dropped. All by default.
        merge: average the dropped tokens into the kept ones instead of discarding them.

    Returns:
        The kept tokens [B, R, D], with rows of zeros if an image keeps fewer than R, and the
        :class:`Selection` that they come from.

    Ties and errors are those of the ops it combines.

    Source: CLASP, arXiv 2604.12767.

    >>> import torch
    >>> from clasp_kernels import prune_tokens
    >>> tokens = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]])
    >>> salience = torch.tensor([[0.2, 0.9, 0.8, 0.1]])
    >>> kept, selection = prune_tokens(tokens, tokens, salience, budget=2, pivot_counts=2)
    >>> kept
    tensor([[[2., 0.],
             [0., 1.]]])
    >>> selection.indices
    tensor([[1, 2]])
    """
    arguments = Arguments("prune_tokens")
    arguments.tensor("tokens", tokens, "B N D", FLOATS)
    arguments.tensor("features", features, "B N F", FLOATS)
    merge = arguments.flag("merge", merge)
    checked = check_selection(arguments, features, salience, budget, pivot_counts, valid)
    selection = Selection(*backends.overload("select_tokens", features.device)(*checked))
    # The public functions would check these indices again.
    if merge:
        op = backends.overload("merge_tokens", tokens.device)
        return op(tokens, features, selection.indices, valid), selection
    op = backends.overload("gather_tokens", tokens.device)
    return op(tokens, selection.indices), selection
