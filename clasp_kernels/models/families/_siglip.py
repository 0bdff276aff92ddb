"""Shared by Gemma 3 and PaliGemma: a SigLIP tower and bidirectional attention."""

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
from clasp_kernels.models.families._modules import module_inside, require_class
from clasp_kernels.models.families._views import grid_view
from clasp_kernels.models.history import CachedPast
from clasp_kernels.models.patching import Patch
from clasp_kernels.policy import Profile


class SiglipAdapter:
    """An adapter of a tower without a CLS token.

    A visual token's salience is the attention that its patches get from all patches of the image in
    one vision layer. Its fused feature is the mean over its patches.

    In the decoder, ``token_type_ids`` mark tokens whose attention is bidirectional. These are
    pruned too, so the kept tokens still attend in both directions.
    """

    model_class: str
    """The names of the family's class in transformers and of its inner model's class."""
    inner_class: str
    parts: tuple[str, ...] = ()
    """Submodules of the projector that the adapter uses."""
    no_projector: str
    """The reason why fused features cannot go to the projector, for the error message."""
    pixel_arguments: tuple[str, ...] = ("pixel_values",)
    visual_arguments: tuple[str, ...] = ("pixel_values",)
    position_axes: tuple[int, ...] = ()
    deeper_layers: int = 0
    sees_prompts_whole: bool = False

    def __init__(self, model: Any, profile: Profile, fuse_into: str) -> None:
        import transformers

        config = model.config
        require_class(model, self.model_class)
        vision = config.vision_config
        if vision.model_type != "siglip_vision_model":
            raise ValueError(
                f"the vision tower must be siglip_vision_model, got {vision.model_type!r}"
            )
        if fuse_into == "projector":
            raise ValueError(
                f"fuse_into='projector' needs a projector that {self.no_projector}; use "
                f"fuse_into='selection'"
            )
        num_layers = vision.num_hidden_layers
        self.layers = profile.for_tower(num_layers)
        attentions = attention_modules(image_tower(model), num_layers)
        wanted = self.layers.salience_layer
        self._attention = attentions[num_layers - 1 if wanted is None else wanted]
        self._listener = AttentionListener(self._attention)
        inner = self.inner_model(model)
        require_parts(inner, ("multi_modal_projector",))
        require_parts(inner.multi_modal_projector, self.parts)
        if is_overridden(inner, "get_image_features", getattr(transformers, self.inner_class)):
            raise TypeError(
                f"{type(inner).__name__}.get_image_features is overridden, but pruning does not "
                f"call it: images are encoded by the vision tower and the projector directly"
            )
        self._image_size = int(vision.image_size)
        self._patch = int(vision.patch_size)
        self._patches = self._image_size // self._patch  # per side of the image
        self._square = self.patches_to_a_side(config)  # per side of a visual token
        self._tokens_per_image = (self._patches // self._square) ** 2
        self._token_id = int(config.image_token_id)
        self.token_ids: tuple[int, ...] = (self._token_id,)
        self.text_config = config.get_text_config()

    def patches_to_a_side(self, config: Any) -> int:
        """Return the number of patches per side of the square that makes a visual token."""
        return 1

    def by_token(self, projector: Any, patches: torch.Tensor) -> torch.Tensor:
        """Average [images, patches, width] to [images, N, width]."""
        return patches

    def inner_model(self, model: Any) -> Any:
        import transformers

        return module_inside(model, getattr(transformers, self.inner_class))

    def patches(self) -> list[Patch]:
        return [self._listener.patch(self._attention)]

    def untrained(self, model: Any) -> dict[str, torch.nn.Module]:
        return {"the vision tower": image_tower(model)}

    def tokens_per_image(self) -> int | None:
        return self._tokens_per_image

    def check_call(self, model: Any, inputs: Mapping[str, Any]) -> None:
        if model.config.image_token_id != self._token_id:
            raise ValueError(
                f"config.image_token_id is {model.config.image_token_id}, but was "
                f"{self._token_id} when apply_clasp was called: remove() the handle and apply again"
            )
        family = model.config.model_type
        if CachedPast.of(inputs.get("cache")).seen:
            raise ValueError(
                f"a later turn of {family} cannot have images of its own if images are pruned, "
                f"because the model marks columns with bidirectional attention from the start of "
                f"the first turn: give the whole conversation with an empty cache"
            )
        positions: Any = inputs.get("position_ids")
        unmasked = inputs.get("attention_mask") is None and isinstance(positions, torch.Tensor)
        if unmasked and bool((positions.diff(dim=-1) != 1).any()):
            raise ValueError(
                f"position_ids that do not count up by one, without attention_mask, are those of "
                f"packed samples, whose images cannot be pruned in {family}: give each sample its "
                f"own row, or give attention_mask"
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

    @torch.no_grad()  # the ops record no graph either
    def encode(self, model: Any, inputs: Mapping[str, Any]) -> VisionOutput:
        projector = self.inner_model(model).multi_modal_projector
        tower = image_tower(model)  # looked up at every call, because it may be wrapped later
        with self._listener.listen() as captured:
            # Request all hidden states: some models return None for those not selected.
            outputs = tower(
                pixel_values=inputs["pixel_values"], output_hidden_states=True, return_dict=True
            )
        query, key = captured.query, captured.key
        assert query is not None and key is not None

        def salience() -> torch.Tensor:
            of_patches = attention_salience(query, key, scale=captured.scale)
            return self.by_token(projector, of_patches[..., None])[..., 0] * self._square**2

        states = outputs.hidden_states
        return VisionOutput(
            fused_layers=[self.by_token(projector, states[state]) for state in self.layers.states],
            features=self.features(projector, outputs.last_hidden_state),
            salience=salience,
            counts=(self._tokens_per_image,) * len(key),
        )

    def features(self, projector: Any, patches: torch.Tensor) -> torch.Tensor:
        """Return ``VisionOutput.features`` for the tower's output."""
        raise NotImplementedError
