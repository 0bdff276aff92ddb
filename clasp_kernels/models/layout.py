"""Which columns of a batch of prompts remain once visual tokens are dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class PrunedLayout:
    """Where each remaining column came from. Rows are prompts.

    Rows that keep fewer columns than the longest are padded on the left, so that the last column
    stays the last. Built on the device, from lengths known on the host: nothing here waits.
    """

    source: torch.Tensor
    """[prompts, pruned length] int64: the column it was; 0 where ``is_padding``."""
    is_padding: torch.Tensor
    """[prompts, pruned length] bool."""
    is_visual: torch.Tensor
    """[prompts, pruned length] bool: a visual token that was kept."""
    dropped: torch.Tensor
    """[prompts, pruned length] int64: columns dropped to the left of it."""
    lengths: tuple[int, ...]
    """Columns kept of each prompt, padding left out."""

    @property
    def has_padding(self) -> bool:
        return len(set(self.lengths)) > 1

    def repeat(self, repeats: int) -> PrunedLayout:
        """Each row ``repeats`` times, as beams and returned sequences are laid out."""
        if repeats == 1:
            return self
        return PrunedLayout(
            source=self.source.repeat_interleave(repeats, dim=0),
            is_padding=self.is_padding.repeat_interleave(repeats, dim=0),
            is_visual=self.is_visual.repeat_interleave(repeats, dim=0),
            dropped=self.dropped.repeat_interleave(repeats, dim=0),
            lengths=tuple(length for length in self.lengths for _ in range(repeats)),
        )

    def take(self, columns: torch.Tensor, padding: int = 0) -> torch.Tensor:
        """The remaining columns of [prompts, columns], ``padding`` where there was none."""
        return columns.gather(1, self.source).masked_fill(self.is_padding, padding)


def prune_columns(
    is_placeholder: torch.Tensor,
    indices: torch.Tensor,
    tokens_per_image: int,
    images_per_prompt: Sequence[int],
    counts: Sequence[int],
) -> PrunedLayout:
    """Lay out prompts of which each image keeps the visual tokens ``indices`` names.

    ``is_placeholder`` [prompts, columns] bool marks ``tokens_per_image`` columns per image;
    ``indices`` [images, R] are among those, -1 for none, ``counts`` of them per image.
    """
    prompts, columns = is_placeholder.shape
    device = is_placeholder.device
    images = len(counts)

    # -1 lands in a last slot that is cut off again.
    kept = torch.zeros(images, tokens_per_image + 1, dtype=torch.bool, device=device)
    slots = torch.where(indices < 0, tokens_per_image, indices)
    kept.scatter_(1, slots, torch.ones_like(slots, dtype=torch.bool))
    # Row-major order over placeholders is image after image.
    keep = (~is_placeholder).masked_scatter(is_placeholder, kept[:, :tokens_per_image].flatten())

    lengths, image = [], 0
    for in_prompt in images_per_prompt:
        kept_tokens = sum(counts[image : image + in_prompt])
        lengths.append(columns - in_prompt * tokens_per_image + kept_tokens)
        image += in_prompt
    width = max(lengths)

    padding = width - torch.tensor(lengths, device=device).unsqueeze(1)
    rank = keep.cumsum(1) - 1
    target = torch.where(keep, rank + padding, width)  # the last slot takes what is dropped
    source = torch.zeros(prompts, width + 1, dtype=torch.int64, device=device)
    source.scatter_(1, target, torch.arange(columns, device=device).expand(prompts, -1))
    source = source[:, :width]

    position = torch.arange(width, device=device)
    is_padding = position < padding
    return PrunedLayout(
        source=source,
        is_padding=is_padding,
        is_visual=is_placeholder.gather(1, source) & ~is_padding,
        dropped=(source - (position - padding)).masked_fill(is_padding, 0),
        lengths=tuple(lengths),
    )
