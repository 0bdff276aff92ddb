"""One prefill with images: the caller's forward arguments, and those of the pruned prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from clasp_kernels.models.adapter import Adapter
from clasp_kernels.models.compat import uses_flash_attention
from clasp_kernels.models.history import CachedPast, PrunedHistory
from clasp_kernels.models.layout import PromptImages, PrunedLayout, prune_columns
from clasp_kernels.models.selection import KeptTokens
from clasp_kernels.upload import upload

_NO_LOSS = -100  # the label that loss functions skip


@dataclass(frozen=True)
class PrunedPrompt:
    """What the language model gets instead, and what its cache has to remember."""

    inputs: dict[str, Any]
    layout: PrunedLayout
    """One row per prompt, before beams repeat them."""
    history: PrunedHistory
    image_features: Sequence[torch.Tensor]
    """[kept tokens, text width] of each image, in the order of the rows the language model sees."""


def find_images(
    adapter: Adapter, embed: torch.nn.Module, inputs: dict[str, Any], repeats: int
) -> PromptImages:
    """Find the placeholders and check that they match the images. Waits for ``input_ids``."""
    input_ids = inputs.get("input_ids")
    if input_ids is not None:
        is_placeholder = input_ids == adapter.image_token_id
    else:
        embeds = inputs["inputs_embeds"]
        token = torch.tensor(adapter.image_token_id, device=embeds.device)
        is_placeholder = (embeds == embed(token)).all(-1)
    is_placeholder = is_placeholder[::repeats]  # repeated rows have theirs in the same columns
    attention_mask = inputs.get("attention_mask")
    columns = is_placeholder.shape[1]
    is_content = torch.ones_like(is_placeholder)
    if attention_mask is not None:
        mask = attention_mask[::repeats, -columns:].to(is_placeholder.device)
        is_content = is_placeholder | mask.bool()

    after = torch.arange(1, columns + 1, device=is_placeholder.device)
    counts, last_images, starts, stops = torch.stack(
        [
            is_placeholder.sum(1),
            (is_placeholder * after).amax(1),
            is_content.long().argmax(1),
            (is_content * after).amax(1),
        ]
    ).tolist()
    for row, count in enumerate(counts):
        if count % adapter.tokens_per_image:
            raise ValueError(
                f"prompt {row} has {count} image placeholders, which is not a multiple of the "
                f"{adapter.tokens_per_image} tokens each image takes; a prompt is pruned in one "
                f"piece, so neither cut it nor set prefill_chunk_size"
            )
    per_prompt = tuple(count // adapter.tokens_per_image for count in counts)
    given = inputs["pixel_values"].shape[0]
    if given != sum(per_prompt):
        raise ValueError(
            f"pixel_values holds {given} images, but the prompts have placeholders for "
            f"{sum(per_prompt)}, at {adapter.tokens_per_image} tokens per image"
        )
    return PromptImages(
        is_placeholder=is_placeholder,
        tokens_per_image=adapter.tokens_per_image,
        per_prompt=per_prompt,
        spans=tuple(zip(starts, stops, strict=True)),
        text_tail=columns - max(last_images) if min(stops) == columns else 0,
    )


def check_inputs(inputs: dict[str, Any], past: CachedPast) -> None:
    """What a prefill with images needs of forward's arguments, whatever the model family."""
    rows, length, _ = input_shape(inputs)
    check_attention_mask(inputs.get("attention_mask"), rows, past.full_seen + length)
    labels = inputs.get("labels")
    if labels is not None and labels.shape != (rows, length):
        raise ValueError(
            f"labels must have the prompt's shape {[rows, length]}, got {list(labels.shape)}"
        )
    if not isinstance(inputs.get("logits_to_keep", 0), int):
        raise ValueError(
            "logits_to_keep must be an int where images are pruned: a tensor of columns would "
            "count columns that are gone"
        )


def prune_prompt(
    inputs: dict[str, Any],
    images: PromptImages,
    kept: KeptTokens,
    past: CachedPast,
    *,
    embed: torch.nn.Module,
    text_config: Any,
    repeats: int,
    compact: bool,
) -> PrunedPrompt:
    """Forward arguments without the dropped columns. ``inputs`` is left as it is."""
    indices = kept.stage.indices.to(images.is_placeholder.device)
    layout = prune_columns(images, indices, kept.stage.counts)
    rows_layout = layout.repeat(repeats)
    rows, length, _ = input_shape(inputs)

    positions = inputs.get("position_ids")
    if positions is None:  # as the language model would count
        positions = torch.arange(length, device=layout.source.device)[None] + past.full_seen

    embeds = _prune_embeds(inputs, rows_layout, embed)
    features = kept.flat_features().to(embeds.device, embeds.dtype).split(kept.stage.counts)
    features = _repeat_per_prompt(features, images.per_prompt, repeats)
    visual = rows_layout.is_visual[..., None].to(embeds.device)
    mask = _prune_mask(inputs.get("attention_mask"), rows_layout, past, past.full_seen + length)
    renumbering = None
    if compact:
        renumbering = rows_layout.dropped
        if past.history.renumbering is not None:
            renumbering = renumbering + past.history.renumbering
    history = PrunedHistory(
        full_length=past.full_seen + length,
        pruned_length=past.seen + layout.length,
        text_tail=images.text_tail,
        attention_mask=None if mask is None else mask.bool(),
        renumbering=renumbering,
    )

    if mask is None and inputs.get("cache") is None:
        # With neither mask nor cache, transformers takes a gap in position_ids for the start of
        # another sequence packed into the row, and would cut the prompt in two at every gap.
        mask = layout.source.new_ones(rows, layout.length)
    pruned = {
        **inputs,
        "inputs_embeds": embeds.masked_scatter(visual, torch.cat(features)),
        "attention_mask": mask,
        "position_ids": _prune_positions(positions, rows_layout, past, compact),
    }
    for spent in ("input_ids", "pixel_values"):
        pruned.pop(spent, None)
    if inputs.get("labels") is not None:
        pruned["labels"] = _prune_labels(inputs["labels"], rows_layout)
    if rows == 1 and uses_flash_attention(text_config):
        # FlashAttention's wrapper looks for gaps too, mask or not, unless told the lengths.
        for side, total in (("q", layout.length), ("k", past.seen + layout.length)):
            pruned[f"cu_seq_lens_{side}"] = upload([0, total], embeds.device, torch.int32)
            pruned[f"max_length_{side}"] = total
    return PrunedPrompt(pruned, layout, history, features)


def _prune_embeds(
    inputs: dict[str, Any], layout: PrunedLayout, embed: torch.nn.Module
) -> torch.Tensor:
    if inputs.get("input_ids") is not None:
        embeds: torch.Tensor = embed(layout.take(inputs["input_ids"]))
        return embeds
    return inputs["inputs_embeds"].take_along_dim(layout.source[..., None], dim=1)


def _prune_mask(
    attention_mask: torch.Tensor | None, layout: PrunedLayout, past: CachedPast, total: int
) -> torch.Tensor | None:
    """[rows, cached and remaining columns]; None where every column counts."""
    mask = past.mask(attention_mask, total)
    if mask is None:
        if not layout.has_padding:
            return None
        mask = (~layout.is_padding).long()
        return torch.cat([mask.new_ones(mask.shape[0], past.seen), mask], dim=1)
    mask = mask.to(layout.source.device)
    return torch.cat([mask[:, : past.seen], layout.take(mask[:, past.seen :])], dim=1)


def _prune_positions(
    position_ids: torch.Tensor, layout: PrunedLayout, past: CachedPast, compact: bool
) -> torch.Tensor:
    rows, device = layout.source.shape[0], layout.source.device
    position_ids = past.history.positions(position_ids.to(device)).expand(rows, -1)
    positions = layout.take(position_ids)
    return positions - layout.dropped_before if compact else positions


def _prune_labels(labels: torch.Tensor, layout: PrunedLayout) -> torch.Tensor:
    labels = layout.take(labels, padding=_NO_LOSS)
    # Padding that was not there before must not be asked to predict a row's first token.
    labels[:, 1:].masked_fill_(layout.is_padding[:, :-1], _NO_LOSS)
    return labels


def input_shape(inputs: dict[str, Any]) -> tuple[int, int, torch.device]:
    """Rows, columns and device of the tokens a forward is given."""
    tokens, embeds = inputs.get("input_ids"), inputs.get("inputs_embeds")
    if (tokens is None) == (embeds is None):
        raise ValueError("pass exactly one of input_ids and inputs_embeds")
    given = embeds if tokens is None else tokens
    assert given is not None
    return given.shape[0], given.shape[1], given.device


def check_attention_mask(attention_mask: Any, rows: int, columns: int) -> None:
    """The mask must be 2D over every column so far; None passes."""
    if attention_mask is None:
        return
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.ndim != 2:
        got = (
            f"{attention_mask.ndim}D"
            if isinstance(attention_mask, torch.Tensor)
            else type(attention_mask).__name__
        )
        raise ValueError(
            f"attention_mask must be 2D [rows, columns], so that dropped columns can be taken "
            f"out of it, got {got}"
        )
    if attention_mask.shape != (rows, columns):
        raise ValueError(
            f"attention_mask must be {[rows, columns]}, one column for every token so far, "
            f"pruned ones included, got {list(attention_mask.shape)}"
        )


def _repeat_per_prompt(
    features: Sequence[torch.Tensor], per_prompt: tuple[int, ...], repeats: int
) -> list[torch.Tensor]:
    """The images in the order of the rows, whose prompts' images come ``repeats`` times."""
    repeated: list[torch.Tensor] = []
    image = 0
    for in_prompt in per_prompt:
        repeated += list(features[image : image + in_prompt]) * repeats
        image += in_prompt
    return repeated
