"""One prefill in which tokens are dropped, or features added, between decoder layers.

The layers from one stage to the next form a segment: all of them hold the same columns. The first
layer of a segment drops columns from the hidden states; every layer of it gets the position
embeddings, position ids and mask of the remaining columns. Position ids are not renumbered. The
columns of a segment are chosen once, so a layer that gradient checkpointing runs again gets the
same ones. Features that the model adds after a layer are added to the tokens that remain there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch

from clasp_kernels.models.capture import CapturedAttention
from clasp_kernels.models.columns import TOKEN_TYPES, prune_token_types
from clasp_kernels.models.compat import canonical_cache, layer_masks
from clasp_kernels.models.decoder import DecoderSeam, columns_of, names_by_column
from clasp_kernels.models.history import CachedPast, PrunedHistory
from clasp_kernels.models.instruction import (
    InstructionRows,
    instruction_columns,
    instruction_salience,
)
from clasp_kernels.models.layout import PromptImages, PrunedLayout, prune_columns
from clasp_kernels.models.masking import FLASH_LENGTHS, flash_lengths, prune_mask
from clasp_kernels.models.prefill import columns_with_features, feature_rows
from clasp_kernels.models.records import StageRecord
from clasp_kernels.models.selection import KeptTokens, TokenSelector
from clasp_kernels.models.stopwatch import Stopwatch
from clasp_kernels.rules.relevance import similarity_to, text_direction
from clasp_kernels.upload import upload

# Layer arguments with an entry per column, and the dimension of the columns. Other arguments with
# an entry per column are refused, except those in _REPLACED.
_FOLLOWING = {
    "position_embeddings": -2,
    "position_ids": -1,
    **{name: -1 for name in TOKEN_TYPES},
}
_REPLACED = ("hidden_states", "attention_mask", "cache", *FLASH_LENGTHS)


_REPLACED_LAYER = (
    "a decoder layer, or its forward, was replaced after apply_clasp, so tokens cannot be pruned "
    "in it; undo that, or remove() the handle and apply again"
)


@dataclass
class _Segment:
    """The decoder layers from ``first`` on, up to the next segment."""

    first: int
    layout: PrunedLayout
    """One row per prompt."""
    indices: torch.Tensor
    """[images, R]: indices of the remaining visual tokens in each image, padded with -1."""
    counts: tuple[int, ...]
    mask: torch.Tensor | None
    """[rows, cached and remaining columns]; None if no column is masked."""
    history: PrunedHistory
    narrowing: torch.Tensor | None = None
    """[rows, columns]: index of each column in the previous segment; None if the columns are the
    same."""
    source: torch.Tensor | None = None
    """[rows, columns]: index of each column in the first segment."""
    masks: Mapping[int, Any] = field(default_factory=dict)
    """Attention masks by layer, in the form that the attention implementation takes."""
    lengths: Mapping[str, Any] = field(default_factory=dict)
    """Sequence lengths that FlashAttention takes instead of a mask."""
    followed: dict[int, tuple[Any, Any]] = field(default_factory=dict)
    """Cache for the arguments that all layers share: id to (argument, its remaining columns). The
    argument is kept so that its id stays valid."""


class StagedPrefill:
    """The prefill of one forward inside the decoder (a ``decoder.LayerInputs``)."""

    def __init__(
        self,
        model: Any,
        selector: TokenSelector,
        *,
        seam: DecoderSeam,
        images: PromptImages,
        categories: Sequence[str],
        kept: KeptTokens,
        layout: PrunedLayout,
        history: PrunedHistory,
        past: CachedPast,
        attention_mask: torch.Tensor | None,
        token_types: Mapping[str, torch.Tensor],
        repeats: int,
        appended: int,
        flash: bool,
    ) -> None:
        """Set up the first segment; ``layout`` and ``history`` describe its columns.

        ``categories`` has one for each image. The last ``appended`` columns of each prompt were
        generated. Each prompt has ``repeats`` rows. ``token_types`` are those of the unpruned
        prompts, [rows, columns], by argument of forward.
        """
        self.seam = seam
        self.stages: list[StageRecord] = []
        self._model = model
        self._selector = selector
        self._images = images
        self._categories = categories
        self._fused = kept.fused
        self._deeper = [kept.flat(features) for features in kept.deeper]
        self._feature_rows: torch.Tensor | None = None
        if kept.deeper:
            self._feature_rows = feature_rows(images, kept.indices, kept.counts)
        self._past = past
        self._attention_mask = attention_mask
        self._token_types = token_types
        self._repeats = repeats
        self._appended = appended
        self._flash = flash
        # A cache that another schedule has filled has stages of its own.
        boundaries = sorted({0, *selector.stages, *past.history.firsts})
        self._layers = {
            first: range(first, stop) for first, stop in pairwise([*boundaries, seam.num_layers])
        }
        mask = history.attention_mask
        self._segments = [_Segment(0, layout, kept.indices, kept.counts, mask, history)]
        self._attention: CapturedAttention | None = None
        self._entered: set[int] = set()

    @property
    def _columns(self) -> int:
        return self._images.columns

    @property
    def layout(self) -> PrunedLayout:
        """The columns after the last layer, one row per prompt."""
        return self._segments[-1].layout

    @property
    def history(self) -> PrunedHistory:
        """The history to attach to the cache after the decoder has run.

        Raises:
            RuntimeError: ``enter`` was not called for a layer, because the layer was replaced.
        """
        first, *deeper = self._segments
        adding = range(min(len(self._deeper), self.seam.num_layers))
        if len(self._segments) < len(self._layers) or not self._entered.issuperset(adding):
            raise RuntimeError(_REPLACED_LAYER)
        return first.history.with_deeper((segment.first, segment.history) for segment in deeper)

    def wants_attention(self, layer: int) -> bool:
        return layer + 1 in self._selector.stages and self._segment_of(layer + 1).first <= layer

    def attended(self, layer: int, attention: CapturedAttention) -> None:
        self._attention = attention

    @torch.compiler.disable  # the selection depends on data
    def enter(self, layer: int, arguments: dict[str, Any]) -> dict[str, Any]:
        if layer == 0 and len(self._layers) > 1:
            self._check(arguments)
        if layer > 0 and layer - 1 not in self._entered:
            raise RuntimeError(_REPLACED_LAYER)
        self._entered.add(layer)
        segment = self._segment_of(layer)
        if layer in self._layers and segment.first < layer:
            segment = self._begin(layer, arguments)
        if segment.first == 0:
            return arguments
        inner = dict(arguments)
        if layer == segment.first and segment.narrowing is not None:
            inner["hidden_states"] = columns_of(inner["hidden_states"], segment.narrowing, -2)
        for name, dim in _FOLLOWING.items():
            if inner.get(name) is not None:
                inner[name] = self._follow(segment, inner[name], dim)
        # With layers on several devices, a device hook has already moved the hidden states.
        device = inner["hidden_states"].device
        mask = segment.masks[layer]
        inner["attention_mask"] = mask.to(device) if isinstance(mask, torch.Tensor) else mask
        for name, value in segment.lengths.items():
            inner[name] = value.to(device) if isinstance(value, torch.Tensor) else value
        return inner

    @torch.compiler.disable
    def leave(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        if layer >= len(self._deeper):
            return hidden
        assert self._feature_rows is not None
        tokens, rows = self._segment_of(layer).layout.tokens, self._feature_rows
        is_visual, at = columns_with_features(
            tokens.to(hidden.device), rows.to(hidden.device), self._repeats
        )
        features = self._deeper[layer].to(hidden.device, hidden.dtype)
        return torch.where(is_visual, hidden + features[at], hidden)

    def _segment_of(self, layer: int) -> _Segment:
        return next(segment for segment in reversed(self._segments) if segment.first <= layer)

    @staticmethod
    def _follow(segment: _Segment, value: Any, dim: int) -> Any:
        """Take the segment's columns of an argument, once for all of its layers."""
        if id(value) not in segment.followed:
            assert segment.source is not None
            segment.followed[id(value)] = (value, columns_of(value, segment.source, dim))
        return segment.followed[id(value)][1]

    @torch.no_grad()  # selection has no gradient
    def _begin(self, layer: int, arguments: Mapping[str, Any]) -> _Segment:
        """Choose the columns of the segment that begins with ``layer``."""
        before = self._segments[-1]
        hidden, cache = arguments["hidden_states"], canonical_cache(arguments).get("cache")
        past = self._past.at(layer)
        layout, indices, counts = before.layout, before.indices, before.counts
        narrowing = None
        if layer in self._selector.stages:
            layout, indices, counts = self._drop(layer, before, hidden)
            narrowing = layout.columns_in(before.layout, self._columns)
            narrowing = narrowing.repeat_interleave(self._repeats, dim=0)
        rows = layout.repeat(self._repeats)
        total = past.full_seen + self._columns
        mask = prune_mask(self._attention_mask, rows, past, total)
        source = layout.columns_in(self._segments[0].layout, self._columns)
        layers = self._layers[layer]
        token_types = prune_token_types(self._token_types, rows)
        queries = hidden.new_empty((*rows.source.shape, 0))
        segment = _Segment(
            first=layer,
            layout=layout,
            indices=indices,
            counts=counts,
            mask=mask,
            history=PrunedHistory(
                full_length=total,
                pruned_length=past.seen + layout.length,
                text_tail=self._images.text_tail if layout.keeps_right else 0,
                attention_mask=None if mask is None else mask.bool(),
            ),
            narrowing=narrowing,
            source=source.repeat_interleave(self._repeats, dim=0),
            masks=dict(
                zip(
                    layers,
                    layer_masks(self._model, queries, mask, cache, layers, token_types),
                    strict=True,
                )
            ),
            lengths=(
                flash_lengths([layout.length], past.seen, hidden.device)
                if self._flash and len(rows.source) == 1
                else {}
            ),
        )
        self._segments.append(segment)
        return segment

    def _check(self, arguments: Mapping[str, Any]) -> None:
        """Refuse unknown arguments with an entry per column, before any layer has run."""
        others = {
            name: value
            for name, value in canonical_cache(arguments).items()
            if name not in (*_FOLLOWING, *_REPLACED)
        }
        unknown = names_by_column(others, self._segments[0].layout.length)
        if unknown:
            raise RuntimeError(
                f"decoder layers are given {' and '.join(unknown)}, with an entry per column of "
                f"the prompt, and it is not known how to prune that inside the decoder; use a "
                f"schedule that prunes before it"
            )

    def _drop(
        self, layer: int, before: _Segment, hidden: torch.Tensor
    ) -> tuple[PrunedLayout, torch.Tensor, tuple[int, ...]]:
        attention, self._attention = self._attention, None
        if attention is None:
            raise RuntimeError(_REPLACED_LAYER)
        images, repeats = self._images, self._repeats
        counts = self._selector.counts(layer, self._categories, images.counts)
        with Stopwatch(hidden.device) as stopwatch:
            attention = attention.every(repeats)
            mask = before.mask
            slots, valid = _slots(before, images, hidden.device)
            if self._fused is None:
                features = hidden[::repeats].flatten(0, 1)[slots]
            else:
                which = before.indices.clamp_min(0)[..., None].to(self._fused.device)
                features = self._fused.take_along_dim(which, dim=1).to(hidden.device)

            def salience() -> torch.Tensor:
                scores = instruction_salience(
                    attention,
                    self._instruction(before.layout),
                    self._past.at(layer - 1).seen,
                    None if mask is None else mask[::repeats].bool(),
                )
                return scores.flatten().to(hidden.device)[slots]

            def relevance() -> torch.Tensor:
                is_text = instruction_columns(images, self._appended)
                is_text = before.layout.take(is_text).to(hidden.device)
                states = hidden[::repeats]
                directions = text_direction(states, is_text)[upload(images.rows, hidden.device)]
                return similarity_to(states.flatten(0, 1)[slots], directions)

            selection = self._selector.choose(
                features, salience, self._categories, counts, valid, relevance
            )
            chosen = selection.indices.to(before.indices.device)
            indices = before.indices.gather(1, chosen.clamp_min(0)).masked_fill(chosen < 0, -1)
        layout = prune_columns(
            images,
            indices.to(images.tokens.device),
            counts,
            keep_right=before.layout.keeps_right,
        )
        self.stages.append(
            StageRecord(
                layer=layer,
                indices=indices,
                is_pivot=selection.is_pivot,
                tokens_before=before.indices.shape[1],
                tokens_after=indices.shape[1],
                counts=counts,
                columns=layout.columns,
                stopwatch=stopwatch,
            )
        )
        return layout, indices, counts

    def _instruction(self, layout: PrunedLayout) -> InstructionRows:
        """Return the rows of each prompt that score its tokens, in the columns of a layout."""
        stops, counts = [], []
        ends = zip(layout.stops, self._images.spans, self._images.last_images, strict=True)
        for stop, (_, old_stop), last_image in ends:
            end = min(old_stop, self._columns - self._appended)
            stops.append(stop - (old_stop - end))
            after_images = end - last_image if last_image else 1
            wanted = after_images if self._selector.salience_rows == "instruction" else 1
            counts.append(max(1, wanted))
        return InstructionRows(tuple(stops), tuple(counts))


def _slots(
    segment: _Segment, images: PromptImages, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the flat column index of each image's remaining tokens, and which entries are valid.

    Both are [images, R]. Columns are numbered through all prompts, row after row. The second is
    None if all entries are valid.
    """
    total, width = sum(images.counts), segment.indices.shape[1]
    tokens = segment.layout.tokens.flatten().to(device)
    # Columns without a visual token (-1) write to an extra slot at the end.
    places = torch.zeros(total + 1, dtype=torch.int64, device=device)
    numbers = torch.where(tokens < 0, total, tokens)
    places.scatter_(0, numbers, torch.arange(len(tokens), device=device))
    indices = segment.indices.to(device)
    slots = places[indices.clamp_min(0) + upload(images.starts, device)[:, None]]
    return slots, None if all(count == width for count in segment.counts) else indices >= 0
