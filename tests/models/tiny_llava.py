"""A LLaVA small enough to test with: real classes, random weights, no files."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from clasp_kernels.policy import CategoryPolicy, Profile

IMAGE_TOKEN = 60
PAD_TOKEN = 0
VOCABULARY = 64
TOKENS_PER_IMAGE = 36


def tiny_llava(
    *,
    vision_layers: int = 5,
    decoder_layers: int = 4,
    attn_implementation: str = "sdpa",
    **overrides: object,
) -> LlavaForConditionalGeneration:
    """36 patches and a CLS token; decoder layers with 4 heads on 2."""
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=vision_layers,
            num_attention_heads=4,
            image_size=24,
            patch_size=4,
        ),
        text_config=LlamaConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=decoder_layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=VOCABULARY,
            max_position_embeddings=512,
            pad_token_id=PAD_TOKEN,
            bos_token_id=1,
            eos_token_id=None,
            attn_implementation=attn_implementation,
        ),
        image_token_id=IMAGE_TOKEN,
        **overrides,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    model.set_attn_implementation(attn_implementation)
    # The library's initialisation is so small that every token would look alike: attention flat,
    # logits tied. Larger weights make a wrongly masked or placed token visible.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                scale = 1.0 if "embed" in name else 1.6 / parameter[0].numel() ** 0.5
                parameter.normal_(0.0, scale)
    model.generation_config.pad_token_id = PAD_TOKEN
    return model


def tiny_profile(**overrides: object) -> Profile:
    fields: dict[str, object] = {
        "name": "tiny",
        "model_type": "llava",
        "layers": (-4, -3, -2),
        "source": "a test",
        "categories": {
            "general": CategoryPolicy((0.2, 0.3, 0.5), 0.5),
            "ocr": CategoryPolicy((0.6, 0.4, 0.0), 0.75),
            "counting": CategoryPolicy((0.0, 0.5, 0.5), 0.25),
            "spatial": CategoryPolicy((0.1, 0.1, 0.8), 0.5, budget_scale=0.5),
        },
    }
    return Profile(**{**fields, **overrides})


def images(count: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, 24, 24, generator=torch.Generator().manual_seed(seed))


def prompts(*rows: list[int | str], padding_side: str = "left") -> dict[str, torch.Tensor]:
    """``input_ids`` and ``attention_mask`` of rows of token ids, "image" standing for an image."""
    ids = [
        [
            t
            for item in row
            for t in ([IMAGE_TOKEN] * TOKENS_PER_IMAGE if item == "image" else [item])
        ]
        for row in rows
    ]
    width = max(map(len, ids))
    padded, mask = [], []
    for row in ids:
        pad = [PAD_TOKEN] * (width - len(row))
        padded.append(pad + row if padding_side == "left" else row + pad)
        ones, zeros = [1] * len(row), [0] * len(pad)
        mask.append(zeros + ones if padding_side == "left" else ones + zeros)
    return {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask)}


def image_features(outputs: Any) -> torch.Tensor:
    """[tokens, width]: the image features of a forward, where this transformers has them."""
    if hasattr(outputs, "image_outputs"):
        return torch.cat(outputs.image_outputs.pooler_output)
    return outputs.image_hidden_states
