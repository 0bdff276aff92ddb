"""The oracle: the unpatched model, with dropped tokens masked as keys in every layer."""

from __future__ import annotations

from typing import Any

import torch
from tiny_llava import IMAGE_TOKEN, TOKENS_PER_IMAGE
from transformers import LlavaForConditionalGeneration

from clasp_kernels.models import PrefillRecord


def reference_fusion(
    model: LlavaForConditionalGeneration, pixel_values: torch.Tensor, handle: Any
) -> torch.Tensor:
    """Compute the profile's fused layers [images, N, D] in plain torch."""
    states = model.model.vision_tower(pixel_values, output_hidden_states=True).hidden_states
    profile, record = handle.profile, handle.last
    layers = profile.for_tower(len(states) - 1)
    rows = []
    image = 0
    for category, count in zip(record.categories, record.images_per_prompt, strict=True):
        weights = layers.weights[profile.category_id(category)]
        for _ in range(count):
            mixture = zip(weights, layers.states, strict=True)
            rows.append(sum(weight * states[state][image, 1:] for weight, state in mixture))
            image += 1
    return torch.stack(rows)


def masked_inputs(
    model: LlavaForConditionalGeneration,
    prompt: dict[str, torch.Tensor],
    record: PrefillRecord,
    vision_features: torch.Tensor,
    *,
    positions: str = "original",
) -> dict[str, torch.Tensor]:
    """Return the whole prompt as embeddings, a mask that hides dropped tokens, and position ids.

    Hidden embeddings are replaced by large noise, so that a leak changes the logits.
    """
    input_ids, attention_mask = prompt["input_ids"], prompt["attention_mask"]
    embeds = model.get_input_embeddings()(input_ids).detach().clone()
    projected = model.model.multi_modal_projector(vision_features).detach()
    mask = attention_mask.clone()
    noise = torch.Generator().manual_seed(7)
    image = 0
    for row in range(len(input_ids)):
        columns = (input_ids[row] == IMAGE_TOKEN).nonzero().flatten()
        for start in range(0, len(columns), TOKENS_PER_IMAGE):
            kept = set(record.stages[0].indices[image].tolist())
            for token, column in enumerate(columns[start : start + TOKENS_PER_IMAGE].tolist()):
                if token in kept:
                    embeds[row, column] = projected[image, token]
                else:
                    embeds[row, column] = 50 * torch.randn(embeds.shape[-1], generator=noise)
                    mask[row, column] = 0
            image += 1
    counted = attention_mask if positions == "original" else mask
    position_ids = (counted.cumsum(1) - 1).masked_fill(counted == 0, 0)
    return {"inputs_embeds": embeds, "attention_mask": mask, "position_ids": position_ids}


def compare_surviving(
    pruned: torch.Tensor,
    expected: torch.Tensor,
    handle: Any,
    prompt: dict[str, torch.Tensor],
) -> None:
    record = handle.last
    assert record is not None
    assert pruned.shape[1] == record.pruned_length < prompt["input_ids"].shape[1]
    compared = 0
    for row, columns in enumerate(record.columns.tolist()):
        for at, column in enumerate(columns):
            if column >= 0 and prompt["attention_mask"][row, column]:
                torch.testing.assert_close(
                    pruned[row, at], expected[row, column], atol=1e-4, rtol=0
                )
                compared += 1
    kept = sum(sum(stage.counts) for stage in record.stages)
    text = int((prompt["input_ids"] != 60).mul(prompt["attention_mask"]).sum())
    assert compared == kept + text  # all remaining tokens were compared
