"""Check what a selection rule returned, which may be a user's own."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from clasp_kernels import Selection
from clasp_kernels.rules import PooledSelection, Rule


def check_selection(
    rule: Rule,
    selection: object,
    counts: Sequence[int],
    num_tokens: int,
    valid: torch.Tensor | None,
) -> None:
    """Check what a rule returned for images of N tokens, or of those ``valid`` [images, N].

    On a GPU only shapes and dtypes are checked, because reading values would synchronise.

    Raises:
        TypeError, ValueError: ``selection`` is no Selection of ``counts`` tokens, or no
            PooledSelection although the rule pools.
    """
    name, kind = rule.name, PooledSelection if rule.pools else Selection
    if not isinstance(selection, kind):
        raise TypeError(
            f"rule {name!r} must return a {kind.__name__}, got {type(selection).__name__}"
        )
    shape = (len(counts), max(counts))
    tensors = [
        ("indices", selection.indices, shape, torch.int64),
        ("is_pivot", selection.is_pivot, shape, torch.bool),
    ]
    if isinstance(selection, PooledSelection):
        tensors.append(("groups", selection.groups, (len(counts), num_tokens), torch.int64))
    for what, values, wanted, dtype in tensors:
        if tuple(values.shape) != wanted or values.dtype != dtype:
            raise ValueError(
                f"rule {name!r} must return {what} of shape {list(wanted)} and {dtype}, got "
                f"{list(values.shape)} and {values.dtype}"
            )
    if selection.indices.device.type != "cpu":
        return
    if valid is None:
        valid = torch.ones(len(counts), num_tokens, dtype=torch.bool)
    for row, is_valid in zip(selection.indices, valid, strict=True):
        tokens = row[row >= 0]
        outside = tokens[tokens >= len(is_valid)].tolist() or tokens[~is_valid[tokens]].tolist()
        if outside:
            raise ValueError(
                f"rule {name!r} must keep valid tokens of an image, of which it has "
                f"{int(is_valid.sum())}, got {outside}"
            )
    kept = [int(row.ge(0).sum()) for row in selection.indices]
    if kept != list(counts):
        raise ValueError(f"rule {name!r} must keep {list(counts)} tokens of the images, got {kept}")
    for row, count in zip(selection.indices, counts, strict=True):
        if not bool((row[: count - 1] < row[1:count]).all()) or bool((row[:count] < 0).any()):
            raise ValueError(
                f"rule {name!r} must return ascending indices, padded with -1 at the end, got "
                f"{row.tolist()}"
            )
    if isinstance(selection, PooledSelection):
        _check_groups(name, selection, counts, valid)


def _check_groups(
    rule: str, selection: PooledSelection, counts: Sequence[int], valid: torch.Tensor
) -> None:
    """
    Raises:
        ValueError: a token is in a group that does not exist, padding is in one, or a kept token is
            not in its own.
    """
    rows = zip(selection.groups, selection.indices, counts, valid, strict=True)
    for groups, indices, count, is_valid in rows:
        if bool((groups >= count).any()) or bool((groups < -1).any()):
            raise ValueError(
                f"rule {rule!r} must return groups from -1, for none, to {count - 1}, the last of "
                f"the kept tokens, got {groups.unique().tolist()}"
            )
        padding = (groups.ge(0) & ~is_valid).nonzero()[:, 0].tolist()
        if padding:
            raise ValueError(f"rule {rule!r} must put only valid tokens in groups, got {padding}")
        own = groups[indices[:count]]
        if own.tolist() != list(range(count)):
            raise ValueError(
                f"rule {rule!r} must put each kept token in the group of its place, "
                f"0..{count - 1} in turn, got {own.tolist()}"
            )
