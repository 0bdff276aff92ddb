"""Gemma 3: a SigLIP tower with pooled patches; attention within an image is bidirectional."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from clasp_kernels.models.families._positions import counted_positions
from clasp_kernels.models.families._siglip import SiglipAdapter
from clasp_kernels.policy import Profile


class Gemma3Adapter(SiglipAdapter):
    """``Gemma3ForConditionalGeneration``.

    Patches are averaged as in the model's pooling. The processor's crops of an image (pan and scan)
    are separate in the prompt, so each counts as an image. Attention between the tokens of an image
    is bidirectional, marked by ``token_type_ids``. Without these, it is causal, pruned or not.
    """

    model_class = "Gemma3ForConditionalGeneration"
    inner_class = "Gemma3Model"
    parts = ("avg_pool",)
    no_projector = "takes tokens one by one, but this model pools patches"

    def __init__(self, model: Any, profile: Profile, fuse_into: str) -> None:
        super().__init__(model, profile, fuse_into)
        embed: Any = model.get_input_embeddings()
        vocabulary = embed.num_embeddings
        if not 0 <= self._token_id < vocabulary:
            raise ValueError(
                f"config.image_token_id is {self._token_id}, which a vocabulary of {vocabulary} "
                f"tokens does not have"
            )

    def patches_to_a_side(self, config: Any) -> int:
        return self._patches // int(config.mm_tokens_per_image**0.5)

    def by_token(self, projector: Any, patches: torch.Tensor) -> torch.Tensor:
        grid = patches.transpose(1, 2).unflatten(2, (self._patches, self._patches))
        pooled: torch.Tensor = projector.avg_pool(grid)
        return pooled.flatten(2).transpose(1, 2)

    def untrained(self, model: Any) -> dict[str, torch.nn.Module]:
        projector = self.inner_model(model).multi_modal_projector
        return {**super().untrained(model), "the projector": projector}

    def features(self, projector: Any, patches: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = projector(patches)
        return projected

    def project(self, model: Any, tokens: torch.Tensor) -> torch.Tensor:
        return tokens

    def positions(self, model: Any, inputs: Mapping[str, Any], past: int) -> torch.Tensor:
        return counted_positions(inputs, past)

    def later_positions(self, model: Any, past: int, columns: int, rows: int) -> torch.Tensor:
        return torch.arange(past, past + columns)[None]
