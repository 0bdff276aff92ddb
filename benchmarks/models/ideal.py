"""The ideals: a model whose decoder layers are given few visual tokens for free.

The first so many of the visual tokens are taken by slicing, without salience, selection or
bookkeeping. The vision tower, the projector and every layer do the work of the unpruned model, so
the time of an ideal over that of pruning to the same lengths says what pruning costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from clasp_kernels.models.compat import cache_name, image_tower, native_cache, output_cache

from .shapes import Shape


def embed_prompt(model: Any, shape: Shape, prompt: Mapping[str, Tensor], num_tokens: int) -> Tensor:
    """[B, text + num_tokens, D]: the prompt with the first so many of its visual tokens."""
    tower = image_tower(model)
    outputs = tower(prompt["pixel_values"], output_hidden_states=True, return_dict=True)
    features = outputs.hidden_states[model.config.vision_feature_layer][:, 1 : 1 + num_tokens]
    visual = model.model.multi_modal_projector(features)
    ids = prompt["input_ids"]
    text = torch.cat([ids[:, : shape.text_before], ids[:, -shape.text_after :]], dim=1)
    before, after = model.get_input_embeddings()(text).split(
        [shape.text_before, shape.text_after], dim=1
    )
    return torch.cat([before, visual, after], dim=1)


class InputIdeal:
    """The language model called on a prompt with ``budget`` visual tokens."""

    def __init__(self, model: Any, shape: Shape, prompt: Mapping[str, Tensor], budget: int) -> None:
        self._model, self._shape, self._prompt, self._budget = model, shape, prompt, budget
        self._cache_name = cache_name(model.model.language_model, "forward")

    def prefill(self) -> tuple[Tensor, Any]:
        embeds = embed_prompt(self._model, self._shape, self._prompt, self._budget)
        outputs = self._model.model.language_model(inputs_embeds=embeds, use_cache=True)
        return self._last_logits(outputs), output_cache(outputs)

    def step(self, tokens: Tensor, cache: Any, seen: int) -> Tensor:
        past = native_cache({"cache": cache}, self._cache_name)
        outputs = self._model.model.language_model(input_ids=tokens, use_cache=True, **past)
        return self._last_logits(outputs)

    def _last_logits(self, outputs: Any) -> Tensor:
        logits: Tensor = self._model.lm_head(outputs.last_hidden_state[:, -1])
        return logits


class ProgressiveIdeal:
    """The decoder layers one after the other, with columns sliced off at each stage."""

    def __init__(
        self,
        model: Any,
        shape: Shape,
        prompt: Mapping[str, Tensor],
        stages: Mapping[int, int],
    ) -> None:
        """``stages``: the visual tokens that go on, by how many layers have run."""
        self._model, self._shape, self._prompt, self._stages = model, shape, prompt, stages
        self._decoder = model.model.language_model
        self._cache_name = cache_name(self._decoder.layers[0], "forward")

    def prefill(self) -> tuple[Tensor, Any]:
        from transformers import DynamicCache

        cache = DynamicCache(config=self._model.config.get_text_config())
        embeds = embed_prompt(self._model, self._shape, self._prompt, self._shape.num_tokens)
        positions = torch.arange(embeds.shape[1], device=embeds.device)[None]
        return self._decode(embeds, positions, cache, self._stages), cache

    def step(self, tokens: Tensor, cache: Any, seen: int) -> Tensor:
        embeds = self._model.get_input_embeddings()(tokens)
        positions = torch.full((1, 1), seen, device=embeds.device)
        return self._decode(embeds, positions, cache, {})

    def _decode(
        self, hidden_states: Tensor, positions: Tensor, cache: Any, stages: Mapping[int, int]
    ) -> Tensor:
        cos, sin = self._decoder.rotary_emb(hidden_states, position_ids=positions)
        for index, layer in enumerate(self._decoder.layers):
            if index in stages:
                stop = self._shape.text_before + stages[index]
                hidden_states, positions, cos, sin = (
                    torch.cat([it[:, :stop], it[:, -self._shape.text_after :]], dim=1)
                    for it in (hidden_states, positions, cos, sin)
                )
            # Without a mask, attention is causal where there is more than one query.
            hidden_states = layer(
                hidden_states,
                attention_mask=None,
                position_ids=positions,
                position_embeddings=(cos, sin),
                use_cache=True,
                **native_cache({"cache": cache}, self._cache_name),
            )
        logits: Tensor = self._model.lm_head(self._decoder.norm(hidden_states)[:, -1])
        return logits
