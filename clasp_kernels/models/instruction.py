"""The instruction of a prompt: its text, and its attention to each column inside the decoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from clasp_kernels import attention_salience
from clasp_kernels.models.capture import CapturedAttention
from clasp_kernels.models.layout import PromptImages
from clasp_kernels.upload import upload


@dataclass(frozen=True)
class InstructionRows:
    """The query rows of each prompt whose attention is summed: its last ``counts`` rows."""

    stops: tuple[int, ...]
    """The end of each prompt (exclusive), without generated columns."""
    counts: tuple[int, ...]
    """Number of rows of each prompt, at least 1."""


def instruction_columns(images: PromptImages, appended: int) -> torch.Tensor:
    """Return which columns hold the text that visual tokens are compared with, [prompts, columns].

    It is the text after a prompt's last image, or all of its text if none follows. The last
    ``appended`` columns were generated and do not count.
    """
    device = images.tokens.device
    column = torch.arange(images.columns, device=device)
    starts = [start for start, _ in images.spans]
    stops = [min(stop, images.columns - appended) for _, stop in images.spans]
    firsts = [
        last if last < stop else start
        for start, stop, last in zip(starts, stops, images.last_images, strict=True)
    ]
    is_text = images.tokens < 0
    if images.separators is not None:
        is_text = is_text & ~images.separators
    inside = (column >= upload(firsts, device)[:, None]) & (column < upload(stops, device)[:, None])
    return is_text & inside


def instruction_salience(
    attention: CapturedAttention, rows: InstructionRows, cached: int, valid: torch.Tensor | None
) -> torch.Tensor:
    """Return the attention from the instruction to each column, [prompts, columns] float32.

    Args:
        attention: query and key of one layer, one row per prompt. Keys after the prompt's columns,
            which a static cache has, are ignored.
        rows: the query rows whose attention counts.
        cached: number of cached columns before the prompts.
        valid: [prompts, cached + columns] bool, False for padding; None without padding.
    """
    query, key = attention.query, attention.key
    assert query is not None and key is not None
    prompts, _, columns, _ = query.shape
    device = query.device
    last = max(rows.stops)
    most = max(rows.counts)
    # Shift prompts to the right so that all end at the same column: then one query range fits all.
    shifts = [last - stop for stop in rows.stops]
    shift = upload(shifts, device)[:, None] if any(shifts) else None
    query, key = query[:, :, :last], key[:, :, : cached + last]
    if valid is not None:
        valid = valid[:, : cached + last].to(device)
    if shift is not None:
        if valid is None:
            valid = torch.ones(prompts, cached + last, dtype=torch.bool, device=device)
        query, key = _shifted(query, shift), _shifted(key, shift)
        source = torch.arange(cached + last, device=device) - shift
        valid = valid.gather(1, source.clamp_min(0)) & (source >= 0)
    weights = None
    if valid is not None or any(count != most for count in rows.counts):
        row = torch.arange(most, device=device)
        counted = row >= most - upload(rows.counts, device)[:, None]
        if valid is not None:  # masked tokens within the instruction do not score either
            counted &= valid[:, -most:]
        weights = counted.float()
    salience = attention_salience(
        query[:, :, last - most :],
        key,
        scale=attention.scale,
        causal=True,
        key_valid=valid,
        query_weights=weights,
        key_range=(cached, cached + last),
    )
    salience = torch.nn.functional.pad(salience, (0, columns - last))
    if shift is not None:
        source = torch.arange(columns, device=device) + shift
        salience = salience.gather(1, source.clamp_max(columns - 1))
    return salience


def _shifted(states: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Shift each prompt of [prompts, heads, columns, head_dim] to the right by its ``shift``."""
    source = (torch.arange(states.shape[2], device=states.device) - shift).clamp_min(0)
    return states.take_along_dim(source[:, None, :, None], dim=2)
