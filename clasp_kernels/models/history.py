"""What a cache must remember of a pruned prompt, so that decoding goes on from it.

The caller, ``generate`` included, goes on counting the columns of the prompt it gave; the cache
holds fewer. The difference travels with the cache object, never with the model: generations may
be interleaved, caches copied, and a cache that is dropped takes its history along. Rows of a cache
can be selected, repeated and reordered, and its end cropped: its history does the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

_ATTRIBUTE = "_clasp_pruned_history"
_FOLLOWED = ("batch_select_indices", "batch_repeat_interleave", "reorder_cache", "crop")


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
        """Have a cache remember this, and follow what is done to the cache."""
        setattr(cache, _ATTRIBUTE, self)
        for name in _FOLLOWED:
            if hasattr(type(cache), name):
                vars(cache)[name] = _FollowedMethod(cache, name)

    @staticmethod
    def detach(cache: Any) -> None:
        """Have a cache forget what it remembered."""
        for name in (_ATTRIBUTE, *_FOLLOWED):
            vars(cache).pop(name, None)

    def __bool__(self) -> bool:
        return self.full_length > 0

    def select_rows(self, rows: torch.Tensor) -> PrunedHistory:
        """The history of these rows, [n] indices."""

        def of(values: torch.Tensor | None) -> torch.Tensor | None:
            return None if values is None else values[rows.to(values.device)]

        return replace(
            self, attention_mask=of(self.attention_mask), renumbering=of(self.renumbering)
        )

    def repeat_rows(self, repeats: int) -> PrunedHistory:
        """The history with each row ``repeats`` times."""

        def of(values: torch.Tensor | None) -> torch.Tensor | None:
            return None if values is None else values.repeat_interleave(repeats, dim=0)

        return replace(
            self, attention_mask=of(self.attention_mask), renumbering=of(self.renumbering)
        )

    def crop(self, seen: int) -> PrunedHistory:
        """The history once the cache is cropped to ``seen`` columns."""
        cropped = self.pruned_length - seen
        if not 0 < cropped <= self.text_tail:  # too much is refused where the cache is used
            return self
        mask = self.attention_mask
        return replace(
            self,
            full_length=self.full_length - cropped,
            pruned_length=seen,
            text_tail=self.text_tail - cropped,
            attention_mask=None if mask is None else mask[:, :seen],
        )

    def check_rows(self, rows: int) -> None:
        """
        Raises:
            ValueError: this remembers another number of rows than the ``rows`` it is used for.
        """
        for values in (self.attention_mask, self.renumbering):
            if values is not None and values.shape[0] != rows:
                raise ValueError(
                    f"past_key_values holds {values.shape[0]} pruned rows, but the batch has "
                    f"{rows}: select or repeat rows by the cache's own methods "
                    f"({', '.join(_FOLLOWED[:3])})"
                )

    def mask(
        self, full_mask: torch.Tensor | None, total: int, seen: int, rows: int
    ) -> torch.Tensor | None:
        """The caller's mask over ``total`` columns, [rows, total], for the pruned cache.

        None stands for all ones. The cache holds ``seen`` columns; where that is less than the
        pruned prompt, speculative decoding has cropped it since.
        """
        self.check_rows(rows)
        cropped = max(0, self.pruned_length - seen)
        if cropped > self.text_tail:
            raise ValueError(
                f"past_key_values was cropped into an image or the padding of the pruned prompt "
                f"and holds {seen} columns: they cannot be matched with the prompt any more; "
                f"start from an empty cache"
            )
        if full_mask is None and self.attention_mask is None:
            return None
        new_columns = total - self.full_length + cropped
        if full_mask is None:
            assert self.attention_mask is not None
            tail = self.attention_mask.new_ones(self.attention_mask.shape[0], new_columns)
        else:
            tail = full_mask[:, total - new_columns :]
        head = self.attention_mask
        if head is None:
            head = tail.new_ones(tail.shape[0], self.pruned_length)
        head = head[:, : self.pruned_length - cropped].to(tail.device, tail.dtype)
        return torch.cat([head, tail], dim=1)

    def positions(self, position_ids: torch.Tensor) -> torch.Tensor:
        """Position ids of columns after the pruned prompt, from the caller's count."""
        if self.renumbering is None:
            return position_ids
        return position_ids - self.renumbering.to(position_ids.device)


_NOTHING_PRUNED = PrunedHistory()


@dataclass(frozen=True)
class _FollowedMethod:
    """A method of one cache, in place of its class's, which its history follows."""

    cache: Any
    name: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        method = getattr(type(self.cache), self.name)
        result = method(self.cache, *args, **kwargs)
        history = PrunedHistory.of(self.cache)
        if history:
            setattr(self.cache, _ATTRIBUTE, self._follow(history, *args, *kwargs.values()))
        return result

    def _follow(self, history: PrunedHistory, argument: Any) -> PrunedHistory:
        if self.name == "crop":
            return history.crop(int(self.cache.get_seq_length()))
        if self.name == "batch_repeat_interleave":
            return history.repeat_rows(argument)
        return history.select_rows(argument)


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
        if seen == 0 and cache is not None:
            PrunedHistory.detach(cache)
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

    def mask(self, full_mask: torch.Tensor | None, total: int, rows: int) -> torch.Tensor | None:
        """The caller's mask over ``total`` columns, [rows, total], for the pruned cache."""
        return self.history.mask(full_mask, total, self.seen, rows)
