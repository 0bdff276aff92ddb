"""A model's shape: how large it is, and how its family builds it and reads an image."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

PAPER_STAGES, PAPER_LAYERS = (2, 6, 15), 32
SPECIAL_TOKENS = 4  # the last ids of every vocabulary, which text never uses


@dataclass(frozen=True)
class Tower:
    """A stack of transformer layers."""

    layers: int
    width: int
    mlp_width: int
    heads: int
    key_heads: int | None = None
    """Heads of keys and values; None where each head has its own."""


@dataclass(frozen=True, kw_only=True)
class Shape(ABC):
    """A model and the prompts it is measured with. A subclass is a family."""

    family: ClassVar[str]
    """The family's name, as the README writes it."""
    vision: Tower
    text: Tower
    vocabulary: int
    text_before: int
    """Tokens of text before the image, as of a system prompt."""
    text_after: int
    """Tokens of text after the image: the question."""
    budgets: tuple[int, ...]
    """Visual tokens kept, on average over the decoder layers."""
    batches: tuple[int, ...]

    @property
    @abstractmethod
    def num_tokens(self) -> int:
        """Visual tokens of an image."""

    @abstractmethod
    def config(self) -> Any:
        """The model's configuration."""

    @abstractmethod
    def image_arguments(
        self, model: Any, input_ids: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The images of these prompts, one each: what ``forward`` takes beside text."""

    @abstractmethod
    def visual_features(self, model: Any, prompt: Mapping[str, Tensor], num_tokens: int) -> Tensor:
        """[B, num_tokens, text width]: the first so many visual tokens of each image."""

    @abstractmethod
    def positions(self, model: Any, prompt: Mapping[str, Tensor]) -> Tensor:
        """[..., 1 or B, prompt_length]: the position ids of the unpruned model."""

    @property
    def prompt_length(self) -> int:
        return self.text_before + self.num_tokens + self.text_after


def build(shape: Shape, device: torch.device, dtype: torch.dtype) -> Any:
    """A model whose random weights are made on the device."""
    from transformers import AutoModelForImageTextToText

    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        return AutoModelForImageTextToText.from_config(shape.config(), dtype=dtype).eval()


def twin(model: Any) -> Any:
    """A model of its own, to be patched, that shares the weights."""
    weights = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in weights})


def make_prompt(shape: Shape, model: Any, batch: int) -> dict[str, Tensor]:
    """What a processor would give: an image amid text in every row, nothing padded."""
    generator = torch.Generator().manual_seed(batch)
    text_ids = shape.vocabulary - SPECIAL_TOKENS
    ids = torch.randint(text_ids, (batch, shape.prompt_length), generator=generator)
    ids[:, shape.text_before : shape.prompt_length - shape.text_after] = model.config.image_token_id
    prompt = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        **shape.image_arguments(model, ids, generator),
    }
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else None)
        for name, value in prompt.items()
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
