"""Dual-stage selection: pivots by salience, then completion by coverage, as one op."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from .. import backends, reference
from ..backends.table import OpSpec
from ._checks import FLOATS, Arguments
from ._library import define_op


class Selection(NamedTuple):
    """The kept tokens of each image, in image order."""

    indices: Tensor
    """[B, R] int64, ascending; -1 where an image keeps fewer than R."""
    is_pivot: Tensor
    """[B, R] bool, aligned with ``indices``; False where unused."""
    counts: Tensor
    """[B] int64, the number of tokens that each image keeps."""


COMPLETIONS = ("farthest", "cover")

# Pickles refer to the public module, so that they do not depend on the package's file layout.
Selection.__module__ = "clasp_kernels"
# Lets torch.export.save write a program that returns a Selection, and lets torch.load read one
# without being told to trust the file.
pytree._register_namedtuple(Selection, serialized_type_name="clasp_kernels.Selection")
torch.serialization.add_safe_globals([Selection])


def select_tokens(
    features: Tensor,
    salience: Tensor,
    budget: int | Sequence[int] | Tensor,
    pivot_counts: int | Sequence[int] | Tensor,
    *,
    weights: Tensor | None = None,
    completion: str = "farthest",
    valid: Tensor | None = None,
) -> Selection:
    """Keeps ``budget`` tokens per image: the most salient ones, then those they cover worst.

    Equivalent to :func:`select_pivots` followed by :func:`complete_tokens` and a sort by index,
    which keeps the tokens in image order. With ``completion="cover"``, :func:`cover_tokens` is the
    second stage instead. Nothing is read back to the host. The output shapes depend only on
    ``budget``.

    Args:
        features: [B, N, D]; float32, bfloat16 or float16.
        salience: [B, N]; float32, bfloat16 or float16.
        budget: tokens kept per image: an int, or B ints (a list, or an int64 tensor on the CPU).
        pivot_counts: how many of them are pivots, clamped to 1..budget: an int, or B ints (a
            list, or an int64 tensor on any device).
        weights: [B, N] of the second stage, not negative; float32, bfloat16 or float16. All equal
            by default.
        completion: the second stage: "farthest" for :func:`complete_tokens`, or "cover".
        valid: [B, N] bool; tokens where it is False are never kept. All by default.

    Returns:
        :class:`Selection` of ``indices`` [B, R], ``is_pivot`` [B, R] and ``counts`` [B], where R is
        the largest budget. ``counts`` is below the budget only if fewer tokens are valid. Ties,
        non-finite values, and features whose squares overflow or underflow float32 (largest element
        outside about 1e-18..1e18) are treated as in the two ops.

    Raises:
        TypeError: a wrong type or dtype; a budget that is not on the host.
        ValueError: a wrong shape or device, a negative budget, or an unknown ``completion``.

    Source: the dual-stage pruning of CLASP, arXiv 2604.12767.

    >>> import torch
    >>> from clasp_kernels import select_tokens
    >>> features = torch.tensor([[[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [-1.0, 0.0]]])
    >>> salience = torch.tensor([[0.2, 0.9, 0.8, 0.1]])
    >>> select_tokens(features, salience, budget=3, pivot_counts=2)
    Selection(indices=tensor([[1, 2, 3]]), is_pivot=tensor([[ True,  True, False]]),
        counts=tensor([3]))
    """
    arguments = Arguments("select_tokens")
    arguments.tensor("features", features, "B N D", FLOATS)
    usable = arguments.weights("weights", weights, "B N")
    arguments.choice("completion", completion, COMPLETIONS)
    checked = check_selection(arguments, features, salience, budget, pivot_counts, valid)
    if completion == "cover":
        return _select_covering(*checked, usable)
    op = backends.overload("select_tokens", features.device)
    return Selection(*op(*checked, usable))


def check_selection(
    arguments: Arguments,
    features: Tensor,
    salience: Tensor,
    budget: int | Sequence[int] | Tensor,
    pivot_counts: int | Sequence[int] | Tensor,
    valid: Tensor | None,
) -> tuple[Tensor, Tensor, int, Tensor | None, int, Tensor | None, Tensor | None]:
    """Checks the arguments and returns those of the torch op. Errors name ``arguments.op``."""
    arguments.tensor("salience", salience, "B N", FLOATS)
    arguments.mask("valid", valid, "B N")
    num_kept, budgets = arguments.count_per_image("budget", budget)
    num_pivots, pivots = arguments.share_per_image("pivot_counts", pivot_counts, num_kept)
    return features, salience, num_kept, budgets, num_pivots, pivots, valid


def _select_covering(
    features: Tensor,
    salience: Tensor,
    num_kept: int,
    budget: Tensor | None,
    num_pivots: int,
    pivot_counts: Tensor | None,
    valid: Tensor | None,
    weights: Tensor | None,
) -> Selection:
    """The two stages and the sort as ops of their own: the sort takes little next to covering."""
    batch, num_tokens = salience.shape
    device = features.device
    if budget is None:
        budget = torch.full((batch,), num_kept, dtype=torch.int64, device=device)
    # At least one token of a budget is a pivot.
    width = min(max(num_pivots, 1), num_kept)
    shares = budget.clamp(max=width)
    if pivot_counts is not None:
        shares = pivot_counts.clamp(1, max(width, 1)).minimum(shares)
    pivots = backends.overload("select_pivots", device)(salience, width, shares, valid)
    found = (pivots >= 0).sum(1)
    cover = backends.overload("cover_tokens", device)
    picks = cover(features, pivots, num_kept, budget - found, weights, None, valid)

    kept = torch.cat([pivots, picks], dim=1)
    order = kept.masked_fill(kept < 0, num_tokens).argsort(dim=1, stable=True)[:, :num_kept]
    indices = kept.gather(1, order)
    is_pivot = (order < width) & (indices >= 0)
    return Selection(indices, is_pivot, (indices >= 0).sum(1))


def _fake(
    features: Tensor,
    salience: Tensor,
    num_kept: int,
    budget: Tensor | None,
    num_pivots: int,
    pivot_counts: Tensor | None,
    valid: Tensor | None,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    batch = features.shape[0]
    return (
        features.new_empty((batch, num_kept), dtype=torch.int64),
        features.new_empty((batch, num_kept), dtype=torch.bool),
        features.new_empty((batch,), dtype=torch.int64),
    )


define_op(
    OpSpec(
        name="select_tokens",
        schema="(Tensor features, Tensor salience, SymInt num_kept, Tensor? budget, "
        "SymInt num_pivots, Tensor? pivot_counts, Tensor? valid, Tensor? weights=None) "
        "-> (Tensor, Tensor, Tensor)",
        reference=reference.select_tokens,
        fake=_fake,
        cpu=True,
        cuda=True,
        triton="clasp_kernels.triton.select_tokens:select_tokens",
        ordered_by_barriers=True,
    )
)
