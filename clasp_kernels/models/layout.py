"""Which columns of a batch of prompts remain once visual tokens are dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from clasp_kernels.upload import upload


@dataclass(frozen=True)
class PromptImages:
    """Where a batch of prompts has its images. The host knows all but the placeholders."""

    is_placeholder: torch.Tensor
    """[prompts, columns] bool: ``tokens_per_image`` in a row for every image."""
    tokens_per_image: int
    per_prompt: tuple[int, ...]
    """How many images each prompt has."""
    spans: tuple[tuple[int, int], ...]
    """Each prompt's columns between its padding: start and stop."""
    last_images: tuple[int, ...]
    """How many of each prompt's columns there are up to its last visual token; 0 without one."""

    @property
    def text_tail(self) -> int:
        """How many of the last columns hold no image, in any prompt."""
        return self.is_placeholder.shape[1] - max(self.last_images)

    @property
    def image_rows(self) -> list[int]:
        """The prompt of each image."""
        return [row for row, images in enumerate(self.per_prompt) for _ in range(images)]

    def pruned_lengths(self, counts: Sequence[int]) -> list[int]:
        """The columns of each prompt without padding once its images keep ``counts`` tokens."""
        kept = [0] * len(self.per_prompt)
        for row, count in zip(self.image_rows, counts, strict=True):
            kept[row] += count - self.tokens_per_image
        return [
            stop - start + change for (start, stop), change in zip(self.spans, kept, strict=True)
        ]

    def pruned_width(self, counts: Sequence[int], *, keep_right: bool) -> int:
        """The columns of the widest row, with the padding on the right that is to be kept."""
        columns = self.is_placeholder.shape[1]
        return max(
            length + (columns - stop if keep_right else 0)
            for length, (_, stop) in zip(self.pruned_lengths(counts), self.spans, strict=True)
        )


@dataclass(frozen=True)
class PrunedLayout:
    """Where each remaining column came from. Rows are prompts.

    Rows are as wide as the longest is without its padding. A shorter row keeps as much padding as
    it needs on the right and then on the left, and what it lacks is added on the left. Where
    padding on the right is to be kept, all of it stays, so that the last columns remain the last.
    Built on the device from lengths known on the host, so that nothing here waits.
    """

    source: torch.Tensor
    """[prompts, pruned length] int64: the column it was; 0 where ``is_added``."""
    is_padding: torch.Tensor
    """[prompts, pruned length] bool: padding that was there, or was added."""
    is_added: torch.Tensor
    """[prompts, pruned length] bool: padding that was added."""
    is_visual: torch.Tensor
    """[prompts, pruned length] bool: a visual token that was kept."""
    dropped_before: torch.Tensor
    """[prompts, pruned length] int64: visual tokens dropped to the left of it."""
    dropped: torch.Tensor
    """[prompts, 1] int64: visual tokens dropped of each prompt."""
    stops: tuple[int, ...]
    """After which column each prompt ends, its padding on the right not counted."""
    has_padding: bool
    keeps_right: bool
    """Whether the last columns are the prompt's last columns, in every row."""

    @property
    def length(self) -> int:
        return self.source.shape[1]

    @property
    def columns(self) -> torch.Tensor:
        """[prompts, length]: the column each was, -1 for padding."""
        return self.source.masked_fill(self.is_padding, -1)

    def repeat(self, repeats: int) -> PrunedLayout:
        """Each row ``repeats`` times, as beams and returned sequences are laid out."""
        if repeats == 1:
            return self
        return PrunedLayout(
            source=self.source.repeat_interleave(repeats, dim=0),
            is_padding=self.is_padding.repeat_interleave(repeats, dim=0),
            is_added=self.is_added.repeat_interleave(repeats, dim=0),
            is_visual=self.is_visual.repeat_interleave(repeats, dim=0),
            dropped_before=self.dropped_before.repeat_interleave(repeats, dim=0),
            dropped=self.dropped.repeat_interleave(repeats, dim=0),
            stops=tuple(stop for stop in self.stops for _ in range(repeats)),
            has_padding=self.has_padding,
            keeps_right=self.keeps_right,
        )

    def take(self, columns: torch.Tensor, padding: int = 0) -> torch.Tensor:
        """The remaining columns of [prompts, columns], ``padding`` in those that were added."""
        return columns.gather(1, self.source).masked_fill(self.is_added, padding)

    def columns_in(self, wider: PrunedLayout, columns: int) -> torch.Tensor:
        """[prompts, length]: where each column is in a layout of the same ``columns`` that has
        dropped fewer. Padding that is in this one alone is any column there."""
        # What was added stands for no column: it goes to a slot past the end.
        found = torch.where(wider.is_added, columns, wider.source)
        place = torch.arange(wider.length, device=found.device).expand_as(found)
        places = torch.zeros(len(found), columns + 1, dtype=torch.int64, device=found.device)
        return places.scatter_(1, found, place).gather(1, self.source)


def prune_columns(
    images: PromptImages, indices: torch.Tensor, counts: Sequence[int], *, keep_right: bool
) -> PrunedLayout:
    """Lay out prompts of which each image keeps the visual tokens that ``indices`` names.

    ``indices`` [images, R] are among an image's tokens, -1 for none; ``counts`` of them count.
    """
    is_placeholder = images.is_placeholder
    prompts, columns = is_placeholder.shape
    device = is_placeholder.device
    per_image = images.tokens_per_image

    # -1 lands in a last slot, which is cut off again.
    kept = torch.zeros(len(counts), per_image + 1, dtype=torch.bool, device=device)
    slots = torch.where(indices < 0, per_image, indices)
    kept.scatter_(1, slots, torch.ones_like(slots, dtype=torch.bool))
    # Row-major order over placeholders is image after image.
    is_dropped = is_placeholder.masked_scatter(is_placeholder, ~kept[:, :per_image].flatten())

    lengths = images.pruned_lengths(counts)
    on_right = [columns - stop for _, stop in images.spans]
    keep_right = keep_right or not any(on_right)
    width = images.pruned_width(counts, keep_right=keep_right)
    edges = []
    for length, padding, (start, stop) in zip(lengths, on_right, images.spans, strict=True):
        new_stop = width - min(padding, width - length)
        edges.append((start, stop, new_stop - length, new_stop))
    # [prompts, 1] each: between which columns a prompt was, and between which it will be.
    old_start, old_stop, new_start, new_stop = upload(edges, device).T.unsqueeze(-1)

    column = torch.arange(columns, device=device).expand(prompts, -1)
    keep = ~is_dropped & (column >= old_start) & (column < old_stop)
    # What is not kept goes to a slot past the end, which is cut off again.
    target = torch.where(keep, keep.cumsum(1) - 1 + new_start, width)
    source = torch.zeros(prompts, width + 1, dtype=torch.int64, device=device)
    source = source.scatter_(1, target, column)[:, :width]

    position = torch.arange(width, device=device)
    before, after = position < new_start, position >= new_stop
    # Padding stays what it was, the nearest to the prompt first.
    source = source.where(~before, position - new_start + old_start)
    source = source.where(~after, position - new_stop + old_stop)
    is_added, is_padding = source < 0, before | after
    source = source.clamp_min(0)
    dropped_before = is_dropped.cumsum(1)
    return PrunedLayout(
        source=source,
        is_padding=is_padding,
        is_added=is_added,
        is_visual=is_placeholder.gather(1, source) & ~is_padding,
        dropped_before=dropped_before.gather(1, source),
        dropped=dropped_before[:, -1:],
        stops=tuple(new_stop for *_, new_stop in edges),
        has_padding=any(length < width for length in lengths),
        keeps_right=keep_right,
    )
