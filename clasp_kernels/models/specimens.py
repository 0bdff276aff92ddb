"""Tiny models with random weights, one a family: real classes of transformers, no files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

IMAGE_TOKEN = 60
PAD_TOKEN = 0
VOCABULARY = 64


@dataclass(frozen=True)
class Specimen:
    """How to make a family's tiny model, and images for any model of the family."""

    build: Callable[..., Any]
    """A model; ``attn_implementation=`` names its attention."""
    images: Callable[[Any, int, torch.Generator], dict[str, torch.Tensor]]
    """What ``forward`` takes for so many random images, by argument."""
    salience: Callable[[Any, dict[str, torch.Tensor], int], torch.Tensor]
    """[images, N]: a reference for the scores, from the attentions that an eager model returns.
    The last argument takes it from a layer so many layers before the right one."""


def tiny_llava(
    *,
    vision_layers: int = 5,
    decoder_layers: int = 4,
    attn_implementation: str = "sdpa",
    text_config: Callable[..., Any] | None = None,
    **overrides: Any,
) -> Any:
    """36 patches and a CLS token; decoder layers with 4 heads on 2. The same weights each time.

    ``text_config`` makes the language model's config, a Llama's by default.
    """
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    text: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": decoder_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 512,
        "pad_token_id": PAD_TOKEN,
        "bos_token_id": 1,
        "eos_token_id": None,
        "attn_implementation": attn_implementation,
    }
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=vision_layers,
            num_attention_heads=4,
            image_size=24,
            patch_size=4,
        ),
        text_config=(text_config or LlamaConfig)(**text),
        **{"image_token_id": IMAGE_TOKEN, **overrides},
    )
    return _with_visible_weights(LlavaForConditionalGeneration, config, attn_implementation)


def _with_visible_weights(model_class: Any, config: Any, attn_implementation: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = model_class(config).eval().float()
        model.set_attn_implementation(attn_implementation)
        # The library's initialisation is so small that every token would look alike: attention
        # flat, logits tied. Larger weights make a wrongly masked or placed token visible.
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1:
                    scale = 1.0 if "embed" in name else 1.6 / parameter[0].numel() ** 0.5
                    parameter.normal_(0.0, scale)
    model.generation_config.pad_token_id = PAD_TOKEN
    return model


def _square_images(model: Any, count: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    vision = model.config.vision_config
    size = (count, vision.num_channels, vision.image_size, vision.image_size)
    return {"pixel_values": torch.randn(size, generator=generator, dtype=torch.float32)}


def _cls_attention(model: Any, images: dict[str, torch.Tensor], layers_before: int) -> torch.Tensor:
    tower = model.get_encoder(modality="image")
    attentions = tower(images["pixel_values"], output_attentions=True).attentions
    layer: torch.Tensor = attentions[model.config.vision_feature_layer - layers_before]
    return layer.mean(1)[:, 0, 1:]


#: By ``config.model_type``, one for each that ``apply_clasp`` takes.
SPECIMENS: dict[str, Specimen] = {"llava": Specimen(tiny_llava, _square_images, _cls_attention)}
