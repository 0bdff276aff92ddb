"""Shared by the LLaVA families: a projector on hidden states of a CLIP or SigLIP tower."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from clasp_kernels import attention_salience
from clasp_kernels.models.adapter import View
from clasp_kernels.models.capture import AttentionListener
from clasp_kernels.models.compat import (
    attention_modules,
    image_tower,
    is_overridden,
    require_parts,
)
from clasp_kernels.models.families._modules import module_inside, require_class
from clasp_kernels.models.families._positions import counted_positions
from clasp_kernels.models.families._views import grid_view
from clasp_kernels.models.patching import Patch
from clasp_kernels.policy import Profile

# Vision towers, and whether they have a CLS token before the patches.
_HAS_CLS = {"clip_vision_model": True, "siglip_vision_model": False, "pixtral": False}


@dataclass(frozen=True)
class EncodedTiles:
    """The output of a vision tower for tiles, frames or images of its own size."""

    fused_layers: list[torch.Tensor]
    """The adapter's ``layers.states``, each [tiles, P, D]."""
    features: torch.Tensor
    """[tiles, P, D']: the input of the projector."""
    salience: Callable[[], torch.Tensor]
    """[tiles, P] float32."""

    def __len__(self) -> int:
        return len(self.features)


class ProjectedAdapter:
    """Base adapter of families whose projector takes the tower's hidden states token by token.

    If the tower has a CLS token, a patch's salience is the attention from the CLS token in one
    vision layer, averaged over heads. Otherwise it is the attention from all patches. With
    ``vision_feature_select_strategy="full"`` the CLS token is itself a visual token.
    """

    model_class: str
    """The name of the family's class in transformers."""
    inner_class: str
    """The name of the class of its inner model."""
    towers: tuple[str, ...] = ("clip_vision_model",)
    """The ``model_type`` of supported vision towers."""
    settings: tuple[str, ...] = ("vision_feature_layer", "vision_feature_select_strategy")
    """Config settings that must not change after ``apply_clasp``, in forward or the config."""
    encoders: tuple[str, ...] = ("get_image_features",)
    """Methods of the inner model that pruning replaces, so they must not be overridden."""
    parts: tuple[str, ...] = ("multi_modal_projector",)
    """Attributes of the inner model that pruning uses."""
    pixel_arguments: tuple[str, ...] = ("pixel_values",)
    visual_arguments: tuple[str, ...] = ("pixel_values",)
    position_axes: tuple[int, ...] = ()
    deeper_layers: int = 0
    sees_prompts_whole: bool = False

    def __init__(self, model: Any, profile: Profile, fuse_into: str) -> None:
        import transformers

        require_class(model, self.model_class)
        self.configure(model.config, profile, fuse_into)
        inner = self.inner_model(model)
        require_parts(inner, self.parts)
        for name in self.encoders:
            if is_overridden(inner, name, getattr(transformers, self.inner_class)):
                raise TypeError(
                    f"{type(inner).__name__}.{name} is overridden, but pruning does not call it: "
                    f"images are encoded by the vision tower and the projector directly"
                )
        num_layers = model.config.vision_config.num_hidden_layers
        number = self.salience_layer()
        self._attentions = {
            kind: attention_modules(tower, num_layers)[number]
            for kind, tower in self.vision_towers(model).items()
        }
        self._listeners = {
            kind: AttentionListener(attention) for kind, attention in self._attentions.items()
        }

    def configure(self, config: Any, profile: Profile, fuse_into: str) -> None:
        """Set what follows from the model's config alone.

        Raises:
            ValueError: config and profile do not fit.
        """
        vision = config.vision_config
        if vision.model_type not in self.towers:
            raise ValueError(
                f"the vision tower must be {' or '.join(self.towers)}, whose attention scores the "
                f"tokens; this model has {vision.model_type!r}"
            )
        self._settings = {name: getattr(config, name) for name in self.settings}
        layers = config.vision_feature_layer
        if not isinstance(layers, int) and fuse_into == "projector":
            raise ValueError(
                f"fuse_into='projector' needs a projector that takes one layer, but this model's "
                f"takes layers {list(layers)} side by side (config.vision_feature_layer); use "
                f"fuse_into='selection'"
            )
        num_layers = vision.num_hidden_layers
        # Non-negative indices into hidden_states; hidden_states[0] is the first layer's input.
        self.feature_states = [
            layer if layer >= 0 else layer + num_layers + 1
            for layer in ([layers] if isinstance(layers, int) else layers)
        ]
        self.layers = profile.for_tower(num_layers)
        self._has_cls = _HAS_CLS[vision.model_type]
        strategy = getattr(config, "vision_feature_select_strategy", "full")
        self._drops_cls = strategy == "default"
        if self._drops_cls and not self._has_cls:
            raise ValueError(
                f"config.vision_feature_select_strategy must be 'full' with a {vision.model_type}, "
                f"which has no CLS token to drop, got 'default'"
            )
        self._tile = int(vision.image_size)
        self._patch = int(vision.patch_size)
        self._side = self._tile // self._patch
        self.token_ids: tuple[int, ...] = (int(config.image_token_id),)
        self.text_config = config.get_text_config()

    def vision_towers(self, model: Any) -> dict[str, Any]:
        """Return the vision towers by the kind that they encode. The result must not be cached: a
        tower may be wrapped or compiled later."""
        return {"image": image_tower(model)}

    def salience_layer(self) -> int:
        """Return the vision layer whose attention scores the tokens, counted from 0."""
        if self.layers.salience_layer is not None:
            return self.layers.salience_layer
        # With several feature layers, the deepest.
        produced_by = max(self.feature_states) - 1
        if produced_by < 0:
            raise ValueError(
                f"config.vision_feature_layer={self._settings['vision_feature_layer']} is the "
                f"embedding, which no attention produces; name a salience_layer in the profile"
            )
        return produced_by

    def inner_model(self, model: Any) -> Any:
        import transformers

        return module_inside(model, getattr(transformers, self.inner_class))

    def patches(self) -> list[Patch]:
        return [
            listener.patch(self._attentions[kind]) for kind, listener in self._listeners.items()
        ]

    def untrained(self, model: Any) -> dict[str, torch.nn.Module]:
        towers = self.vision_towers(model)
        if len(towers) == 1:
            return {"the vision tower": towers["image"]}
        return {f"the {kind} tower": tower for kind, tower in towers.items()}

    def tokens_per_image(self) -> int | None:
        return None

    def positions(self, model: Any, inputs: Mapping[str, Any], past: int) -> torch.Tensor:
        return counted_positions(inputs, past)

    def later_positions(self, model: Any, past: int, columns: int, rows: int) -> torch.Tensor:
        return torch.arange(past, past + columns)[None]

    def check_call(self, model: Any, inputs: Mapping[str, Any]) -> None:
        for name, configured in self._settings.items():
            value = inputs.get(name)
            if value is None:
                value = getattr(model.config, name)
            if value != configured:
                raise ValueError(
                    f"{name} is {configured!r}, as the model's config had it when apply_clasp was "
                    f"called; got {value!r}: remove() the handle, set it there and apply again"
                )
        names = ("image_token_id", "video_token_id")
        for name, before in zip(names, self.token_ids, strict=False):
            if getattr(model.config, name) != before:
                raise ValueError(
                    f"config.{name} is {getattr(model.config, name)}, but was {before} when "
                    f"apply_clasp was called: remove() the handle and apply again"
                )

    def tokens_per_tile(self, keeps_cls: bool | None = None) -> int:
        """Return the visual tokens per tile, frame or image of the tower's input size."""
        return self._side**2 + (self._has_cls and not self._is_dropped(keeps_cls))

    def tile_view(
        self, pixels: torch.Tensor, first_token: int, keeps_cls: bool | None = None
    ) -> View:
        """Return the view of one tile [channels, height, width], with a box for each patch."""
        has_cls = self.tokens_per_tile(keeps_cls) > self._side**2
        return grid_view(self.seen(pixels), self._side, self._side, first_token + has_cls)

    def seen(self, pixels: torch.Tensor) -> torch.Tensor:
        """Crop the pixels at the right and at the bottom that no whole patch covers."""
        length = self._side * self._patch
        return pixels[..., :length, :length]

    def check_size(self, name: str, pixels: torch.Tensor) -> None:
        """
        Raises:
            ValueError: the images do not have the tower's input size.
        """
        if list(pixels.shape[-2:]) != [self._tile] * 2:
            raise ValueError(
                f"{name} must be of {self._tile} x {self._tile} pixels, as the vision tower takes "
                f"them, got {list(pixels.shape)}"
            )

    def _is_dropped(self, keeps_cls: bool | None) -> bool:
        return self._drops_cls if keeps_cls is None else not keeps_cls

    @torch.no_grad()  # the ops after the tower record no autograd graph either
    def encode_tiles(
        self, model: Any, pixels: torch.Tensor, kind: str = "image", keeps_cls: bool | None = None
    ) -> EncodedTiles:
        """Run a tower on [tiles, channels, height, width].

        ``keeps_cls`` says whether the CLS token is a visual token; None uses the config's setting.
        """
        with self._listeners[kind].listen() as captured:
            # True, not a list of layers: transformers may return None for unlisted layers.
            tower = self.vision_towers(model)[kind]
            outputs = tower(pixels, output_hidden_states=True, return_dict=True)
        assert captured.query is not None and captured.key is not None
        assert captured.scale is not None
        return self.encoded_tiles(
            outputs.hidden_states, captured.query, captured.key, captured.scale, keeps_cls
        )

    def encoded_tiles(
        self,
        states: Sequence[torch.Tensor],
        query: torch.Tensor,
        key: torch.Tensor,
        scale: float,
        keeps_cls: bool | None = None,
    ) -> EncodedTiles:
        """Return a tower's output, from its hidden states [tiles, tokens, D], and query and key
        [tiles, heads, tokens, head_dim] of the layer that scores the tokens."""
        first = 1 if self._has_cls and self._is_dropped(keeps_cls) else 0
        features = [states[index][:, first:] for index in self.feature_states]
        return EncodedTiles(
            fused_layers=[states[index][:, first:] for index in self.layers.states],
            features=features[0] if len(features) == 1 else torch.cat(features, dim=-1),
            salience=lambda: attention_salience(
                query[:, :, :1] if self._has_cls else query,
                key,
                scale=scale,
                key_range=(first, key.shape[2]),
            ),
        )

    def project(self, model: Any, tokens: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = self.inner_model(model).multi_modal_projector(tokens)
        return projected


def check_pixels(name: str, pixels: Any, axes: tuple[str, ...]) -> torch.Tensor:
    """
    Raises:
        TypeError: ``pixels`` is not a tensor with these axes.
    """
    if not isinstance(pixels, torch.Tensor) or pixels.ndim != len(axes):
        got = list(pixels.shape) if isinstance(pixels, torch.Tensor) else type(pixels).__name__
        raise TypeError(f"{name} must be a tensor [{', '.join(axes)}], got {got}")
    return pixels


def check_image_sizes(inputs: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Return each image's height and width. Synchronises.

    Raises:
        ValueError, TypeError: ``image_sizes`` does not hold heights and widths of images.
    """
    given = inputs.get("image_sizes")
    try:
        rows = torch.as_tensor(given).tolist()
        sizes = [(int(height), int(width)) for height, width in rows]
    except (TypeError, ValueError, RuntimeError):
        got = list(given.shape) if isinstance(given, torch.Tensor) else repr(given)
        raise TypeError(
            f"image_sizes must have the height and width of each image, [images, 2], got {got}"
        ) from None
    if any(min(size) < 1 for size in sizes):
        raise ValueError(f"image_sizes must be heights and widths of 1 or more, got {sizes}")
    return sizes
