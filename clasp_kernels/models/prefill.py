"""One prefill with images: the caller's forward arguments, and those of the pruned prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from clasp_kernels._integers import as_int
from clasp_kernels.models.adapter import Adapter
from clasp_kernels.models.columns import check_columns, prune_labels, prune_token_types
from clasp_kernels.models.compat import is_foreign_cache
from clasp_kernels.models.history import CachedPast, PrunedHistory
from clasp_kernels.models.layout import PromptImages, PrunedLayout, prune_columns
from clasp_kernels.models.masking import attention_arguments, prune_mask, without_flash_lengths
from clasp_kernels.models.selection import KeptTokens

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class PrunedPrompt:
    """What the language model gets instead, and what its cache has to remember."""

    inputs: dict[str, Any]
    layout: PrunedLayout
    """One row per prompt, before beams repeat them."""
    history: PrunedHistory
    rows: PrunedLayout
    """The same, with a row for every beam."""
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
                f"{adapter.tokens_per_image} tokens that the model makes of an image. Either the "
                f"processor counts otherwise (its patch_size, num_additional_image_tokens and "
                f"vision_feature_select_strategy must be the model's), or the prompt was cut: by "
                f"a tokenizer's max_length, or by prefill_chunk_size"
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
        last_images=tuple(last_images),
    )


def check_dtype(dtype: torch.dtype) -> None:
    """
    Raises:
        ValueError: no op computes in this dtype.
    """
    if dtype not in _DTYPES:
        names = " or ".join(map(str, _DTYPES))
        raise ValueError(f"the model's dtype must be {names}, got {dtype}")


def check_images(pixel_values: Any) -> None:
    """
    Raises:
        TypeError: the images are no tensor [images, channels, height, width].
    """
    if not isinstance(pixel_values, torch.Tensor) or pixel_values.ndim != 4:
        is_tensor = isinstance(pixel_values, torch.Tensor)
        got = list(pixel_values.shape) if is_tensor else type(pixel_values).__name__
        raise TypeError(
            f"pixel_values must be a tensor [images, channels, height, width], got {got}"
        )


def check_inputs(inputs: dict[str, Any], past: CachedPast) -> None:
    """What a prefill with images needs of forward's arguments, whatever the model family."""
    rows, length, _ = input_shape(inputs)
    cache = inputs.get("cache")
    if is_foreign_cache(cache):
        raise TypeError(
            f"past_key_values must be a Cache of transformers that is not paged where images are "
            f"pruned, got {type(cache).__name__}"
        )
    total = past.full_seen + length
    check_attention_mask(inputs.get("attention_mask"), rows, total)
    check_columns(inputs, rows, length, total)


def check_logits_to_keep(
    inputs: Mapping[str, Any], images: PromptImages, counts: Sequence[int]
) -> None:
    """
    Raises:
        ValueError: the last columns asked for are not the last columns of a pruned prompt.
    """
    wanted = as_int(inputs.get("logits_to_keep")) or 0
    dropped = sum(counts) < len(counts) * images.tokens_per_image
    if dropped and wanted > images.text_tail:
        raise ValueError(
            f"logits_to_keep is {wanted}, but only the last {images.text_tail} columns are those "
            f"of the prompt as it was given, before them tokens of images are dropped: take "
            f"all logits, and handle.last.columns tells which column each is of"
        )


def prune_prompt(
    inputs: dict[str, Any],
    images: PromptImages,
    kept: KeptTokens,
    past: CachedPast,
    *,
    embed: torch.nn.Module,
    text_config: Any,
    packed: torch.Tensor | None,
    repeats: int,
    compact: bool,
) -> PrunedPrompt:
    """Forward arguments without the dropped columns. ``inputs`` is left as it is.

    ``packed`` [rows, columns] numbers the samples that a row holds, None where it holds one.
    """
    indices = kept.indices.to(images.is_placeholder.device)
    # Who asks for the last columns counts padding, which then stays.
    layout = prune_columns(
        images, indices, kept.counts, keep_right=bool(inputs.get("logits_to_keep"))
    )
    rows_layout = layout.repeat(repeats)
    _, length, _ = input_shape(inputs)

    positions = inputs.get("position_ids")
    if positions is None:  # as the language model would count
        positions = torch.arange(length, device=layout.source.device)[None] + past.full_seen

    embeds = _prune_embeds(inputs, rows_layout, embed)
    features = kept.flat_features().to(embeds.device, embeds.dtype).split(list(kept.counts))
    features = _repeat_per_prompt(features, images.per_prompt, repeats)
    visual = rows_layout.is_visual[..., None].to(embeds.device)
    mask = prune_mask(inputs.get("attention_mask"), rows_layout, past, past.full_seen + length)
    renumbering = None
    if compact:
        renumbering = rows_layout.dropped
        if past.history.renumbering is not None:
            renumbering = renumbering + past.history.renumbering
    history = PrunedHistory(
        full_length=past.full_seen + length,
        pruned_length=past.seen + layout.length,
        text_tail=images.text_tail if layout.keeps_right else 0,
        attention_mask=None if mask is None else mask.bool(),
        renumbering=renumbering,
    )

    attention = attention_arguments(
        inputs, mask, packed, rows_layout, past, text_config=text_config, dtype=embeds.dtype
    )
    pruned: dict[str, Any] = {
        **without_flash_lengths(inputs),
        **attention,
        **prune_labels(inputs, rows_layout),
        **prune_token_types(inputs, rows_layout),
        "inputs_embeds": embeds.masked_scatter(visual, torch.cat(features)),
        "position_ids": _prune_positions(positions, rows_layout, past, compact),
    }
    if inputs.get("logits_to_keep") is not None:
        pruned["logits_to_keep"] = as_int(inputs["logits_to_keep"])
    for spent in ("input_ids", "pixel_values", "cache_position"):  # no release reads the last
        pruned.pop(spent, None)
    return PrunedPrompt(pruned, layout, history, rows_layout, features)


def _prune_embeds(
    inputs: dict[str, Any], layout: PrunedLayout, embed: torch.nn.Module
) -> torch.Tensor:
    if inputs.get("input_ids") is not None:
        embeds: torch.Tensor = embed(layout.take(inputs["input_ids"]))
        return embeds
    return inputs["inputs_embeds"].take_along_dim(layout.source[..., None], dim=1)


def _prune_positions(
    position_ids: torch.Tensor, layout: PrunedLayout, past: CachedPast, compact: bool
) -> torch.Tensor:
    rows, device = layout.source.shape[0], layout.source.device
    position_ids = past.history.positions(position_ids.to(device)).expand(rows, -1)
    positions = layout.take(position_ids)
    return positions - layout.dropped_before if compact else positions


def input_shape(inputs: Mapping[str, Any]) -> tuple[int, int, torch.device]:
    """Rows, columns and device of the tokens a forward is given."""
    tokens, embeds = inputs.get("input_ids"), inputs.get("inputs_embeds")
    if (tokens is None) == (embeds is None):
        raise ValueError("pass exactly one of input_ids and inputs_embeds")
    given = embeds if tokens is None else tokens
    assert given is not None
    name, dims = ("inputs_embeds", 3) if tokens is None else ("input_ids", 2)
    if not isinstance(given, torch.Tensor) or given.ndim != dims:
        got = list(given.shape) if isinstance(given, torch.Tensor) else type(given).__name__
        raise TypeError(f"{name} must be a tensor of {dims} dimensions, rows first, got {got}")
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
