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
    # Lists, because one call of torch takes about as long as checking an image with them.
    rows = selection.indices.tolist()
    usable = [[True] * num_tokens] * len(counts) if valid is None else valid.tolist()
    kept = [[token for token in row if token >= 0] for row in rows]
    for tokens, is_valid in zip(kept, usable, strict=True):
        outside = [token for token in tokens if token >= num_tokens]
        outside = outside or [token for token in tokens if not is_valid[token]]
        if outside:
            raise ValueError(
                f"rule {name!r} must keep valid tokens of an image, of which it has "
                f"{sum(is_valid)}, got {outside}"
            )
    num_kept = [len(tokens) for tokens in kept]
    if num_kept != list(counts):
        raise ValueError(
            f"rule {name!r} must keep {list(counts)} tokens of the images, got {num_kept}"
        )
    for row, tokens in zip(rows, kept, strict=True):
        if row[: len(tokens)] != sorted(set(tokens)):
            raise ValueError(
                f"rule {name!r} must return ascending indices, padded with -1 at the end, got {row}"
            )
    if isinstance(selection, PooledSelection):
        for groups, tokens, is_valid in zip(selection.groups.tolist(), kept, usable, strict=True):
            _check_groups(name, groups, tokens, is_valid)


def _check_groups(
    rule: str, groups: Sequence[int], tokens: Sequence[int], is_valid: Sequence[bool]
) -> None:
    """Check the groups of one image, which keeps ``tokens``.

    Raises:
        ValueError: a token is in a group that does not exist, padding is in one, or a kept token is
            not in its own.
    """
    count = len(tokens)
    if max(groups, default=-1) >= count or min(groups, default=-1) < -1:
        raise ValueError(
            f"rule {rule!r} must return groups from -1, for none, to {count - 1}, the last of the "
            f"kept tokens, got {sorted(set(groups))}"
        )
    padding = [token for token, group in enumerate(groups) if group >= 0 and not is_valid[token]]
    if padding:
        raise ValueError(f"rule {rule!r} must put only valid tokens in groups, got {padding}")
    own = [groups[token] for token in tokens]
    if own != list(range(count)):
        raise ValueError(
            f"rule {rule!r} must put each kept token in the group of its place, "
            f"0..{count - 1} in turn, got {own}"
        )
