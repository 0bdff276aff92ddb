"""Compute which columns of a batch of prompts remain after visual tokens are dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from clasp_kernels.upload import upload


def first_numbers(counts: Sequence[int]) -> list[int]:
    """Return the number of each image's first token, for images with ``counts`` tokens.

    >>> first_numbers([3, 2, 4])
    [0, 3, 5]
    """
    return [0, *accumulate(counts)][: len(counts)]


@dataclass(frozen=True)
class PromptImages:
    """Where the images and videos of a batch of prompts are. All but ``tokens`` is on the host.

    Visual tokens are numbered through the batch, image after image.
    """

    tokens: torch.Tensor
    """[prompts, columns] int64: the number of the visual token in each column, -1 for none."""
    counts: tuple[int, ...]
    """Visual tokens of each image."""
    rows: tuple[int, ...]
    """The prompt of each image."""
    kinds: tuple[str, ...]
    """The kind of each image: "image" or "video"."""
    spans: tuple[tuple[int, int], ...]
    """Start and stop column of each prompt, without its padding."""
    last_images: tuple[int, ...]
    """The column after each prompt's last placeholder; 0 without placeholders."""
    separators: torch.Tensor | None = None
    """[prompts, columns] bool: placeholders that are not visual tokens. None if there are none."""

    @property
    def text_tail(self) -> int:
        """Number of last columns that have no placeholder in any prompt."""
        return self.columns - max(self.last_images)

    @property
    def columns(self) -> int:
        """Columns of the unpruned prompts."""
        return self.tokens.shape[1]

    @property
    def per_prompt(self) -> tuple[int, ...]:
        """Number of images of each prompt."""
        return tuple(self.rows.count(row) for row in range(len(self.spans)))

    @property
    def starts(self) -> list[int]:
        """The number of each image's first token."""
        return first_numbers(self.counts)

    def pruned_lengths(self, counts: Sequence[int]) -> list[int]:
        """Return each prompt's length without padding if its images keep ``counts`` tokens."""
        lengths = [stop - start for start, stop in self.spans]
        for row, count, before in zip(self.rows, counts, self.counts, strict=True):
            lengths[row] += count - before
        return lengths

    def pruned_width(self, counts: Sequence[int], *, keep_right: bool) -> int:
        """Return the width of the longest row; with ``keep_right``, padding on the right counts."""
        return max(
            length + (self.columns - stop if keep_right else 0)
            for length, (_, stop) in zip(self.pruned_lengths(counts), self.spans, strict=True)
        )


@dataclass(frozen=True)
class PrunedLayout:
    """The remaining columns of each prompt, one row per prompt.

    The width is that of the longest pruned prompt without padding. A shorter row keeps its own
    padding, first on the right, then on the left; if that is not enough, padding is added on the
    left. If padding on the right must be kept, all of it stays, so that the last columns remain
    the last. The tensors are built on the device from lengths on the host, without synchronising.
    """

    source: torch.Tensor
    """[prompts, pruned length] int64: the column in the unpruned prompt; 0 if ``is_added``."""
    is_padding: torch.Tensor
    """[prompts, pruned length] bool: the prompt's own padding, or added padding."""
    is_added: torch.Tensor
    """[prompts, pruned length] bool: added padding only."""
    tokens: torch.Tensor
    """[prompts, pruned length] int64: the number of the kept visual token, -1 if there is none."""
    dropped_before: torch.Tensor
    """[prompts, pruned length] int64: number of visual tokens dropped before the column."""
    dropped: torch.Tensor
    """[prompts, 1] int64: number of visual tokens dropped from each prompt."""
    stops: tuple[int, ...]
    """The end of each prompt (exclusive), without padding on the right."""
    has_padding: bool
    keeps_right: bool
    """Whether the last columns of every row are the last columns of the unpruned prompt."""

    @property
    def length(self) -> int:
        return self.source.shape[1]

    @property
    def columns(self) -> torch.Tensor:
        """[prompts, length]: the column in the unpruned prompt, -1 for padding."""
        return self.source.masked_fill(self.is_padding, -1)

    def repeat(self, repeats: int) -> PrunedLayout:
        """Repeat each row ``repeats`` times, in the order of beams and returned sequences."""
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
        """Take the remaining columns of [..., prompts or 1, columns], ``padding`` if added."""
        source = self.source[(None,) * (columns.ndim - 2)]
        return columns.take_along_dim(source, dim=-1).masked_fill(self.is_added, padding)

    def columns_in(self, wider: PrunedLayout, columns: int) -> torch.Tensor:
        """Return the index of each column in a layout that has dropped fewer, [prompts, length].

        Both layouts are of the same ``columns``. The index is arbitrary for padding that only this
        layout has.
        """
        # Added padding is not a column of the prompt: it writes to an extra slot at the end.
        found = torch.where(wider.is_added, columns, wider.source)
        place = torch.arange(wider.length, device=found.device).expand_as(found)
        places = torch.zeros(len(found), columns + 1, dtype=torch.int64, device=found.device)
        return places.scatter_(1, found, place).gather(1, self.source)


def prune_columns(
    images: PromptImages, indices: torch.Tensor, counts: Sequence[int], *, keep_right: bool
) -> PrunedLayout:
    """Lay out prompts whose images keep the visual tokens ``indices``.

    ``indices`` [images, R] index the tokens of each image, padded with -1 after ``counts``.
    """
    tokens, columns = images.tokens, images.columns
    prompts, device, total = len(tokens), tokens.device, sum(images.counts)

    # The extra last entry stands for -1 (no visual token): such columns are always kept.
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
    # [prompts, 1] each: start and stop of the prompt before and after pruning.
    old_start, old_stop, new_start, new_stop = upload(edges, device).T.unsqueeze(-1)

    column = torch.arange(columns, device=device).expand(prompts, -1)
    keep = ~is_dropped & (column >= old_start) & (column < old_stop)
    # Dropped columns write to an extra slot at the end, which is cut off.
    target = torch.where(keep, keep.cumsum(1) - 1 + new_start, width)
    source = torch.zeros(prompts, width + 1, dtype=torch.int64, device=device)
    source = source.scatter_(1, target, column)[:, :width]

    position = torch.arange(width, device=device)
    before, after = position < new_start, position >= new_stop
    # Keep the prompt's own padding, nearest first. Indices below 0 are added padding.
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
