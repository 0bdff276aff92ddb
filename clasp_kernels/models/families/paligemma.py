"""PaliGemma: a SigLIP tower, a per-token projector, bidirectional attention in the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from clasp_kernels.models.families._positions import counted_positions
from clasp_kernels.models.families._siglip import SiglipAdapter


class PaliGemmaAdapter(SiglipAdapter):
    """``PaliGemmaForConditionalGeneration``, with Gemma (1) or Gemma 2 (2) as its language model.

    Attention is bidirectional within the prompt, for image and text tokens alike: their
    ``token_type_ids`` are 0. Tokens after the prompt, generated ones or the answers of training
    samples, have 1 and causal attention. Position ids count from 1.
    """

    model_class = "PaliGemmaForConditionalGeneration"
    inner_class = "PaliGemmaModel"
    no_projector = "takes what layers leave, but this model normalises what it projects"
    sees_prompts_whole = True

    def check_call(self, model: Any, inputs: Mapping[str, Any]) -> None:
        super().check_call(model, inputs)
        if inputs.get("token_type_ids") is None:
            raise ValueError(
                "token_type_ids must be given if images of paligemma are pruned, 0 for the prompt "
                "and 1 for what follows it, as its processor makes them: without them, the "
                "model's attention implementations use different masks"
            )
        if getattr(inputs.get("cache"), "is_initialized", False):
            raise ValueError(
                "past_key_values must be a new cache if images of paligemma are pruned, because "
                "the model takes a cache that was reset for that of a later turn, whose attention "
                "is causal"
            )
        embed: Any = model.get_input_embeddings()
        embedded = inputs.get("inputs_embeds") is not None and inputs.get("input_ids") is None
        if embedded and self._token_id >= embed.num_embeddings:
            raise ValueError(
                f"inputs_embeds cannot say where images are, as config.image_token_id is "
                f"{self._token_id}, which a vocabulary of {embed.num_embeddings} tokens does not "
                f"have: give input_ids"
            )

    def features(self, projector: Any, patches: torch.Tensor) -> torch.Tensor:
        return patches

    def project(self, model: Any, tokens: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = self.inner_model(model).multi_modal_projector(tokens)
        return projected

    def positions(self, model: Any, inputs: Mapping[str, Any], past: int) -> torch.Tensor:
        return counted_positions(inputs, past + 1)

    def later_positions(self, model: Any, past: int, columns: int, rows: int) -> torch.Tensor:
        return torch.arange(past + 1, past + columns + 1)[None]
