"""LLaVA 1.5: a CLIP vision tower, a per-token projector, a decoder-only language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from clasp_kernels import attention_salience
from clasp_kernels.models.adapter import VisionOutput, VisualGroup
from clasp_kernels.models.capture import AttentionListener
from clasp_kernels.models.compat import (
    attention_modules,
    image_tower,
    is_overridden,
    require_parts,
)
from clasp_kernels.models.families._modules import module_inside
from clasp_kernels.models.families._positions import counted_positions
from clasp_kernels.models.patching import Patch
from clasp_kernels.policy import Profile

_VISION_TOWERS = ("clip_vision_model",)


def tokens_per_image(config: Any) -> int:
    """Visual tokens of an image: its patches, and the CLS token unless the model drops it."""
    vision = config.vision_config
    patches: int = (vision.image_size // vision.patch_size) ** 2
    return patches + (config.vision_feature_select_strategy != "default")


class LlavaAdapter:
    """``LlavaForConditionalGeneration`` with a CLIP tower.

    The CLS token scores the patches: its attention in one vision layer, averaged over heads.
    With ``vision_feature_select_strategy="full"`` the CLS token is itself a visual token.
    """

    pixel_arguments: tuple[str, ...] = ("pixel_values",)
    visual_arguments: tuple[str, ...] = ("pixel_values",)
    position_axes: tuple[int, ...] = ()
    deeper_layers: int = 0

    def __init__(self, model: Any, profile: Profile, fuse_into: str) -> None:
        from transformers import LlavaForConditionalGeneration, LlavaModel

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

        num_layers = config.vision_config.num_hidden_layers
        # Counted from the front, hidden_states[0] being what enters the first layer.
        self._feature_states = [
            layer if layer >= 0 else layer + num_layers + 1 for layer in feature_layers
        ]
        self.layers = profile.for_tower(num_layers)
        attentions = attention_modules(image_tower(model), num_layers)
        self._attention = attentions[self._salience_layer()]
        self._listener = AttentionListener(self._attention)
        require_parts(model.model, ("multi_modal_projector",))
        inner = self.inner_model(model)
        if is_overridden(inner, "get_image_features", LlavaModel):
            raise TypeError(
                f"{type(inner).__name__}.get_image_features is not LlavaModel's, and pruning "
                f"would go past it: images are encoded by the vision tower and the projector alone"
            )

        self._first_token = 1 if self._strategy == "default" else 0  # 0: CLS is a token too
        self._tokens_per_image = tokens_per_image(config)
        self.token_ids: tuple[int, ...] = (int(config.image_token_id),)
        self.text_config = config.get_text_config()

    def _salience_layer(self) -> int:
        """Which vision layer's attention scores the tokens, counted from 0."""
        if self.layers.salience_layer is not None:
            return self.layers.salience_layer
        # The deepest of several feature layers: its attention knows most of the image.
        produced_by = max(self._feature_states) - 1
        if produced_by < 0:
            raise ValueError(
                f"config.vision_feature_layer={self._feature_layer} is the embedding, which "
                f"no attention produces; name a salience_layer in the profile"
            )
        return produced_by

    def inner_model(self, model: Any) -> Any:
        from transformers import LlavaModel

        return module_inside(model, LlavaModel)

    def patches(self) -> list[Patch]:
        return [self._listener.patch(self._attention)]

    def tokens_per_image(self) -> int | None:
        return self._tokens_per_image

    def groups(self, inputs: Mapping[str, Any]) -> list[VisualGroup]:
        pixels = inputs["pixel_values"]
        if not isinstance(pixels, torch.Tensor) or pixels.ndim != 4:
            is_tensor = isinstance(pixels, torch.Tensor)
            got = list(pixels.shape) if is_tensor else type(pixels).__name__
            raise TypeError(
                f"pixel_values must be a tensor [images, channels, height, width], got {got}"
            )
        counts = (self._tokens_per_image,) * len(pixels)
        return [VisualGroup("image", "pixel_values", self.token_ids[0], counts)]

    def positions(self, model: Any, inputs: Mapping[str, Any], past: int) -> torch.Tensor:
        return counted_positions(inputs, past)

    def later_positions(self, model: Any, past: int, columns: int, rows: int) -> torch.Tensor:
        return torch.arange(past, past + columns)[None]

    def check_call(self, model: Any, inputs: Mapping[str, Any]) -> None:
        for name, configured in (
            ("vision_feature_layer", self._feature_layer),
            ("vision_feature_select_strategy", self._strategy),
        ):
            value = inputs.get(name)
            if value is None:
                value = getattr(model.config, name)
            if value != configured:
                raise ValueError(
                    f"{name} is {configured!r}, as the model's config had it when apply_clasp was "
                    f"called; got {value!r}: remove() the handle, set it there and apply again"
                )
        if model.config.image_token_id != self.token_ids[0]:
            raise ValueError(
                f"config.image_token_id is {model.config.image_token_id}, but was "
                f"{self.token_ids[0]} when apply_clasp was called: remove() the handle and apply "
                f"again"
            )
        if inputs.get("image_sizes") is not None:
            raise ValueError("image_sizes is for vision towers that keep the image's own size")

    @torch.no_grad()  # the ops that follow record no graph either
    def encode(self, model: Any, inputs: Mapping[str, Any]) -> VisionOutput:
        with self._listener.listen() as captured:
            # All hidden states: those that nobody selects may be None.
            tower = image_tower(model)  # asked for anew, as it may be wrapped or compiled later
            outputs = tower(inputs["pixel_values"], output_hidden_states=True, return_dict=True)
        states, query, key = outputs.hidden_states, captured.query, captured.key
        assert query is not None and key is not None and captured.scale is not None
        first = self._first_token
        features = [states[index][:, first:] for index in self._feature_states]
        return VisionOutput(
            fused_layers=[states[index][:, first:] for index in self.layers.states],
            features=features[0] if len(features) == 1 else torch.cat(features, dim=-1),
            salience=lambda: attention_salience(
                query[:, :, :1],  # the CLS token's
                key,
                scale=captured.scale,
                key_range=(first, key.shape[2]),
            ),
            counts=(self._tokens_per_image,) * len(key),
        )

    def project(self, model: Any, tokens: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = model.model.multi_modal_projector(tokens)
        return projected
