"""LLaVA 1.5: a CLIP tower, whose tokens a projector takes one by one, and a Llama."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from clasp_kernels.models.compat import image_tower

from .shape import Shape, Tower


@dataclass(frozen=True, kw_only=True)
class LlavaShape(Shape):
    """A ``LlavaForConditionalGeneration``."""

    family: ClassVar[str] = "LLaVA 1.5"
    image_size: int
    patch_size: int

    @property
    def num_tokens(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    def config(self) -> Any:
        from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

        return LlavaConfig(
            vision_config=CLIPVisionConfig(
                **_tower_arguments(self.vision),
                image_size=self.image_size,
                patch_size=self.patch_size,
            ),
            text_config=LlamaConfig(
                **_tower_arguments(self.text),
                vocab_size=self.vocabulary,
                max_position_embeddings=4096,
            ),
            image_token_index=self.vocabulary - 1,
        )

    def image_arguments(
        self, model: Any, input_ids: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        size = (len(input_ids), 3, self.image_size, self.image_size)
        return {"pixel_values": torch.randn(size, generator=generator)}

    def visual_features(self, model: Any, prompt: Mapping[str, Tensor], num_tokens: int) -> Tensor:
        """Only the tokens that are wanted go through the projector."""
        tower = image_tower(model)
        outputs = tower(prompt["pixel_values"], output_hidden_states=True, return_dict=True)
        features = outputs.hidden_states[model.config.vision_feature_layer]
        visual: Tensor = model.model.multi_modal_projector(features[:, 1 : 1 + num_tokens])
        return visual

    def positions(self, model: Any, prompt: Mapping[str, Tensor]) -> Tensor:
        return torch.arange(self.prompt_length, device=model.device)[None]


def _tower_arguments(tower: Tower) -> dict[str, Any]:
    return {
        "num_hidden_layers": tower.layers,
        "hidden_size": tower.width,
        "intermediate_size": tower.mlp_width,
        "num_attention_heads": tower.heads,
    }
