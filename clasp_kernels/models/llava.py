"""LLaVA 1.5: a CLIP vision tower, a per-token projector, a decoder-only language model."""

from __future__ import annotations

from typing import Any

import torch

from clasp_kernels.models.adapter import VisionOutput
from clasp_kernels.policy import Profile

_VISION_TOWERS = ("clip_vision_model",)


class LlavaAdapter:
    """``LlavaForConditionalGeneration`` with a CLIP tower.

    The CLS token scores the patches: its attention in one vision layer, averaged over heads.
    With ``vision_feature_select_strategy="full"`` the CLS token is itself a visual token.
    """

    def __init__(self, model: Any, profile: Profile, fuse_into: str) -> None:
        from transformers import LlavaForConditionalGeneration

        config = model.config
        if not isinstance(model, LlavaForConditionalGeneration):
            # A wrapper has these attributes too, but what is set on it never reaches the model.
            raise TypeError(
                f"model must be a LlavaForConditionalGeneration, got {type(model).__name__}; of "
                f"a model that is wrapped, give the inner one (model._orig_mod of torch.compile, "
                f"model.get_base_model() of PEFT), best before wrapping it"
            )
        tower_type = config.vision_config.model_type
        if tower_type not in _VISION_TOWERS:
            raise ValueError(
                f"the vision tower must be {' or '.join(_VISION_TOWERS)}, whose CLS attention "
                f"scores the tokens; this model has {tower_type!r}"
            )
        self._strategy = config.vision_feature_select_strategy
        self._feature_layer = config.vision_feature_layer
        feature_layers = self._feature_layer
        if isinstance(feature_layers, int):
            feature_layers = [feature_layers]
        elif fuse_into == "projector":
            raise ValueError(
                f"fuse_into='projector' needs a projector that takes one layer, but this model's "
                f"takes layers {list(feature_layers)} side by side "
                f"(config.vision_feature_layer); use fuse_into='selection'"
            )

        self._model = model
        self._num_layers = config.vision_config.num_hidden_layers
        self._feature_states = [self._state_index(layer) for layer in feature_layers]
        deepest_fused = min(profile.layers)
        if -deepest_fused > self._num_layers:
            raise ValueError(
                f"profile {profile.name!r} fuses layer {deepest_fused}, but the vision tower has "
                f"{self._num_layers} layers: {-self._num_layers}..-1 are allowed"
            )
        self._fused_states = [self._state_index(layer) for layer in profile.layers]
        self._salience_layer = self._find_salience_layer(profile)

        self._first_token = 1 if self._strategy == "default" else 0  # 0: CLS is a token too
        patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
        self.tokens_per_image = patches + 1 - self._first_token
        self.image_token_id: int = config.image_token_id
        self.text_config = config.get_text_config()

    def _state_index(self, layer: int) -> int:
        """Where a layer's output stands among hidden_states; 0 is what enters the first layer."""
        return layer if layer >= 0 else layer + self._num_layers + 1

    def _find_salience_layer(self, profile: Profile) -> int:
        """Which vision layer's attention scores the tokens, counted from 0."""
        layer = profile.salience_layer
        if layer is None:
            # Of several feature layers the deepest: its attention knows most of the image.
            produced_by = max(self._feature_states) - 1
            if produced_by < 0:
                raise ValueError(
                    f"config.vision_feature_layer={self._feature_layer} is the embedding, which "
                    f"no attention produces; name a salience_layer in the profile"
                )
            return produced_by
        if -layer > self._num_layers:
            raise ValueError(
                f"profile {profile.name!r} takes salience from layer {layer}, but the vision "
                f"tower has {self._num_layers} layers: {-self._num_layers}..-1 are allowed"
            )
        return layer + self._num_layers

    def check_call(self, inputs: dict[str, Any]) -> None:
        for name, configured in (
            ("vision_feature_layer", self._feature_layer),
            ("vision_feature_select_strategy", self._strategy),
        ):
            value = inputs.get(name)
            if value is not None and value != configured:
                raise ValueError(
                    f"{name} is {configured!r}, as the model's config had it when apply_clasp was "
                    f"called; got {value!r}: remove() the handle, set it there and apply again"
                )
        if inputs.get("image_sizes") is not None:
            raise ValueError("image_sizes is for vision towers that keep the image's own size")

    @torch.no_grad()  # the ops that follow record no graph either
    def encode(self, pixel_values: torch.Tensor) -> VisionOutput:
        tower = self._model.model.vision_tower
        # All of them: how a list of layers is counted differs between transformers versions.
        states = tower(pixel_values, output_hidden_states=True, return_dict=True).hidden_states
        first = self._first_token
        features = [states[index][:, first:] for index in self._feature_states]

        # The layer's own query and key, from its own input. Recomputing them costs one product
        # with D x D weights; forward hooks would save it, but would see every other thread's
        # forward too, and nothing at all of a tower that was compiled before they came.
        layer = tower.encoder.layers[self._salience_layer]
        normed = layer.layer_norm1(states[self._salience_layer])
        attention = layer.self_attn

        def split_heads(projected: torch.Tensor) -> torch.Tensor:
            return projected.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)

        return VisionOutput(
            fused_layers=[states[index][:, first:] for index in self._fused_states],
            features=features[0] if len(features) == 1 else torch.cat(features, dim=-1),
            query=split_heads(attention.q_proj(normed[:, :1])),
            key=split_heads(attention.k_proj(normed)),
            scale=attention.scale,
            key_range=(first, normed.shape[1]),
        )

    def project(self, tokens: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = self._model.model.multi_modal_projector(tokens)
        return projected
