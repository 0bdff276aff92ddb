"""Which columns of a batch of prompts remain once visual tokens are dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from clasp_kernels.upload import upload


def first_numbers(counts: Sequence[int]) -> list[int]:
    """The number of each image's first token, where images have ``counts`` of them.

    >>> first_numbers([3, 2, 4])
    [0, 3, 5]
    """
    return [0, *accumulate(counts)][: len(counts)]


@dataclass(frozen=True)
class PromptImages:
    """Where a batch of prompts has its images and videos. The host knows all but the tokens.

    Visual tokens are numbered through the batch, those of one image after those of another.
    """

    tokens: torch.Tensor
    """[prompts, columns] int64: the number of the visual token in each column, -1 for others."""
    counts: tuple[int, ...]
    """Visual tokens of each image."""
    rows: tuple[int, ...]
    """The prompt that each image is in."""
    kinds: tuple[str, ...]
    """Whether each of them is an "image" or a "video"."""
    spans: tuple[tuple[int, int], ...]
    """Each prompt's columns between its padding: start and stop."""
    last_images: tuple[int, ...]
    """How many of each prompt's columns there are up to its last placeholder; 0 without one."""
    separators: torch.Tensor | None = None
    """[prompts, columns] bool: the placeholders that are no visual tokens. None where all are."""

    @property
    def text_tail(self) -> int:
        """How many of the last columns hold no image, in any prompt."""
        return self.columns - max(self.last_images)

    @property
    def columns(self) -> int:
        """Columns of the prompts, as they were given."""
        return self.tokens.shape[1]

    @property
    def per_prompt(self) -> tuple[int, ...]:
        """How many images each prompt has."""
        return tuple(self.rows.count(row) for row in range(len(self.spans)))

    @property
    def starts(self) -> list[int]:
        """The number of each image's first token."""
        return first_numbers(self.counts)

    def pruned_lengths(self, counts: Sequence[int]) -> list[int]:
        """The columns of each prompt without padding once its images keep ``counts`` tokens."""
        lengths = [stop - start for start, stop in self.spans]
        for row, count, before in zip(self.rows, counts, self.counts, strict=True):
            lengths[row] += count - before
        return lengths

    def pruned_width(self, counts: Sequence[int], *, keep_right: bool) -> int:
        """The columns of the widest row, with the padding on the right that is to be kept."""
        return max(
            length + (self.columns - stop if keep_right else 0)
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
    tokens: torch.Tensor
    """[prompts, pruned length] int64: the number of a visual token that was kept, -1 for others."""
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
            tokens=self.tokens.repeat_interleave(repeats, dim=0),
            dropped_before=self.dropped_before.repeat_interleave(repeats, dim=0),
            dropped=self.dropped.repeat_interleave(repeats, dim=0),
            stops=tuple(stop for stop in self.stops for _ in range(repeats)),
            has_padding=self.has_padding,
            keeps_right=self.keeps_right,
        )

    def take(self, columns: torch.Tensor, padding: int = 0) -> torch.Tensor:
        """The remaining columns of [..., prompts or 1, columns], ``padding`` in those added."""
        source = self.source[(None,) * (columns.ndim - 2)]
        return columns.take_along_dim(source, dim=-1).masked_fill(self.is_added, padding)

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
    tokens, columns = images.tokens, images.columns
    prompts, device, total = len(tokens), tokens.device, sum(images.counts)

    # What is no token, -1, is numbered past the last, and stays.
    kept = torch.zeros(total + 1, dtype=torch.bool, device=device)
    numbers = torch.where(indices < 0, total, indices + upload(images.starts, device)[:, None])
    kept.index_fill_(0, numbers.flatten(), True)[-1:].fill_(True)
    is_dropped = ~kept[torch.where(tokens < 0, total, tokens)]

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
        tokens=tokens.gather(1, source).masked_fill(is_padding, -1),
        dropped_before=dropped_before.gather(1, source),
        dropped=dropped_before[:, -1:],
        stops=tuple(new_stop for *_, new_stop in edges),
        has_padding=any(length < width for length in lengths),
        keeps_right=keep_right,
    )
