"""Attention masks of a pruned prompt: padding, packed samples, sliding windows.

Two assumptions of transformers break when columns are dropped. Without a mask and a cache, forward
takes gaps in the position ids for borders between packed samples. And layers with a sliding window
count columns, not positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

from clasp_kernels.models.compat import (
    attention_window,
    layer_masks,
    makes_cache,
    recurrent_kinds,
    uses_flash_attention,
)
from clasp_kernels.models.history import CachedPast
from clasp_kernels.models.layout import PrunedLayout
from clasp_kernels.upload import upload

#: Forward's arguments that tell FlashAttention where the samples of a row end.
FLASH_LENGTHS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


def check_window(text_config: Any, columns: int) -> None:
    """
    Raises:
        ValueError: ``columns`` (dropped ones included) exceeds the sliding window. The window would
            count kept columns only, and so reach further back than in the unpruned model.
    """
    window = attention_window(text_config)
    if window is not None and columns > window:
        raise ValueError(
            f"the language model has a sliding window of {window} tokens, but prompt and answer "
            f"have {columns} (dropped tokens included), and pruning would make the window reach "
            f"further back: shorten the prompt or max_new_tokens, or remove() the handle"
        )


def find_packed(
    model: Any,
    text_config: Any,
    inputs: Mapping[str, Any],
    *,
    rows: int,
    compact: bool,
    staged: bool,
) -> torch.Tensor | None:
    """Return the sample number of each column, [rows, columns], or None if no samples are packed.

    Samples are detected as the unpatched model does. Synchronises if position ids are given.

    Raises:
        ValueError: samples are packed, and the model's layers or attention implementation,
            ``compact`` positions, or pruning inside the decoder (``staged``) do not support it.
    """
    positions = inputs.get("position_ids")
    if positions is not None and positions.ndim == 3:
        positions = positions[0] if len(positions) == 4 else None  # the first axis is for text
    if positions is None:
        return None
    mask = inputs.get("attention_mask")
    flash = uses_flash_attention(text_config)
    if flash:
        if rows > 1 or (mask is not None and not mask.all()):
            return None
        if all(inputs.get(name) is not None for name in FLASH_LENGTHS):
            ends = inputs["cu_seq_lens_q"]
            column = torch.arange(positions.shape[1], device=ends.device)
            numbers = torch.bucketize(column, ends[1:-1], right=True)[None]
        else:
            numbers = (positions == 0).cumsum(-1)
            numbers = numbers - numbers[:, :1]
    elif mask is not None or inputs.get("cache") is not None or makes_cache(model, inputs):
        return None
    else:
        numbers = (positions.diff(dim=-1, prepend=positions[:, :1] - 1) != 1).cumsum(-1)
    if not numbers.any():
        return None
    recurrent = recurrent_kinds(text_config)
    if recurrent:
        raise ValueError(
            f"position_ids restart within a row (packed samples), but layers of "
            f"{' and '.join(recurrent)} cannot keep the samples separate once tokens are dropped: "
            f"give each sample its own row"
        )
    if not flash and text_config._attn_implementation not in ("sdpa", "eager"):
        raise ValueError(
            f"several samples packed into a row can be pruned with the attention implementations "
            f"sdpa, eager and FlashAttention, not with {text_config._attn_implementation!r}"
        )
    if compact:
        raise ValueError(
            "position_ids restart within a row (packed samples), which cannot be pruned with "
            "positions='compact'; apply with positions='original'"
        )
    if staged:
        raise ValueError(
            "position_ids restart within a row (packed samples), but tokens of packed samples "
            "cannot be dropped inside the decoder, because the last token of the row scores all of "
            "them: give each sample its own row, or use a schedule that prunes before the decoder"
        )
    return numbers.expand(rows, -1)


def prune_mask(
    attention_mask: torch.Tensor | None, layout: PrunedLayout, past: CachedPast, total: int
) -> torch.Tensor | None:
    """Return the mask [rows, cached and remaining columns], or None if no column is masked."""
    mask = past.mask(attention_mask, total, layout.source.shape[0])
    if mask is None:
        if not layout.has_padding:
            return None
        mask = (~layout.is_padding).long()
        return torch.cat([mask.new_ones(mask.shape[0], past.seen), mask], dim=1)
    mask = mask.to(layout.source.device)
    return torch.cat([mask[:, : past.seen], layout.take(mask[:, past.seen :])], dim=1)


def masks_of_layers(
    model: Any,
    past: CachedPast,
    full_mask: torch.Tensor | None,
    total: int,
    queries: torch.Tensor,
    cache: Any,
) -> tuple[tuple[Any, ...], tuple[int, ...]]:
    """Return the distinct masks of a decode step, and the index of each layer's mask.

    For caches whose layers hold different columns. The masks are made before the decoder runs,
    because they depend on lengths and values that compiled code should not read. ``full_mask``
    [rows, total] is the caller's, over all columns; ``queries`` [rows, new columns, 0] gives the
    dtype and device.
    """
    # With a static cache every layer has a mask anyway, so checking for all ones gains nothing.
    fixed = getattr(cache, "is_compileable", False)
    if full_mask is not None and not fixed and bool(full_mask.all()):
        full_mask = None
    different: list[Any] = []
    which: list[int] = []
    for first, stop in pairwise([0, *past.history.firsts, len(cache.layers)]):
        mask = past.at(first).mask(full_mask, total, len(queries))
        for made in layer_masks(model, queries, mask, cache, range(first, stop)):
            if not any(made is known for known in different):
                different.append(made)
            which.append(next(at for at, known in enumerate(different) if known is made))
    return tuple(different), tuple(which)


def attention_arguments(
    inputs: Mapping[str, Any],
    mask: torch.Tensor | None,
    packed: torch.Tensor | None,
    layout: PrunedLayout,
    past: CachedPast,
    *,
    text_config: Any,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Return the mask arguments with which gaps in the position ids do not split the prompt."""
    rows, device = layout.source.shape[0], layout.source.device
    flash = uses_flash_attention(text_config)
    if packed is not None and not flash:
        return {"attention_mask": _packed_mask(layout.take(packed.to(device), -1), dtype)}
    if mask is None and inputs.get("cache") is None:
        # Without mask and cache, transformers starts a new sample at every gap.
        mask = layout.source.new_ones(rows, layout.length)
    arguments: dict[str, Any] = {"attention_mask": mask}
    # FlashAttention's wrapper looks for gaps even with a mask, unless it is given the lengths.
    # Recurrent layers would take the lengths for packed samples, so they do not get them; their
    # decoders get no text position ids either (see prune_prompt).
    if rows == 1 and flash and not recurrent_kinds(text_config):
        lengths = [layout.length]
        if packed is not None:
            lengths = layout.take(packed.to(device)).flatten().bincount().tolist()
        arguments.update(flash_lengths(lengths, past.seen, device))
    return arguments


def flash_lengths(lengths: Sequence[int], cached: int, device: torch.device) -> dict[str, Any]:
    """Return FlashAttention's length arguments for samples of ``lengths`` new columns, each after
    ``cached`` columns."""
    arguments: dict[str, Any] = {}
    for side, before in (("q", 0), ("k", cached)):
        ends = [0]
        for length in lengths:
            ends.append(ends[-1] + length + before)
        arguments[f"cu_seq_lens_{side}"] = upload(ends, device, torch.int32)
        arguments[f"max_length_{side}"] = max(lengths) + before
    return arguments


def without_flash_lengths(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments without FlashAttention's lengths, which are of the unpruned prompt."""
    return {name: value for name, value in inputs.items() if name not in FLASH_LENGTHS}


def _packed_mask(numbers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return an additive block-causal mask, [rows, 1, columns, columns]."""
    columns = numbers.shape[1]
    seen = (numbers[:, :, None] == numbers[:, None, :]) & torch.ones(
        columns, columns, dtype=torch.bool, device=numbers.device
    ).tril()
    mask = torch.zeros(seen.shape, dtype=dtype, device=numbers.device)
    return mask.masked_fill(~seen, torch.finfo(dtype).min)[:, None]
