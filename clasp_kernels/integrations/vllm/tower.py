"""Reads what the selection needs from the vision tower of vLLM's LLaVA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from clasp_kernels.models.families._projected import EncodedTiles
from clasp_kernels.models.families.llava import LlavaAdapter
from clasp_kernels.policy import Profile


class TowerAdapter(LlavaAdapter):
    """LLaVA 1.5 in vLLM: the family's adapter, but the model that ``encode`` is given is vLLM's.

    vLLM's vision tower returns neither the hidden states of several layers without the CLS token
    rule of the model, nor any attention. Both are computed from its submodules. The projections of
    one layer run twice for it, where the tower's attention scores the tokens.
    """

    def __init__(self, config: Any, profile: Profile, fuse_into: str) -> None:
        """
        Raises:
            ValueError: config and profile do not fit.
        """
        if not isinstance(config.vision_feature_layer, int):
            raise ValueError(
                f"config.vision_feature_layer must be one layer, since vLLM's LLaVA projects the "
                f"last layer of its tower only, got {config.vision_feature_layer!r}"
            )
        self.configure(config, profile, fuse_into)

    def check_tower(self, model: Any) -> None:
        """
        Raises:
            ValueError: the tower has not the layers that the profile reads, or is split.
        """
        layers = model.vision_tower.vision_model.encoder.layers
        deepest = max(*self.layers.states, self.salience_layer() + 1)
        if deepest > len(layers):
            raise ValueError(
                f"the profile reads the output of vision layer {deepest}, but vLLM builds only the "
                f"{len(layers)} up to the one that the projector takes "
                f"(init_vision_tower_for_llava in vllm/model_executor/models/llava.py): choose a "
                f"profile without deeper layers"
            )
        parts = layers[0].self_attn.tp_size
        if parts > 1:
            raise ValueError(
                f"the heads of the vision tower are split over {parts} devices, but the attention "
                f"of all is needed: start the server with --mm-encoder-tp-mode data"
            )

    def check_call(self, model: Any, inputs: Mapping[str, Any]) -> None:
        """vLLM's processor has checked the images."""

    @torch.no_grad()
    def encode_tiles(
        self, model: Any, pixels: torch.Tensor, kind: str = "image", keeps_cls: bool | None = None
    ) -> EncodedTiles:
        tower = model.vision_tower.vision_model
        states = tower.encoder(
            inputs_embeds=tower.pre_layrnorm(tower.embeddings(pixels)),
            return_all_hidden_states=True,
        )
        number = self.salience_layer()
        layer = tower.encoder.layers[number]
        attention = layer.self_attn
        projected, _ = attention.qkv_proj(layer.layer_norm1(states[number]))
        query, key, _ = (
            each.unflatten(-1, (attention.num_heads, attention.head_dim)).transpose(1, 2)
            for each in projected.chunk(3, dim=-1)
        )
        return self.encoded_tiles(states, query, key, attention.scale, keeps_cls)

    def project(self, model: Any, tokens: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = model.multi_modal_projector(tokens)
        return projected
