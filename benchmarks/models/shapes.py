"""LLaVA-1.5-shaped models with random weights, and prompts for them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PAPER_STAGES, PAPER_LAYERS = (2, 6, 15), 32


@dataclass(frozen=True)
class Tower:
    """A stack of transformer layers."""

    layers: int
    width: int
    mlp_width: int
    heads: int


@dataclass(frozen=True)
class Shape:
    """A model and the prompts it is measured with."""

    vision: Tower
    text: Tower
    image_size: int
    patch_size: int
    vocabulary: int
    text_before: int
    """Tokens of text before the image, as of a system prompt."""
    text_after: int
    """Tokens of text after the image: the question."""
    budgets: tuple[int, ...]
    """Visual tokens kept, on average over the decoder layers."""
    batches: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Visual tokens of an image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def prompt_length(self) -> int:
        return self.text_before + self.num_tokens + self.text_after


SHAPES = {
    "7b": Shape(
        vision=Tower(24, 1024, 4096, 16),
        text=Tower(32, 4096, 11008, 32),
        image_size=336,
        patch_size=14,
        vocabulary=32064,
        text_before=40,
        text_after=24,
        budgets=(192, 128, 64),
        batches=(1, 4),
    ),
    # The same images and prompts. The tower has a quarter of its layers: whole, it would hold as
    # many parameters as this decoder, which at 7b has 22 times as many.
    "0.4b": Shape(
        vision=Tower(6, 1024, 4096, 16),
        text=Tower(16, 1152, 3072, 9),
        image_size=336,
        patch_size=14,
        vocabulary=32064,
        text_before=40,
        text_after=24,
        budgets=(192, 128, 64),
        batches=(1, 4),
    ),
    # For tests.
    "tiny": Shape(
        vision=Tower(4, 32, 64, 4),
        text=Tower(6, 32, 64, 4),
        image_size=24,
        patch_size=4,
        vocabulary=64,
        text_before=5,
        text_after=3,
        budgets=(18, 12),
        batches=(1, 2),
    ),
}


def build(shape: Shape, device: torch.device, dtype: torch.dtype) -> Any:
    """A ``LlavaForConditionalGeneration`` whose random weights are made on the device."""
    from transformers import (
        AutoModelForImageTextToText,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
    )

    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            **_tower_arguments(shape.vision),
            image_size=shape.image_size,
            patch_size=shape.patch_size,
        ),
        text_config=LlamaConfig(
            **_tower_arguments(shape.text),
            vocab_size=shape.vocabulary,
            max_position_embeddings=4096,
        ),
        image_token_index=shape.vocabulary - 1,
    )
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        return AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()


def _tower_arguments(tower: Tower) -> dict[str, Any]:
    return {
        "num_hidden_layers": tower.layers,
        "hidden_size": tower.width,
        "intermediate_size": tower.mlp_width,
        "num_attention_heads": tower.heads,
    }


def twin(model: Any) -> Any:
    """A model of its own, to be patched, that shares the weights."""
    weights = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in weights})


def make_prompt(shape: Shape, model: Any, batch: int) -> dict[str, Tensor]:
    """What a processor would give: an image amid text in every row, nothing padded."""
    generator = torch.Generator().manual_seed(batch)
    ids = torch.randint(shape.vocabulary - 1, (batch, shape.prompt_length), generator=generator)
    ids[:, shape.text_before : shape.prompt_length - shape.text_after] = model.config.image_token_id
    size = (batch, 3, shape.image_size, shape.image_size)
    pixels = torch.randn(size, generator=generator)
    return {
        "input_ids": ids.to(model.device),
        "attention_mask": torch.ones_like(ids).to(model.device),
        "pixel_values": pixels.to(model.device, model.dtype),
    }


def stage_layers(shape: Shape, budget: int) -> tuple[int, ...]:
    """The paper's stages 2, 6 and 15 of 32 in proportion; the first as early as the mean needs.

    The layers before the first stage see every token, and must leave something to the others.

    Raises:
        ValueError: even the earliest first stage leaves no token to the later layers.
    """
    num_layers = shape.text.layers
    latest = (budget * num_layers - 1) // shape.num_tokens
    if latest < 1:
        raise ValueError(
            f"{budget} of {shape.num_tokens} tokens on average over {num_layers} layers leave "
            f"none to the layers after the first, which sees all of them"
        )
    layers: list[int] = []
    for stage in PAPER_STAGES:
        earliest = layers[-1] + 1 if layers else 1
        layers.append(max(round(stage * num_layers / PAPER_LAYERS), earliest))
    layers[0] = min(layers[0], latest)
    return tuple(layers)
