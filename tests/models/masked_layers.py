"""The oracle inside the decoder: the unpatched model, with dropped tokens masked layer by layer.

A token that is dropped after l layers is visible in layers 0..l-1 and masked as a key in every
later layer. The dropped tokens are derived from the ``indices`` of the stages only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from tiny_llava import IMAGE_TOKEN, TOKENS_PER_IMAGE

from clasp_kernels.models import PrefillRecord


def kept_in_layers(
    model: Any,
    prompt: dict[str, torch.Tensor],
    record: PrefillRecord,
    groups: Sequence[tuple[int, Sequence[int]]] | None = None,
) -> list[torch.Tensor]:
    """Return the remaining columns in each decoder layer, [prompts, columns] bool.

    ``groups`` has (placeholder id, tokens of each item in the batch) for images and for videos.
    """
    if groups is None:
        images = int((prompt["input_ids"] == IMAGE_TOKEN).sum()) // TOKENS_PER_IMAGE
        groups = [(IMAGE_TOKEN, [TOKENS_PER_IMAGE] * images)]
    input_ids = prompt["input_ids"]
    everything = prompt["attention_mask"].bool()
    by_stage = {0: everything}
    for stage in record.stages:
        kept = everything.clone()
        chosen_of = iter(stage.indices)
        for token_id, counts in groups:
            places = (input_ids == token_id).nonzero()  # in row-major order
            for tokens in places.split(list(counts)):
                rows, columns = tokens.T
                chosen = next(chosen_of)
                kept[rows, columns] = False
                chosen = chosen[chosen >= 0]
                kept[rows[chosen], columns[chosen]] = True
        by_stage[stage.layer or 0] = kept
    layers = range(model.config.get_text_config().num_hidden_layers)
    return [by_stage[max(first for first in by_stage if first <= layer)] for layer in layers]


def embedded(model: Any, prompt: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the prompt as embeddings that include the images. Before transformers 5.20, beams of
    the unpatched model mix up the images of prompts with several images."""
    features = model.get_image_features(prompt["pixel_values"], return_dict=True).pooler_output
    embeds = model.get_input_embeddings()(prompt["input_ids"])
    is_image = (prompt["input_ids"] == IMAGE_TOKEN)[..., None]
    embeds = embeds.masked_scatter(is_image, torch.cat(list(features)))
    return {"inputs_embeds": embeds, "attention_mask": prompt["attention_mask"]}


@contextmanager
def layers_masked(model: Any, kept: list[torch.Tensor]) -> Iterator[None]:
    """Mask all prompt columns but ``kept`` in each decoder layer of an unpatched model.

    Columns after the prompt are visible. Repeated rows of a prompt (beams) must be adjacent.
    """
    hooks = []

    def mask(layer: int) -> Any:
        def hook(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            rows, new = hidden.shape[:2]
            cache = kwargs.get("cache", kwargs.get("past_key_values"))
            past = 0 if cache is None else int(cache.get_seq_length(layer))
            seen = kept[layer].repeat_interleave(rows // len(kept[layer]), dim=0)
            later = past + new - seen.shape[1]
            seen = torch.cat([seen, seen.new_ones(rows, later)], dim=1)
            query, key = torch.arange(past, past + new)[:, None], torch.arange(past + new)[None]
            allowed = (key <= query) & seen[:, None, None] | (key == query)
            least = torch.finfo(hidden.dtype).min
            attention_mask = torch.zeros(allowed.shape).masked_fill(~allowed, least)
            return args, {**kwargs, "attention_mask": attention_mask}

        return hook

    for number, layer in enumerate(model.get_decoder().layers):
        hooks.append(layer.register_forward_pre_hook(mask(number), with_kwargs=True))
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()
