"""Check the forward arguments of one prefill, and build those of the pruned prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from clasp_kernels._integers import as_int
from clasp_kernels.models.adapter import Adapter, VisualGroup
from clasp_kernels.models.columns import check_columns, prune_labels, prune_token_types
from clasp_kernels.models.compat import is_foreign_cache, recurrent_kinds
from clasp_kernels.models.history import CachedPast, PrunedHistory
from clasp_kernels.models.layout import (
    PromptImages,
    PrunedLayout,
    first_numbers,
    prune_columns,
)
from clasp_kernels.models.masking import attention_arguments, prune_mask, without_flash_lengths
from clasp_kernels.models.selection import KeptTokens
from clasp_kernels.upload import upload

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class PrunedPrompt:
    """The pruned prompt, and the history that its cache must carry."""

    inputs: dict[str, Any]
    layout: PrunedLayout
    """One row per prompt, before beams repeat them."""
    history: PrunedHistory
    features: Mapping[str, Sequence[torch.Tensor]]
    """[kept tokens, text width] of each image and each video, by kind, in the order of the language
    model's rows."""


def find_images(
    adapter: Adapter, embed: torch.nn.Module, inputs: dict[str, Any], repeats: int
) -> PromptImages:
    """Find the placeholders and check that they match the images. Synchronises ``input_ids``."""
    groups = adapter.groups(inputs)
    kinds = [_placeholders(inputs, embed, group.token_id)[::repeats] for group in groups]
    is_placeholder = torch.stack(kinds).any(0)  # one row per prompt: repeated rows are the same
    attention_mask = inputs.get("attention_mask")
    rows, columns = is_placeholder.shape
    is_content = torch.ones_like(is_placeholder)
    if attention_mask is not None:
        mask = attention_mask[::repeats, -columns:].to(is_placeholder.device)
        is_content = is_placeholder | mask.bool()

    after = torch.arange(1, columns + 1, device=is_placeholder.device)
    last_images, starts, stops, *found = torch.stack(
        [
            (is_placeholder * after).amax(1),
            is_content.long().argmax(1),
            (is_content * after).amax(1),
            *(kind.sum(1) for kind in kinds),
        ]
    ).tolist()
    tokens = torch.full((rows, columns), -1, device=is_placeholder.device)
    separators = None
    counts: list[int] = []
    prompts: list[int] = []
    names: list[str] = []
    for group, kind, in_rows in zip(groups, kinds, found, strict=True):
        prompts += _prompts_of(group, in_rows)
        names += [group.kind] * len(group.counts)
        # Placeholders in row-major order belong to image after image.
        number = kind.flatten().cumsum(0).view_as(kind) - 1
        if any(group.separators):
            number = _token_numbers(group, number.device)[number.clamp_min(0)]
            between = kind & (number < 0)
            separators = between if separators is None else separators | between
        tokens = torch.where(kind & (number >= 0), number + sum(counts), tokens)
        counts += group.counts
    return PromptImages(
        tokens=tokens,
        counts=tuple(counts),
        rows=tuple(prompts),
        kinds=tuple(names),
        spans=tuple(zip(starts, stops, strict=True)),
        last_images=tuple(last_images),
        separators=separators,
    )


def _token_numbers(group: VisualGroup, device: torch.device) -> torch.Tensor:
    """Return the visual token of each placeholder of a group, [placeholders], -1 for separators."""
    starts = first_numbers(group.placeholders)
    between = [
        start + place
        for start, places in zip(starts, group.separators, strict=True)
        for place in places
    ]
    is_token = torch.ones(sum(group.placeholders), dtype=torch.bool, device=device)
    is_token[upload(between, device)] = False
    return (is_token.cumsum(0) - 1).masked_fill(~is_token, -1)


def _placeholders(inputs: Mapping[str, Any], embed: torch.nn.Module, token_id: int) -> torch.Tensor:
    """Return where the prompts have the placeholder ``token_id``, [rows, columns] bool."""
    input_ids = inputs.get("input_ids")
    if input_ids is not None:
        found: torch.Tensor = input_ids == token_id
        return found
    embeds = inputs["inputs_embeds"]
    token = torch.tensor(token_id, device=embeds.device)
    return (embeds == embed(token)).all(-1)


def _prompts_of(group: VisualGroup, placeholders: Sequence[int]) -> list[int]:
    """Return the prompt of each image, from the number of ``placeholders`` in each prompt.

    Raises:
        ValueError: images and placeholders do not match.
    """
    lengths = group.placeholders
    sizes = sorted(set(lengths))
    one = f"{sizes[0]} tokens per {group.kind}" if len(sizes) == 1 else f"{lengths} tokens"
    waiting, found = list(lengths), []
    for row, count in enumerate(placeholders):
        left = count
        while left > 0 and waiting and waiting[0] <= left:
            left -= waiting.pop(0)
            found.append(row)
        if len(sizes) == 1 and count % sizes[0]:
            raise ValueError(
                f"prompt {row} has {count} {group.kind} placeholders, which is not a multiple of "
                f"the {sizes[0]} tokens that the model makes of an {group.kind}. Either the "
                f"processor counts otherwise (its patch_size, num_additional_image_tokens and "
                f"vision_feature_select_strategy must be the model's), or the prompt was cut: by "
                f"a tokenizer's max_length, or by prefill_chunk_size"
            )
        if left and len(sizes) > 1:
            raise ValueError(
                f"prompt {row} has {count} {group.kind} placeholders, which are not those of whole "
                f"{group.kind}s in the order of {group.argument}, whose tokens are {lengths}. "
                f"Either the processor counts otherwise, or the prompt was cut: by a tokenizer's "
                f"max_length, or by prefill_chunk_size"
            )
    if sum(placeholders) != sum(lengths):
        wanted = sum(placeholders) // sizes[0] if len(sizes) == 1 else None
        places = f"{sum(placeholders)} tokens" if wanted is None else f"{wanted}, at {one}"
        raise ValueError(
            f"{group.argument} holds {len(group.counts)} {group.kind}s, but the prompts have "
            f"placeholders for {places}"
        )
    return found


def check_dtype(dtype: torch.dtype) -> None:
    """
    Raises:
        ValueError: the ops do not support this dtype.
    """
    if dtype not in _DTYPES:
        names = " or ".join(map(str, _DTYPES))
        raise ValueError(f"the model's dtype must be {names}, got {dtype}")


def check_inputs(inputs: dict[str, Any], adapter: Adapter, past: CachedPast) -> None:
    """Check the arguments of forward that do not depend on the model family."""
    rows, length, _ = input_shape(inputs)
    cache = inputs.get("cache")
    if is_foreign_cache(cache):
        raise TypeError(
            f"past_key_values must be a Cache of transformers that is not paged where images are "
            f"pruned, got {type(cache).__name__}"
        )
    total = past.full_seen + length
    check_attention_mask(inputs.get("attention_mask"), rows, total)
    check_columns(inputs, adapter, rows, length, total)


def check_logits_to_keep(
    inputs: Mapping[str, Any], images: PromptImages, counts: Sequence[int]
) -> None:
    """
    Raises:
        ValueError: the requested last columns include columns that are dropped.
    """
    wanted = as_int(inputs.get("logits_to_keep")) or 0
    dropped = sum(counts) < sum(images.counts)
    if dropped and wanted > images.text_tail:
        raise ValueError(
            f"logits_to_keep is {wanted}, but image tokens are dropped before the last "
            f"{images.text_tail} columns: ask for at most {images.text_tail}, or take all logits "
            f"and map them with handle.last.columns"
        )


def prune_prompt(
    inputs: dict[str, Any],
    images: PromptImages,
    kept: KeptTokens,
    past: CachedPast,
    *,
    embed: torch.nn.Module,
    positions: torch.Tensor,
    visual_arguments: Sequence[str],
    text_config: Any,
    packed: torch.Tensor | None,
    repeats: int,
    compact: bool,
) -> PrunedPrompt:
    """Build forward's arguments without the dropped columns. ``inputs`` is not changed.

    ``positions`` [..., 1 or rows, columns] are the position ids of the unpruned prompts. ``packed``
    [rows, columns] is the sample number of each column, None if rows hold one sample each.
    """
    indices = kept.indices.to(images.tokens.device)
    # logits_to_keep counts padding on the right, so that padding must stay.
    layout = prune_columns(
        images, indices, kept.counts, keep_right=bool(inputs.get("logits_to_keep"))
    )
    rows_layout = layout.repeat(repeats)
    _, length, _ = input_shape(inputs)

    embeds = _prune_embeds(inputs, rows_layout, embed)
    features = kept.flat(kept.features).to(embeds.device, embeds.dtype)
    rows = feature_rows(images, indices.to(embeds.device), kept.counts)
    is_visual, at = columns_with_features(layout.tokens.to(embeds.device), rows, repeats)
    embeds = torch.where(is_visual, features[at], embeds)
    if images.separators is not None:
        assert kept.separator is not None
        is_separator = rows_layout.take(images.separators.repeat_interleave(repeats, dim=0))
        separator = kept.separator.to(embeds.device, embeds.dtype)
        embeds = torch.where(is_separator.to(embeds.device)[..., None], separator, embeds)
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

    positions = _prune_positions(positions, rows_layout, past, compact)
    if len(positions) == 4 and recurrent_kinds(text_config):
        # Without the text axis: recurrent layers would start a new sample at each of its gaps.
        positions = positions[1:]
    attention = attention_arguments(
        inputs, mask, packed, rows_layout, past, text_config=text_config, dtype=embeds.dtype
    )
    pruned: dict[str, Any] = {
        **without_flash_lengths(inputs),
        **attention,
        **prune_labels(inputs, rows_layout),
        **prune_token_types(inputs, rows_layout),
        "inputs_embeds": embeds,
        "position_ids": positions,
    }
    if inputs.get("logits_to_keep") is not None:
        pruned["logits_to_keep"] = as_int(inputs["logits_to_keep"])
    # No supported release reads cache_position.
    for spent in ("input_ids", *visual_arguments, "cache_position"):
        pruned.pop(spent, None)
    by_image = features.split(list(kept.counts))
    by_kind: dict[str, list[torch.Tensor]] = {kind: [] for kind in images.kinds}
    for row in range(len(images.spans)):
        for _ in range(repeats):
            for image, kind in enumerate(images.kinds):
                if images.rows[image] == row:
                    by_kind[kind].append(by_image[image])
    return PrunedPrompt(pruned, layout, history, by_kind)


def embedded(
    inputs: Mapping[str, Any], is_text: torch.Tensor, embed: torch.nn.Module, repeats: int
) -> torch.Tensor:
    """Return the embeddings of the prompts' text, [prompts, columns, text width].

    They mean nothing where ``is_text`` [prompts, columns] is False. Each prompt has ``repeats``
    rows in ``inputs``.
    """
    if inputs.get("input_ids") is not None:
        words = inputs["input_ids"][::repeats]
        # A placeholder may be none of the vocabulary.
        states: torch.Tensor = embed(words.masked_fill(~is_text.to(words.device), 0))
        return states
    given: torch.Tensor = inputs["inputs_embeds"][::repeats]
    return given


def _prune_embeds(
    inputs: dict[str, Any], layout: PrunedLayout, embed: torch.nn.Module
) -> torch.Tensor:
    if inputs.get("input_ids") is not None:
        # A placeholder's embedding is never looked at, and it may be none of the vocabulary.
        words = layout.take(inputs["input_ids"]).masked_fill(layout.tokens >= 0, 0)
        embeds: torch.Tensor = embed(words)
        return embeds
    return inputs["inputs_embeds"].take_along_dim(layout.source[..., None], dim=1)


def _prune_positions(
    position_ids: torch.Tensor, layout: PrunedLayout, past: CachedPast, compact: bool
) -> torch.Tensor:
    rows, device = layout.source.shape[0], layout.source.device
    position_ids = past.history.positions(position_ids.to(device))
    position_ids = position_ids.expand(*position_ids.shape[:-2], rows, -1)
    positions = layout.take(position_ids)
    return positions - layout.dropped_before if compact else positions


def input_shape(inputs: Mapping[str, Any]) -> tuple[int, int, torch.device]:
    """Return rows, columns and device of the tokens in forward's arguments."""
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
    """Raise a ValueError if the mask is not [rows, columns] over all columns so far, or None."""
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


def feature_rows(
    images: PromptImages, indices: torch.Tensor, counts: Sequence[int]
) -> torch.Tensor:
    """Return the row in ``KeptTokens.flat`` of each kept visual token, [visual tokens + 1].

    Entries of dropped tokens, and the extra last entry, are undefined. ``indices`` [images, R]
    index the tokens of each image, padded with -1 after ``counts``.
    """
    device, total = indices.device, sum(images.counts)
    starts = upload(images.starts, device)[:, None]
    numbers = torch.where(indices < 0, total, indices + starts).flatten()
    firsts = upload(first_numbers(counts), device)[:, None]
    rows = torch.arange(indices.shape[1], device=device) + firsts
    place = torch.zeros(total + 1, dtype=torch.int64, device=device)
    return place.scatter_(0, numbers, rows.flatten())


def columns_with_features(
    tokens: torch.Tensor, feature_rows: torch.Tensor, repeats: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which columns hold visual tokens, [rows, columns, 1], and the rows of their features.

    ``tokens`` [prompts, columns] are ``PrunedLayout.tokens``.
    """
    if repeats > 1:
        tokens = tokens.repeat_interleave(repeats, dim=0)
    return (tokens >= 0)[..., None], feature_rows[tokens.clamp_min(0)]
