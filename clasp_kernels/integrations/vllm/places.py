"""Positions of pruned prompts in vLLM's Qwen2.5-VL.

A position is (time, row, column). The tokens of an image of h x w visual tokens share one time,
that of the text before the image plus 1. Their rows and columns count from there, and the text
after the image goes on max(h, w) later. So only the rows and columns of kept tokens depend on the
selection. They travel with the embeddings, in ``CHANNELS`` channels at the end of each, and are
added to the time once vLLM has encoded the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

# bfloat16 holds whole numbers up to 256, so each coordinate has two channels.
_BASE = 256
#: The channels that ``with_places`` appends.
CHANNELS = 4


@dataclass(frozen=True)
class ImageSpan:
    """The placeholders of an image in a pruned prompt."""

    start: int
    """The column of the first."""
    length: int
    """The number of kept tokens."""
    side: int
    """The larger of the rows and columns of visual tokens in the whole image."""


def prompt_positions(columns: int, images: Sequence[ImageSpan]) -> tuple[torch.Tensor, int]:
    """Return the positions of a prompt [3, columns] int64, and that of the first generated token
    minus ``columns``. Rows and columns of kept tokens are still those of the image's first token.

    ``images`` are in prompt order.

    >>> positions, delta = prompt_positions(6, [ImageSpan(start=1, length=2, side=5)])
    >>> positions[0].tolist(), delta
    ([0, 1, 1, 6, 7, 8], 3)
    """
    positions = torch.empty(3, columns, dtype=torch.int64)
    column = position = 0
    for image in images:
        text = image.start - column
        positions[:, column : image.start] = torch.arange(position, position + text)
        position += text
        column = image.start + image.length
        positions[:, image.start : column] = position
        position += image.side
    text = columns - column
    positions[:, column:] = torch.arange(position, position + text)
    return positions, position + text - columns


def with_places(features: torch.Tensor, indices: torch.Tensor, width: int) -> torch.Tensor:
    """Append where tokens lie in their image.

    Args:
        features: [kept, text width].
        indices: [kept] int64, among the image's visual tokens, row by row.
        width: visual tokens in a row of the image.

    Returns:
        [kept, text width + CHANNELS], of the dtype of ``features``.
    """
    places = torch.stack([indices // width, indices % width], dim=1)
    digits = torch.stack([places // _BASE, places % _BASE], dim=2).flatten(1)
    return torch.cat([features, digits.to(features)], dim=1)


def without_places(embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Take apart what :func:`with_places` returned: the features [kept, text width], and the rows
    and columns [2, kept] int64."""
    digits = embeddings[:, -CHANNELS:].long().unflatten(1, (2, 2))
    return embeddings[:, :-CHANNELS], (digits[..., 0] * _BASE + digits[..., 1]).T


def placed(
    positions: torch.Tensor, placeholders: torch.Tensor, computed: int, places: torch.Tensor
) -> torch.Tensor:
    """Return the positions with the rows and columns of kept tokens. Setting them twice changes
    nothing.

    Args:
        positions: [3, columns] int64, of :func:`prompt_positions`.
        placeholders: [columns] bool, true where a token of an image is.
        computed: columns that have keys and values already.
        places: [2, tokens] int64, rows and columns of the next tokens after those.
    """
    positions = positions.clone()
    following = placeholders[computed:].nonzero()[:, 0][: places.shape[1]] + computed
    positions[1:, following] = positions[0, following] + places
    return positions


def delta_of(positions: torch.Tensor) -> int:
    """Return the position of the first generated token minus ``columns``, of the positions
    [3, columns] of a prompt that ends with text."""
    return int(positions[0, -1]) + 1 - positions.shape[1]
