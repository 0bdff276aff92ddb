"""Selects the most salient tokens of each image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import backends, reference
from ..backends.table import OpSpec
from ._checks import FLOATS, Arguments
from ._library import define_op


def select_pivots(
    salience: Tensor, k: int | Sequence[int] | Tensor, *, valid: Tensor | None = None
) -> Tensor:
    """The k most salient valid tokens of each image, best first.

    Args:
        salience: [B, N]; float32, bfloat16 or float16.
        k: how many per image: an int, or B ints (a list, or an int64 tensor on the CPU).
        valid: [B, N] bool; tokens where it is False are never chosen. All by default.

    Returns:
        [B, K] int64, where K is the largest k. Rows with a smaller k or fewer valid tokens end in
        -1. Ties go to the lower index. NaN ranks last, after -inf.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape or device, or a negative k.

    Source: the pivot stage of CLASP, arXiv 2604.12767.

    >>> import torch
    >>> from clasp_kernels import select_pivots
    >>> salience = torch.tensor([[0.1, 0.9, float("nan"), 0.9], [0.4, 0.3, 0.2, 0.1]])
    >>> select_pivots(salience, [4, 2])
    tensor([[ 1,  3,  0,  2],
            [ 0,  1, -1, -1]])
    """
    arguments = Arguments("select_pivots")
    arguments.tensor("salience", salience, "B N", FLOATS)
    arguments.mask("valid", valid, "B N")
    num_pivots, per_image = arguments.count_per_image("k", k)
    op = backends.overload("select_pivots", salience.device)
    return op(salience, num_pivots, per_image, valid)


def _fake(salience: Tensor, num_pivots: int, k: Tensor | None, valid: Tensor | None) -> Tensor:
    return salience.new_empty((salience.shape[0], num_pivots), dtype=torch.int64)


define_op(
    OpSpec(
        name="select_pivots",
        schema="(Tensor salience, SymInt num_pivots, Tensor? k, Tensor? valid) -> Tensor",
        reference=reference.select_pivots,
        fake=_fake,
        cpu=True,
        triton="clasp_kernels.triton.select_pivots:select_pivots",
        ordered_by_barriers=True,
    )
)
