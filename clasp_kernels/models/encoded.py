"""Images as the language model gets them, without running it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from clasp_kernels.models.adapter import VisualGroup
from clasp_kernels.models.selection import KeptTokens


@dataclass(frozen=True)
class EncodedImage:
    """The visual tokens that remain of one image or video, ready for the language model."""

    features: torch.Tensor
    """[columns, text width]: the embedding of each remaining placeholder. There is one for each of
    ``indices``, and one for each separator if the family has separators between tokens."""
    indices: torch.Tensor
    """[kept] int64: the kept tokens by their index in the image, ascending."""
    is_pivot: torch.Tensor | None
    """[kept] bool, aligned with ``indices``: True for pivots, False for completion tokens. None if
    nothing was dropped, since no token was chosen then."""
    tokens_before: int
    """Visual tokens of the image before pruning."""
    prompt: int
    """The number of the image's prompt in the batch."""
    category: str
    """The category of the image's prompt."""


def split_by_image(
    groups: Sequence[VisualGroup], kept: KeptTokens, prompts: Sequence[int], names: Sequence[str]
) -> list[EncodedImage]:
    """Split ``kept`` by image. ``prompts`` and ``names`` have each image's prompt and category."""
    separators: list[tuple[int, ...]] = []
    before: list[int] = []
    for group in groups:
        separators += group.separators or [()] * len(group.counts)
        before += group.counts
    found = []
    for image, count in enumerate(kept.counts):
        indices = kept.indices[image, :count]
        features = kept.features[image, :count]
        if separators[image]:
            assert kept.separator is not None
            features = _between(features, indices, separators[image], kept.separator)
        found.append(
            EncodedImage(
                features=features,
                indices=indices,
                is_pivot=None if kept.is_pivot is None else kept.is_pivot[image, :count],
                tokens_before=before[image],
                prompt=prompts[image],
                category=names[image],
            )
        )
    return found


def _between(
    features: torch.Tensor, indices: torch.Tensor, places: Sequence[int], separator: torch.Tensor
) -> torch.Tensor:
    """Put a separator back at each of ``places``, which count placeholders of the whole image."""
    # The placeholder of a token follows as many separators as have a lower place.
    device = features.device
    sorted_places = torch.tensor(sorted(places), device=device)
    tokens_before = sorted_places - torch.arange(len(places), device=device)
    after = torch.searchsorted(indices.contiguous(), tokens_before)
    rows = torch.cat([torch.arange(len(features), device=device) * 2 + 1, after * 2])
    all_features = torch.cat([features, separator.to(features).expand(len(places), -1)])
    return all_features[torch.argsort(rows, stable=True)]
