"""Gemma 3: a SigLIP tower with pooled patches; attention within an image is bidirectional."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from clasp_kernels import attention_salience
from clasp_kernels.models.adapter import View, VisionOutput, VisualGroup
from clasp_kernels.models.capture import AttentionListener
from clasp_kernels.models.compat import (
    attention_modules,
    image_tower,
    is_overridden,
    require_parts,
)
from clasp_kernels.models.families._modules import module_inside
from clasp_kernels.models.families._positions import counted_positions
from clasp_kernels.models.families._views import grid_view
from clasp_kernels.models.history import CachedPast
from clasp_kernels.models.patching import Patch
from clasp_kernels.policy import Profile


class Gemma3Adapter:
    """``Gemma3ForConditionalGeneration``.

    There is no CLS token. A visual token's salience is the attention that its patches get from all
    patches of the image in one vision layer. Its fused feature is the mean over its patches, pooled
    as in the model. The processor's crops of an image (pan and scan) are separate in the prompt, so
    each counts as an image.

    In the decoder, attention between the tokens of an image is bidirectional, marked by
    ``token_type_ids``. These are pruned too, so the kept tokens still attend in both directions.
    """

    pixel_arguments: tuple[str, ...] = ("pixel_values",)
    visual_arguments: tuple[str, ...] = ("pixel_values",)
    position_axes: tuple[int, ...] = ()
    deeper_layers: int = 0

    def __init__(self, model: Any, profile: Profile, fuse_into: str) -> None:
        from transformers import Gemma3ForConditionalGeneration, Gemma3Model

        config = model.config
        if not isinstance(model, Gemma3ForConditionalGeneration):
            raise TypeError(
                f"model must be a Gemma3ForConditionalGeneration, got {type(model).__name__}. If "
                f"the model is wrapped, pass the inner model (model._orig_mod of torch.compile, "
                f"model.get_base_model() of PEFT), preferably before wrapping"
            )
        vision = config.vision_config
        if vision.model_type != "siglip_vision_model":
            raise ValueError(
                f"the vision tower must be siglip_vision_model, got {vision.model_type!r}"
            )
        if fuse_into == "projector":
            raise ValueError(
                "fuse_into='projector' needs a projector that takes tokens one by one, but this "
                "model pools patches; use fuse_into='selection'"
            )
        self._token_id = int(config.image_token_id)
        embed: Any = model.get_input_embeddings()
        vocabulary = embed.num_embeddings
        if not 0 <= self._token_id < vocabulary:
            raise ValueError(
                f"config.image_token_id is {self._token_id}, which a vocabulary of {vocabulary} "
                f"tokens does not have"
            )
        num_layers = vision.num_hidden_layers
        self.layers = profile.for_tower(num_layers)
        attentions = attention_modules(image_tower(model), num_layers)
        wanted = self.layers.salience_layer
        self._attention = attentions[num_layers - 1 if wanted is None else wanted]
        self._listener = AttentionListener(self._attention)
        inner = self.inner_model(model)
        require_parts(inner, ("multi_modal_projector",))
        require_parts(inner.multi_modal_projector, ("avg_pool",))
        if is_overridden(inner, "get_image_features", Gemma3Model):
            raise TypeError(
                f"{type(inner).__name__}.get_image_features is overridden, but pruning does not "
                f"call it: images are encoded by the vision tower and the projector directly"
            )
        self._image_size = int(vision.image_size)
        self._patch = int(vision.patch_size)
        self._patches = self._image_size // self._patch  # per side of the image
        self._square = self._patches // int(config.mm_tokens_per_image**0.5)  # per side of a token
        self._tokens_per_image = (self._patches // self._square) ** 2
        self.token_ids: tuple[int, ...] = (self._token_id,)
        self.text_config = config.get_text_config()

    def inner_model(self, model: Any) -> Any:
        from transformers import Gemma3Model

        return module_inside(model, Gemma3Model)

    def patches(self) -> list[Patch]:
        return [self._listener.patch(self._attention)]

    def untrained(self, model: Any) -> dict[str, torch.nn.Module]:
        projector = self.inner_model(model).multi_modal_projector
        return {"the vision tower": image_tower(model), "the projector": projector}

    def tokens_per_image(self) -> int | None:
        return self._tokens_per_image

    def check_call(self, model: Any, inputs: Mapping[str, Any]) -> None:
        if model.config.image_token_id != self._token_id:
            raise ValueError(
                f"config.image_token_id is {model.config.image_token_id}, but was "
                f"{self._token_id} when apply_clasp was called: remove() the handle and apply again"
            )
        if CachedPast.of(inputs.get("cache")).seen:
            raise ValueError(
                "a later turn of gemma3 cannot have images of its own where images are pruned, as "
                "the model counts from the start of the first turn which columns are one image's: "
                "give the whole conversation with an empty cache"
            )
        positions: Any = inputs.get("position_ids")
        unmasked = inputs.get("attention_mask") is None and isinstance(positions, torch.Tensor)
        if unmasked and bool((positions.diff(dim=-1) != 1).any()):
            raise ValueError(
                "position_ids that do not count up by one, without attention_mask, are those of "
                "several samples packed into a row, whose images gemma3 cannot have pruned: unpack "
                "them, or give attention_mask"
            )

    def groups(self, inputs: Mapping[str, Any]) -> list[VisualGroup]:
        pixels = inputs["pixel_values"]
        is_tensor = isinstance(pixels, torch.Tensor)
        got = list(pixels.shape) if is_tensor else type(pixels).__name__
        if not is_tensor or pixels.ndim != 4:
            raise TypeError(
                f"pixel_values must be a tensor [images, channels, height, width], got {got}"
            )
        if not len(pixels) or set(pixels.shape[2:]) != {self._image_size}:
            raise ValueError(
                f"pixel_values must be one or more images of {self._image_size} x "
                f"{self._image_size} pixels, got {got}"
            )
        counts = (self._tokens_per_image,) * len(pixels)
        return [VisualGroup("image", "pixel_values", self._token_id, counts)]

    def views(self, inputs: Mapping[str, Any]) -> list[View]:
        side = self._patches // self._square
        length = side * self._square * self._patch
        return [
            grid_view(pixels, side, side, number * self._tokens_per_image)
            for number, pixels in enumerate(inputs["pixel_values"][..., :length, :length])
        ]

    @torch.no_grad()  # the ops after the tower record no autograd graph either
    def encode(self, model: Any, inputs: Mapping[str, Any]) -> VisionOutput:
        projector = self.inner_model(model).multi_modal_projector
        tower = image_tower(model)  # not cached: it may be wrapped or compiled later
        with self._listener.listen() as captured:
            # True, not a list of layers: transformers may return None for unlisted layers.
            outputs = tower(
                pixel_values=inputs["pixel_values"], output_hidden_states=True, return_dict=True
            )
        query, key = captured.query, captured.key
        assert query is not None and key is not None

        def by_token(patches: torch.Tensor) -> torch.Tensor:
            """Average [images, patches, width] by token: [images, N, width]."""
            grid = patches.transpose(1, 2).unflatten(2, (self._patches, self._patches))
            pooled: torch.Tensor = projector.avg_pool(grid)
            return pooled.flatten(2).transpose(1, 2)

        def salience() -> torch.Tensor:
            of_patches = attention_salience(query, key, scale=captured.scale)
            return by_token(of_patches[..., None])[..., 0] * self._square**2

        return VisionOutput(
            fused_layers=[by_token(outputs.hidden_states[state]) for state in self.layers.states],
            features=projector(outputs.last_hidden_state),
            salience=salience,
            counts=(self._tokens_per_image,) * len(key),
        )

    def project(self, model: Any, tokens: torch.Tensor) -> torch.Tensor:
        return tokens

    def positions(self, model: Any, inputs: Mapping[str, Any], past: int) -> torch.Tensor:
        return counted_positions(inputs, past)

    def later_positions(self, model: Any, past: int, columns: int, rows: int) -> torch.Tensor:
        return torch.arange(past, past + columns)[None]
