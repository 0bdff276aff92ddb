"""The selection that a rule which averages tokens returns, and the averaging."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class PooledSelection(NamedTuple):
    """A :class:`~clasp_kernels.Selection` whose kept tokens become the means of groups.

    A kept token gives the mean its place in the prompt and its position id.
    """

    indices: Tensor
    """[B, R] int64, ascending; -1 where an image keeps fewer than R."""
    is_pivot: Tensor
    """[B, R] bool, aligned with ``indices``; False where unused."""
    counts: Tensor
    """[B] int64, the number of tokens that each image keeps."""
    groups: Tensor
    """[B, N] int64: the place in ``indices`` of the kept token that each token is averaged into; -1
    if there is none. A kept token belongs to its own group."""


def pool_tokens(tokens: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """Return the mean of each group of tokens.

    The mean is accumulated in float32, or in float64 for float64. The order is that of the tokens,
    so the result is the same from run to run and does not depend on the batch. NaN and Inf stay in
    their group. This is eager PyTorch: :func:`~clasp_kernels.merge_tokens` chooses its groups by
    similarity, so no op of this package fits.

    Args:
        tokens: [B, N, D]; float32, bfloat16, float16 or float64.
        groups: [B, N] int64: the group of each token, below ``num_groups``; -1 for none.
        num_groups: R.

    Returns:
        [B, R, D] in the dtype of ``tokens``; 0 for a group without tokens.

    >>> tokens = torch.tensor([[[1.0], [5.0], [3.0], [9.0]]])
    >>> pool_tokens(tokens, torch.tensor([[1, 0, 1, -1]]), 2)[0, :, 0]
    tensor([5., 2.])
    """
    num_images, num_tokens, width = tokens.shape
    total = num_images * num_groups
    if total == 0 or num_tokens == 0:
        return tokens.new_zeros(num_images, num_groups, width)
    wide = torch.promote_types(tokens.dtype, torch.float32)
    first = torch.arange(num_images, device=groups.device)[:, None] * num_groups
    # The groups of all images in a row, and last of all a group for tokens that are in none.
    group, order = torch.where(groups < 0, total, groups + first).flatten().sort(stable=True)
    starts = torch.searchsorted(group, torch.arange(total + 1, device=group.device))
    rows = tokens.to(wide).flatten(0, 1)
    means = functional.embedding_bag(order, rows, starts, mode="mean")
    return means[:total].unflatten(0, (num_images, num_groups)).to(tokens.dtype)
