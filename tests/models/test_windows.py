"""Language models with sliding windows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_llava import images, prompts, tiny_llava, tiny_profile
from transformers import GenerationConfig, LlavaConfig, LlavaForConditionalGeneration, MistralConfig

from clasp_kernels.models import apply_clasp
from clasp_kernels.models.compat import attention_window, output_cache

PROMPT = {**prompts([1, "image", 5, 6, 7]), "pixel_values": images(1)}  # 40 columns
REFUSED = r"sliding window of 48 tokens, but prompt and answer have 49"


def with_window(window: int | None) -> LlavaForConditionalGeneration:
    config: LlavaConfig = tiny_llava().config
    config.text_config = MistralConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        sliding_window=window,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 1.0 if "embed" in name else 0.3)
    return model


@pytest.mark.parametrize(
    ("fields", "window"),
    [
        ({}, None),
        ({"sliding_window": None}, None),
        ({"sliding_window": 7}, 7),
        ({"sliding_window": 7, "use_sliding_window": False}, None),
        ({"sliding_window": 7, "layer_types": ["full_attention"]}, None),
        ({"sliding_window": 7, "layer_types": ["full_attention", "sliding_attention"]}, 7),
        ({"attention_chunk_size": 9, "layer_types": ["chunked_attention"]}, 9),
        ({"sliding_window": 7, "attention_chunk_size": 9, "layer_types": ["full_attention"]}, None),
    ],
)
def test_the_window_of_a_config(fields: dict[str, Any], window: int | None) -> None:
    assert attention_window(SimpleNamespace(**fields)) == window


@pytest.mark.parametrize("window", [None, 48])
def test_within_the_window_nothing_is_lost(window: int | None) -> None:
    model = with_window(window)
    with apply_clasp(model, budget=10, profile=tiny_profile(), fuse_into="selection") as handle:
        out = model.generate(
            **PROMPT,
            categories="ocr",
            max_new_tokens=8,
            output_logits=True,
            return_dict_in_generate=True,
        )
        assert handle.last is not None
        kept = handle.last.stages[0].indices[0]
    new = len(out.logits)
    mask = torch.cat([PROMPT["attention_mask"], torch.ones(1, new, dtype=torch.int64)], 1)
    mask[0, 1:37] = 0
    mask[0, 1 + kept] = 1
    masked = model(
        out.sequences,
        PROMPT["pixel_values"],
        attention_mask=mask,
        position_ids=torch.arange(mask.shape[1])[None],
    ).logits[0, 39:-1]
    torch.testing.assert_close(torch.cat(out.logits), masked, atol=1e-4, rtol=0)


def test_a_prompt_longer_than_the_window() -> None:
    model = with_window(12)
    with (
        apply_clasp(model, budget=10, profile=tiny_profile()),
        pytest.raises(
            ValueError, match=r"window of 12 tokens, .* have 40 \(dropped tokens included\)"
        ),
    ):
        model(**PROMPT, categories="ocr")


@pytest.mark.parametrize(
    "settings",
    [
        {"max_new_tokens": 9},
        {"max_length": 49},
        {"generation_config": GenerationConfig(max_new_tokens=9)},
    ],
)
def test_an_answer_longer_than_the_window_is_refused_first(settings: dict[str, Any]) -> None:
    model = with_window(48)
    seen: list[Any] = []
    model.model.vision_tower.register_forward_pre_hook(lambda *_: seen.append(1))
    with apply_clasp(model, budget=10, profile=tiny_profile()):
        with pytest.raises(ValueError, match=REFUSED):
            model.generate(**PROMPT, categories="ocr", **settings)
        assert not seen
        model.generation_config.max_new_tokens = 200
        with pytest.raises(ValueError, match=REFUSED):
            model.generate(**PROMPT, categories="ocr")
        model.generate(**PROMPT, categories="ocr", max_new_tokens=8)


def test_a_conversation_that_outgrows_the_window() -> None:
    model = with_window(48)
    with apply_clasp(model, budget=10, profile=tiny_profile()):
        out = model(**PROMPT, categories="ocr", use_cache=True)
        again = torch.full((1, 8), 5)
        out = model(input_ids=again, past_key_values=output_cache(out))
        with pytest.raises(ValueError, match=REFUSED):
            model(input_ids=again[:, :1], past_key_values=output_cache(out))
        turns = torch.cat([PROMPT["input_ids"], again, again[:, :1]], 1)
        with pytest.raises(ValueError, match=REFUSED.replace("49", "50")):
            model.generate(input_ids=turns, past_key_values=output_cache(out), max_new_tokens=1)
        # Unpruned prompts may be longer.
        assert model(input_ids=torch.full((1, 60), 5)).logits.shape[1] == 60
