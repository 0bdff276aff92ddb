"""The record of a pruned prompt that its KV cache carries, so that decoding can continue.

The caller (``generate`` included) counts the columns of the unpruned prompt. The cache holds fewer,
and still fewer in layers after a pruning stage inside the decoder. The mapping is stored on the
cache object, not on the model: generations can be interleaved, caches can be copied, and the record
is freed with the cache. Selecting, repeating and reordering rows of the cache, and cropping its
end, change the record in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from clasp_kernels.models.compat import is_foreign_cache, unfit_static_layers

_ATTRIBUTE = "_clasp_pruned_history"


@dataclass(frozen=True)
class PrunedHistory:
    """How the columns of a conversation map to the columns in its cache, up to the last pruning.

    The default value means that nothing was pruned.
    """

    full_length: int = 0
    """Columns of the conversation, as the caller counts them."""
    pruned_length: int = 0
    """Columns that the cache holds for them."""
    text_tail: int = 0
    """Number of last columns that are the same in both."""
    attention_mask: torch.Tensor | None = None
    """[rows, pruned_length] bool; None if no column is masked."""
    renumbering: torch.Tensor | None = None
    """[rows, 1]: subtracted from every later position id with positions="compact"; None with
    "original"."""
    deeper: tuple[tuple[int, PrunedHistory], ...] = ()
    """(first layer, history) of each group of later decoder layers that hold fewer columns."""
    spoiled: bool = False
    """Whether a prefill failed midway, so the content of the cache is unknown."""

    @staticmethod
    def of(cache: Any) -> PrunedHistory:
        """Return the history of a cache; ``cache`` may be None."""
        history: PrunedHistory = getattr(cache, _ATTRIBUTE, _NOTHING_PRUNED)
        return history

    def attach(self, cache: Any) -> None:
        """Store this history on a cache, and keep it up to date when the cache changes."""
        setattr(cache, _ATTRIBUTE, self)
        cache.__class__ = _pruned_class(_own_class(cache))

    @staticmethod
    def detach(cache: Any) -> None:
        """Remove the history from a cache."""
        vars(cache).pop(_ATTRIBUTE, None)
        cache.__class__ = _own_class(cache)

    def __bool__(self) -> bool:
        return self.full_length > 0 or self.spoiled

    @property
    def firsts(self) -> tuple[int, ...]:
        """The first layer of each entry of ``deeper``."""
        return tuple(first for first, _ in self.deeper)

    def with_deeper(self, deeper: Iterable[tuple[int, PrunedHistory]]) -> PrunedHistory:
        """Return a copy with these (first layer, history) entries for later layers."""
        return replace(self, deeper=tuple(deeper))

    def at(self, layer: int) -> PrunedHistory:
        """Return the history of one decoder layer."""
        known = [history for first, history in self.deeper if first <= layer]
        return known[-1] if known else self.with_deeper(())

    def select_rows(self, rows: torch.Tensor) -> PrunedHistory:
        """Return the history of these rows, [n] indices."""
        return self._of_rows(lambda values: values[rows.to(values.device)])

    def repeat_rows(self, repeats: int) -> PrunedHistory:
        """Return the history with each row repeated ``repeats`` times."""
        return self._of_rows(lambda values: values.repeat_interleave(repeats, dim=0))

    def _of_rows(self, change: Callable[[torch.Tensor], torch.Tensor]) -> PrunedHistory:
        mask, renumbering = self.attention_mask, self.renumbering
        return replace(
            self,
            attention_mask=None if mask is None else change(mask),
            renumbering=None if renumbering is None else change(renumbering),
            deeper=tuple((first, history._of_rows(change)) for first, history in self.deeper),
        )

    def crop(self, seen: int) -> PrunedHistory:
        """Return the history after the cache was cropped to ``seen`` columns."""
        cropped = self.pruned_length - seen
        if not 0 < cropped <= self.text_tail:  # mask() refuses a crop past the text tail
            return self
        mask = self.attention_mask
        return replace(
            self,
            full_length=self.full_length - cropped,
            pruned_length=seen,
            text_tail=self.text_tail - cropped,
            attention_mask=None if mask is None else mask[:, :seen],
            deeper=tuple(
                (first, history.crop(history.pruned_length - cropped))
                for first, history in self.deeper
            ),
        )

    def check_rows(self, rows: int) -> None:
        """
        Raises:
            ValueError: the history does not have ``rows`` rows.
        """
        for values in (self.attention_mask, self.renumbering):
            if values is not None and values.shape[0] != rows:
                raise ValueError(
                    f"past_key_values holds {values.shape[0]} pruned rows, but the batch has "
                    f"{rows}: select or repeat rows by the cache's own methods "
                    f"(batch_select_indices, batch_repeat_interleave, reorder_cache)"
                )

    def mask(
        self, full_mask: torch.Tensor | None, total: int, seen: int, rows: int
    ) -> torch.Tensor | None:
        """Convert the caller's mask [rows, total] to one over the pruned cache and the new columns.

        None stands for all ones. The cache holds ``seen`` columns; that is less than
        ``pruned_length`` if speculative decoding has cropped it.
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
        """Convert the caller's position ids of columns after the pruned prompt."""
        if self.renumbering is None:
            return position_ids
        return position_ids - self.renumbering.to(position_ids.device)


_NOTHING_PRUNED = PrunedHistory()


# True while a patched model runs its forward.
_forwarding: ContextVar[bool] = ContextVar("clasp_kernels_forwarding", default=False)


@contextmanager
def reading(history: PrunedHistory) -> Iterator[None]:
    """Allow the cache of a pruned prompt to be extended within a ``with`` block.

    If nothing was pruned, the context variable is not set, because compiled code cannot set one.
    """
    if not history:
        yield
        return
    before = _forwarding.set(True)
    try:
        yield
    finally:
        _forwarding.reset(before)


class _PrunedCache:
    """Mixin that is put in front of a cache's own class while it holds a pruned prompt."""

    def update(self, *args: Any, **kwargs: Any) -> Any:
        # Compiled code cannot read a context variable, so the check is skipped there.
        unread = not torch.compiler.is_compiling() and not _forwarding.get()
        # With gradient checkpointing, the backward pass runs forwards again, outside of reading().
        if unread and torch._C._current_graph_task_id() == -1:
            raise RuntimeError(
                "past_key_values holds a pruned prompt. Only the model that apply_clasp patched "
                "can continue from it: apply it again, or start from an empty cache"
            )
        return super().update(*args, **kwargs)  # type: ignore[misc]

    def reset(self) -> None:
        super().reset()  # type: ignore[misc]
        unfit_static_layers(self)
        PrunedHistory.detach(self)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)  # type: ignore[misc]
        self._follow(lambda history: history.select_rows(indices))

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self._follow(lambda history: history.select_rows(beam_idx))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        self._follow(lambda history: history.repeat_rows(repeats))

    def crop(self, *args: Any, **kwargs: Any) -> None:
        if PrunedHistory.of(self).deeper and any(size > 0 for size in (*args, *kwargs.values())):
            raise ValueError(
                "past_key_values holds a prompt that was pruned inside the decoder, so its layers "
                "differ in length: crop it by a negative number, the columns to remove"
            )
        super().crop(*args, **kwargs)  # type: ignore[misc]
        self._follow(lambda history: history.crop(int(self.get_seq_length())))  # type: ignore[attr-defined]

    def _follow(self, change: Callable[[PrunedHistory], PrunedHistory]) -> None:
        history = PrunedHistory.of(self)
        if history:
            setattr(self, _ATTRIBUTE, change(history))

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced = super().__reduce_ex__(max(2, protocol))
        return (_new_cache, (_own_class(self),), *reduced[2:])


@cache
def _pruned_class(own: type) -> type:
    """Return the subclass of ``own`` with ``_PrunedCache`` mixed in.

    Methods set on the instance would make a reference cycle, and a copied cache would call those
    of the original.
    """
    names = {"__module__": own.__module__, "__qualname__": own.__qualname__}
    return type(own)(own.__name__, (_PrunedCache, own), names)


def _own_class(cache: Any) -> type:
    return type(cache).__bases__[1] if isinstance(cache, _PrunedCache) else type(cache)


def _new_cache(own: type) -> Any:
    pruned: Any = _pruned_class(own)
    return pruned.__new__(pruned)


@dataclass(frozen=True)
class CachedPast:
    """The content of a cache when a forward begins."""

    history: PrunedHistory
    seen: int
    """Columns in the cache."""

    @classmethod
    def of(cls, cache: Any) -> CachedPast:
        """Read a cache, or None. Synchronises for a static cache: its length is on the device.

        A cache that was emptied for reuse loses its history here, before it is filled again.
        """
        if cache is None or is_foreign_cache(cache):
            return cls(_NOTHING_PRUNED, 0)
        if PrunedHistory.of(cache).spoiled:
            raise ValueError(
                "a forward failed while past_key_values was filled with a pruned prompt, so its "
                "content is unknown: start from an empty cache"
            )
        seen = int(cache.get_seq_length())
        if seen == 0:
            PrunedHistory.detach(cache)
        return cls(PrunedHistory.of(cache), seen)

    @classmethod
    def of_running(cls, cache: Any) -> CachedPast:
        """Read the cache of a decode step without synchronising."""
        history = PrunedHistory.of(cache)
        seen = 0 if cache is None or is_foreign_cache(cache) else cache.get_seq_length()
        # A static cache has its length on the device. The length is only needed to detect a crop,
        # and decoding one column per step never crops, so pruned_length stands in for it.
        return cls(history, history.pruned_length if isinstance(seen, torch.Tensor) else seen)

    @property
    def full_seen(self) -> int:
        """The number of columns in the cache as the caller counts them, dropped ones included."""
        return self.history.full_length + self.seen - self.history.pruned_length

    def at(self, layer: int) -> CachedPast:
        """Return the content of one decoder layer of the cache. All columns after the prompt are
        in every layer."""
        history = self.history.at(layer)
        dropped = self.history.pruned_length - history.pruned_length
        return CachedPast(history, self.seen - dropped)

    def mask(self, full_mask: torch.Tensor | None, total: int, rows: int) -> torch.Tensor | None:
        """Convert the caller's mask [rows, total] to one over the pruned cache and new columns."""
        return self.history.mask(full_mask, total, self.seen, rows)
