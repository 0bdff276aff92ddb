"""One prefill with images: the caller's forward arguments, and those of the pruned prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from clasp_kernels.models.adapter import Adapter
from clasp_kernels.models.history import CachedPast, PrunedHistory
from clasp_kernels.models.layout import PromptImages, PrunedLayout, prune_columns
from clasp_kernels.models.selection import KeptTokens
from clasp_kernels.models.upload import upload

_NO_LOSS = -100  # the label that loss functions skip


@dataclass(frozen=True)
class PrunedPrompt:
    """What the language model gets instead, and what its cache has to remember."""

    inputs: dict[str, Any]
    layout: PrunedLayout
    """One row per prompt, before beams repeat them."""
    history: PrunedHistory
    image_features: torch.Tensor
    """[kept tokens, text width], in the order of the rows the language model sees."""


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
    pruned = dict(inputs)
    del pruned["pixel_values"]

    input_ids = pruned.pop("input_ids", None)
    if input_ids is not None:
        embeds = embed(rows_layout.take(input_ids))
    else:
        columns = rows_layout.source[..., None]
        embeds = inputs["inputs_embeds"].take_along_dim(columns, dim=1)
    features = _repeat_per_prompt(kept, images.per_prompt, repeats)
    features = features.to(embeds.device, embeds.dtype)
    visual = rows_layout.is_visual[..., None].to(embeds.device)
    embeds = embeds.masked_scatter(visual, features)
    pruned["inputs_embeds"] = embeds

    mask = past.mask(inputs.get("attention_mask"), past.full_seen + length)
    if mask is not None:
        segment = rows_layout.take(mask[:, past.seen :].to(layout.source.device))
        mask = torch.cat([mask[:, : past.seen].to(segment.device), segment], dim=1)
    elif layout.has_padding:
        mask = (~rows_layout.is_padding).long()
        mask = torch.cat([mask.new_ones(rows, past.seen), mask], dim=1)
    remembered = None if mask is None else mask.bool()
    if mask is None and inputs.get("past_key_values") is None:
        # With neither mask nor cache, transformers takes a gap in position_ids for the start of
        # another sequence packed into the row, and would cut the prompt in two at every gap.
        mask = layout.source.new_ones(rows, layout.length)
    pruned["attention_mask"] = mask

    positions = inputs.get("position_ids")
    if positions is None:
        positions = torch.arange(length, device=layout.source.device)[None] + past.full_seen
    positions = past.history.positions(positions.to(layout.source.device).expand(rows, -1))
    positions = rows_layout.take(positions)
    renumbering = None
    if compact:
        positions = positions - rows_layout.dropped_before
        renumbering = rows_layout.dropped
        if past.history.renumbering is not None:
            renumbering = renumbering + past.history.renumbering
    pruned["position_ids"] = positions

    labels = inputs.get("labels")
    if labels is not None:
        if labels.shape != (rows, length):
            raise ValueError(
                f"labels must have the prompt's shape {[rows, length]}, got {list(labels.shape)}"
            )
        labels = rows_layout.take(labels, padding=_NO_LOSS)
        # Padding that was not there before must not be asked to predict a row's first token.
        labels[:, 1:].masked_fill_(rows_layout.is_padding[:, :-1], _NO_LOSS)
        pruned["labels"] = labels

    if rows == 1 and "flash" in (text_config._attn_implementation or ""):
        # FlashAttention's wrapper looks for gaps too, mask or not, unless told the lengths.
        for side, total in (("q", layout.length), ("k", past.seen + layout.length)):
            pruned[f"cu_seq_lens_{side}"] = upload([0, total], embeds.device, torch.int32)
            pruned[f"max_length_{side}"] = total

    history = PrunedHistory(
        full_length=past.full_seen + length,
        pruned_length=past.seen + layout.length,
        text_tail=images.text_tail,
        attention_mask=remembered,
        renumbering=renumbering,
    )
    return PrunedPrompt(pruned, layout, history, features)


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


def _repeat_per_prompt(kept: KeptTokens, per_prompt: tuple[int, ...], repeats: int) -> torch.Tensor:
    """Every kept token in the order of the rows, whose prompts' images come ``repeats`` times."""
    features = kept.flat_features()
    if repeats == 1:
        return features
    sizes, image = [], 0
    for images in per_prompt:
        sizes.append(sum(kept.stage.counts[image : image + images]))
        image += images
    prompts = features.split(sizes)
    return torch.cat([prompt for prompt in prompts for _ in range(repeats)])
