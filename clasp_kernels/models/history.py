"""What a cache must remember of a pruned prompt, so that decoding goes on from it.

The caller, ``generate`` included, goes on counting the columns of the prompt it gave; the cache
holds fewer. The difference travels with the cache object, never with the model: generations may
be interleaved, caches copied, and a cache that is dropped takes its history along.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

_ATTRIBUTE = "_clasp_pruned_history"


@dataclass(frozen=True)
class PrunedHistory:
    """How the columns of a conversation map to those in its cache, up to the last pruning.

    The default is the history of a cache that nothing was pruned from.
    """

    full_length: int = 0
    """Columns of the conversation, as the caller counts them."""
    pruned_length: int = 0
    """Columns of it that the cache holds."""
    text_tail: int = 0
    """How many of the last columns are the same in both."""
    attention_mask: torch.Tensor | None = None
    """[rows, pruned_length] bool; None where every column counts."""
    renumbering: torch.Tensor | None = None
    """[rows, 1]: what positions="compact" takes off every later position; None for "original"."""

    @staticmethod
    def of(cache: Any) -> PrunedHistory:
        """The history of a cache, or of no cache."""
        history: PrunedHistory = getattr(cache, _ATTRIBUTE, _NOTHING_PRUNED)
        return history

    def attach(self, cache: Any) -> None:
        setattr(cache, _ATTRIBUTE, self)

    def __bool__(self) -> bool:
        return self.full_length > 0

    def mask(self, full_mask: torch.Tensor | None, total: int, seen: int) -> torch.Tensor | None:
        """The caller's mask over ``total`` columns, [rows, total], for the pruned cache.

        None stands for all ones. The cache holds ``seen`` columns; where that is less than the
        pruned prompt, speculative decoding has cropped it since.
        """
        if full_mask is None and self.attention_mask is None:
            return None
        cropped = max(0, self.pruned_length - seen)
        if cropped > self.text_tail:
            raise ValueError(
                f"past_key_values was cropped to {seen} columns, {cropped} less than the pruned "
                f"prompt, but only its last {self.text_tail} columns are sure to be text: the "
                f"rest cannot be matched with the prompt any more; start from an empty cache"
            )
        new_columns = total - self.full_length + cropped
        if full_mask is None:
            assert self.attention_mask is not None
            tail = self.attention_mask.new_ones(self.attention_mask.shape[0], new_columns)
        else:
            tail = full_mask[:, total - new_columns :]
        head = self.attention_mask
        if head is None:
            head = tail.new_ones(tail.shape[0], self.pruned_length)
        if head.shape[0] != tail.shape[0]:
            raise ValueError(
                f"past_key_values holds {head.shape[0]} pruned rows, but attention_mask has "
                f"{tail.shape[0]}: rows of a pruned cache cannot be repeated or selected"
            )
        head = head[:, : self.pruned_length - cropped].to(tail.device, tail.dtype)
        return torch.cat([head, tail], dim=1)

    def positions(self, position_ids: torch.Tensor) -> torch.Tensor:
        """Position ids of columns after the pruned prompt, from the caller's count."""
        if self.renumbering is None:
            return position_ids
        return position_ids - self.renumbering.to(position_ids.device)


_NOTHING_PRUNED = PrunedHistory()


@dataclass(frozen=True)
class CachedPast:
    """What a cache holds when a forward begins."""

    history: PrunedHistory
    seen: int
    """Columns in the cache."""

    @classmethod
    def of(cls, cache: Any) -> CachedPast:
        """Look at a cache, or at none. Waits for a static cache, whose length is on the device.

        A cache that was emptied for reuse loses its history here, before anything new is in it.
        """
        seen = 0 if cache is None else int(cache.get_seq_length())
        if seen == 0 and hasattr(cache, _ATTRIBUTE):
            delattr(cache, _ATTRIBUTE)
        return cls(PrunedHistory.of(cache), seen)

    @classmethod
    def of_running(cls, cache: Any) -> CachedPast:
        """Look at the cache of a generation that is past its first forward, without waiting."""
        history = PrunedHistory.of(cache)
        seen = 0 if cache is None else cache.get_seq_length()
        # Where the length is on the device the cache is static. Those are never cropped, and that
        # is all the length is asked for.
        return cls(history, history.pruned_length if isinstance(seen, torch.Tensor) else seen)

    @property
    def full_seen(self) -> int:
        """The columns these stand for, as the caller counts them."""
        return self.history.full_length + self.seen - self.history.pruned_length

    def mask(self, full_mask: torch.Tensor | None, total: int) -> torch.Tensor | None:
        """The caller's mask over ``total`` columns, [rows, total], for the pruned cache."""
        return self.history.mask(full_mask, total, self.seen)
