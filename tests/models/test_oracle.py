"""Dropping tokens before the language model equals masking them in every layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from masked_model import compare_surviving, masked_inputs, reference_fusion
from tiny_llava import images, prompts, tiny_llava, tiny_profile
from transformers import LlavaForConditionalGeneration

from clasp_kernels import merge_tokens
from clasp_kernels.models import ClaspHandle, apply_clasp

BATCHES = {
    "one prompt": (prompts([1, 5, "image", 7, 8, 9]), 1, ["general"]),
    "left padding": (
        prompts([1, 5, "image", 7, 8], [1, "image", 3, 2, 9, 4, 4, 4, 8]),
        2,
        ["ocr", "counting"],
    ),
    "two images each": (
        prompts([1, "image", 5, "image", 7], [1, "image", "image", 3, 2]),
        4,
        ["counting", "general"],
    ),
    "different numbers of images": (
        prompts([1, 5, "image", 7, 8], [1, "image", 3, "image", 9], [4, 4, 6, 9]),
        3,
        ["general", "ocr", "general"],
    ),
    "budgets scaled by category": (
        prompts([1, 5, "image", 7, 8], [1, "image", 3, 9]),
        2,
        ["spatial", "general"],
    ),
}


@pytest.fixture(params=list(BATCHES))
def batch(request: pytest.FixtureRequest) -> tuple[dict[str, torch.Tensor], list[str]]:
    prompt, count, categories = BATCHES[request.param]
    return {**prompt, "pixel_values": images(count)}, categories


def masked(
    handle: ClaspHandle, prompt: dict[str, torch.Tensor], positions: str
) -> dict[str, torch.Tensor]:
    model = handle.model
    fused = reference_fusion(model, prompt["pixel_values"], handle)
    assert handle.last is not None
    return masked_inputs(model, prompt, handle.last, fused, positions=positions)


@pytest.mark.parametrize("positions", ["original", "compact"])
def test_prefill_logits_of_surviving_tokens(
    model: LlavaForConditionalGeneration,
    batch: tuple[dict[str, torch.Tensor], list[str]],
    positions: str,
) -> None:
    prompt, categories = batch
    handle = apply_clasp(model, budget=8, profile=tiny_profile(), positions=positions)
    position_ids = (prompt["attention_mask"].cumsum(1) - 1).clamp_min(0)
    pruned = model(**prompt, position_ids=position_ids, categories=categories).logits
    handle.remove()
    expected = model(**masked(handle, prompt, positions)).logits
    compare_surviving(pruned, expected, handle, prompt)


@pytest.mark.parametrize("merge", [False, True])
def test_fusing_into_selection_alone_leaves_features_as_they_were(
    model: LlavaForConditionalGeneration, merge: bool
) -> None:
    """Kept tokens have the model's own features or, with ``merge``, the means of groups."""
    prompt, count, categories = BATCHES["two images each"]
    prompt = {**prompt, "pixel_values": images(count)}
    with apply_clasp(
        model, budget=8, profile=tiny_profile(), fuse_into="selection", merge=merge
    ) as handle:
        pruned = model(**prompt, categories=categories).logits
    states = model.model.vision_tower(prompt["pixel_values"], output_hidden_states=True)
    features = states.hidden_states[-2][:, 1:].clone()
    assert handle.last is not None
    if merge:
        indices = handle.last.stages[0].indices
        fused = reference_fusion(model, prompt["pixel_values"], handle)
        features.scatter_(
            1, indices[..., None].expand(-1, -1, 32), merge_tokens(features, fused, indices)
        )
    inputs = masked_inputs(model, prompt, handle.last, features)
    # Without position_ids, transformers counts padding.
    inputs["position_ids"] = torch.arange(prompt["input_ids"].shape[1])[None]
    compare_surviving(pruned, model(**inputs).logits, handle, prompt)


DECODING: dict[str, dict[str, Any]] = {
    "greedy": {},
    "static cache": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
    "beams": {"num_beams": 3},
    "beams, two returned": {"num_beams": 3, "num_return_sequences": 2},
    "beams, static cache": {"num_beams": 2, "cache_implementation": "static"},
    "sampling, two returned": {"do_sample": True, "num_return_sequences": 2},
}


@pytest.mark.parametrize("decoding", list(DECODING))
def test_every_generated_step(
    model: LlavaForConditionalGeneration,
    batch: tuple[dict[str, torch.Tensor], list[str]],
    decoding: str,
) -> None:
    check_generation(model, batch, "original", DECODING[decoding])


@pytest.mark.parametrize("decoding", ["greedy", "static cache", "beams"])
def test_every_generated_step_with_compact_positions(
    model: LlavaForConditionalGeneration,
    batch: tuple[dict[str, torch.Tensor], list[str]],
    decoding: str,
) -> None:
    check_generation(model, batch, "compact", DECODING[decoding])


@pytest.mark.parametrize("positions", ["original", "compact"])
def test_eager_attention(batch: tuple[dict[str, torch.Tensor], list[str]], positions: str) -> None:
    check_generation(tiny_llava(attn_implementation="eager"), batch, positions, {})


def check_generation(
    model: LlavaForConditionalGeneration,
    batch: tuple[dict[str, torch.Tensor], list[str]],
    positions: str,
    decoding: dict[str, Any],
) -> None:
    prompt, categories = batch
    settings = {
        **decoding,
        "max_new_tokens": 6,
        "output_logits": True,
        "return_dict_in_generate": True,
        "suppress_tokens": [60],  # never generate the image placeholder
    }
    with apply_clasp(model, budget=8, profile=tiny_profile(), positions=positions) as handle:
        torch.manual_seed(3)
        pruned = model.generate(**prompt, categories=categories, **settings)

    inputs = masked(handle, prompt, positions)
    if not decoding.get("use_cache", True):
        # transformers always uses a cache to generate from embeddings.
        settings["use_cache"] = True
    torch.manual_seed(3)
    expected = model.generate(**inputs, **settings)

    length = prompt["input_ids"].shape[1]
    repeats = len(pruned.sequences) // len(prompt["input_ids"])
    whole_prompt = prompt["input_ids"].repeat_interleave(repeats, dim=0)
    assert torch.equal(pruned.sequences[:, :length], whole_prompt)
    assert torch.equal(pruned.sequences[:, length:], expected.sequences)
    for step, (ours, theirs) in enumerate(zip(pruned.logits, expected.logits, strict=True)):
        torch.testing.assert_close(
            ours, theirs, atol=1e-4, rtol=0, msg=lambda text, step=step: f"step {step}: {text}"
        )
