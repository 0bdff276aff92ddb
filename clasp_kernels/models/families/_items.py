"""Batches of images, videos and tiles with different numbers of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch


def padded(items: Sequence[torch.Tensor]) -> torch.Tensor:
    """Stack items [n, ...] of different lengths to [items, N, ...], zero-padded at the end."""
    if len({len(item) for item in items}) == 1:
        return torch.stack(list(items))
    return torch.nn.utils.rnn.pad_sequence(list(items), batch_first=True)


def placeholder_runs(input_ids: torch.Tensor, token_id: int) -> list[list[int]]:
    """Return the lengths of the runs of ``token_id`` in each prompt. Synchronises.

    >>> placeholder_runs(torch.tensor([[7, 9, 9, 7, 9], [7, 7, 7, 7, 7]]), 9)
    [[2, 1], []]
    """
    return [
        [len(list(run)) for is_token, run in groupby(row) if is_token]
        for row in (input_ids == token_id).tolist()
    ]
