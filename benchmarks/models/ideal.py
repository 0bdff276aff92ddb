"""The ideal: a model whose decoder layers are given few visual tokens for free.

The visual tokens that go on are the first ones, taken by slicing: there is no salience, selection
or bookkeeping, and their positions are known beforehand. The vision tower, the projector and every
layer do the work of the unpruned model, so the time of an ideal over that of pruning to the same
lengths says what pruning costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from clasp_kernels.models.compat import cache_name, native_cache

from .shape import Shape


class Ideal:
    """The decoder layers one after the other, with columns sliced off at each stage."""

    def __init__(
        self,
        model: Any,
        shape: Shape,
        prompt: Mapping[str, Tensor],
        stages: Mapping[int, int],
    ) -> None:
        """``stages``: the visual tokens that go on, by how many layers have run. Those of stage 0
        enter the first layer; without it, all do."""
        self._model, self._shape, self._prompt, self._stages = model, shape, prompt, stages
        self._decoder = model.model.language_model
        self._cache_name = cache_name(self._decoder.layers[0], "forward")
        self._positions = shape.positions(model, prompt)

    def prefill(self) -> tuple[Tensor, Any]:
        from transformers import DynamicCache

        cache = DynamicCache(config=self._model.config.get_text_config())
        num_tokens = self._stages.get(0, self._shape.num_tokens)
        embeds = self._embed_prompt(num_tokens)
        positions = self._columns(self._positions, num_tokens, -1)
        return self._decode(embeds, positions, cache, self._stages), cache

    def step(self, tokens: Tensor, cache: Any, seen: int) -> Tensor:
        embeds = self._model.get_input_embeddings()(tokens)
        positions = self._positions[..., -1:] + (1 + seen - self._shape.prompt_length)
        return self._decode(embeds, positions, cache, {})

    def selection_seconds(self) -> float:
        return 0.0

    def _embed_prompt(self, num_tokens: int) -> Tensor:
        """[B, text + num_tokens, D]"""
        visual = self._shape.visual_features(self._model, self._prompt, num_tokens)
        text_ids = self._columns(self._prompt["input_ids"], 0, -1)
        text = self._model.get_input_embeddings()(text_ids)
        before, after = text.split([self._shape.text_before, self._shape.text_after], dim=1)
        return torch.cat([before, visual, after], dim=1)

    def _decode(
        self, hidden_states: Tensor, positions: Tensor, cache: Any, stages: Mapping[int, int]
    ) -> Tensor:
        rotations = self._decoder.rotary_emb(hidden_states, position_ids=positions)
        for index, layer in enumerate(self._decoder.layers):
            if index > 0 and index in stages:
                hidden_states, *rotations = (
                    self._columns(it, stages[index], -2) for it in (hidden_states, *rotations)
                )
            # Without a mask, attention is causal where there is more than one query.
            hidden_states = layer(
                hidden_states,
                attention_mask=None,
                position_embeddings=tuple(rotations),
                use_cache=True,
                **native_cache({"cache": cache}, self._cache_name),
            )
        logits: Tensor = self._model.lm_head(self._decoder.norm(hidden_states)[:, -1])
        return logits

    def _columns(self, values: Tensor, num_tokens: int, dim: int) -> Tensor:
        """The columns of the text, and of the first so many visual tokens between."""
        before = values.narrow(dim, 0, self._shape.text_before + num_tokens)
        start = values.shape[dim] - self._shape.text_after
        return torch.cat([before, values.narrow(dim, start, self._shape.text_after)], dim)
