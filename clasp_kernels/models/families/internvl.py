"""InternVL: tiles with a CLS token each; pixel shuffle merges 2 x 2 patches into a token."""

from __future__ import annotations

import math
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
from clasp_kernels.models.families._items import padded, placeholder_runs
from clasp_kernels.models.families._modules import module_inside, require_class
from clasp_kernels.models.families._positions import counted_positions
from clasp_kernels.models.families._views import arranged, grid_boxes, grid_view
from clasp_kernels.models.patching import Patch
from clasp_kernels.policy import Profile

_SETTINGS = (
    "vision_feature_layer",
    "vision_feature_select_strategy",
    "downsample_ratio",
    "image_token_id",
)


class InternVLAdapter:
    """``InternVLForConditionalGeneration``.

    ``pixel_values`` holds tiles, and no argument says which tiles belong to one image. But the
    processor writes the placeholders of an image's tiles as one run, between ``<img>`` and
    ``</img>``. So a run of placeholders is one image, and its tiles compete in one pool of tokens.
    The frames of a video are separate runs, so each is an image.

    A visual token's salience is the attention from its tile's CLS token in one vision layer,
    averaged over heads and summed over its patches. Fused layers go through the model's pixel
    shuffle like the projector's input.
    """

    pixel_arguments: tuple[str, ...] = ("pixel_values",)
    visual_arguments: tuple[str, ...] = ("pixel_values",)
    position_axes: tuple[int, ...] = ()
    deeper_layers: int = 0
    sees_prompts_whole: bool = False

    def __init__(self, model: Any, profile: Profile, fuse_into: str) -> None:
        from transformers import InternVLModel

        config = model.config
        require_class(model, "InternVLForConditionalGeneration")
        vision = config.vision_config
        if vision.model_type != "internvl_vision":
            raise ValueError(
                f"the vision tower must be internvl_vision, whose CLS attention scores the tokens; "
                f"this model has {vision.model_type!r}"
            )
        if config.vision_feature_select_strategy != "default":
            raise ValueError(
                f"config.vision_feature_select_strategy must be 'default', as a CLS token has no "
                f"place among patches that are shuffled, got "
                f"{config.vision_feature_select_strategy!r}"
            )
        if not isinstance(config.vision_feature_layer, int):
            raise ValueError(
                f"config.vision_feature_layer must be one layer, got {config.vision_feature_layer}"
            )
        if fuse_into == "projector" and not vision.use_mean_pooling:
            raise ValueError(
                "fuse_into='projector' needs layers as the projector knows them, but this model's "
                "vision tower normalises what its last layer returns; use fuse_into='selection'"
            )
        self._settings = {name: getattr(config, name) for name in _SETTINGS}
        self._feature_layer = config.vision_feature_layer
        num_layers = vision.num_hidden_layers
        self.layers = profile.for_tower(num_layers)
        attentions = attention_modules(image_tower(model), num_layers)
        self._attention = attentions[self._salience_layer(num_layers)]
        self._listener = AttentionListener(self._attention)
        inner = self.inner_model(model)
        require_parts(inner, ("multi_modal_projector", "pixel_shuffle"))
        if is_overridden(inner, "get_image_features", InternVLModel):
            raise TypeError(
                f"{type(inner).__name__}.get_image_features is overridden, but pruning does not "
                f"call it: images are encoded by the vision tower and the projector directly"
            )
        self._patch_size = tuple(vision.patch_size)
        self._ratio = config.downsample_ratio
        self._side = int(1 / config.downsample_ratio)
        self.token_ids: tuple[int, ...] = (int(config.image_token_id),)
        self.text_config = config.get_text_config()

    def _salience_layer(self, num_layers: int) -> int:
        """Return the vision layer whose attention scores the tokens, counted from 0."""
        if self.layers.salience_layer is not None:
            return self.layers.salience_layer
        layer = self._feature_layer
        produced_by = (layer if layer >= 0 else layer + num_layers + 1) - 1
        if produced_by < 0:
            raise ValueError(
                f"config.vision_feature_layer={layer} is the embedding, which no attention "
                f"produces; name a salience_layer in the profile"
            )
        return produced_by

    def inner_model(self, model: Any) -> Any:
        from transformers import InternVLModel

        return module_inside(model, InternVLModel)

    def patches(self) -> list[Patch]:
        return [self._listener.patch(self._attention)]

    def untrained(self, model: Any) -> dict[str, torch.nn.Module]:
        return {"the vision tower": image_tower(model)}

    def tokens_per_image(self) -> int | None:
        return None  # the number of tiles depends on the image

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

    def groups(self, inputs: Mapping[str, Any]) -> list[VisualGroup]:
        counts = [tiles * self._tokens_per_tile(inputs) for tiles in self._tiles(inputs)]
        return [VisualGroup("image", "pixel_values", self.token_ids[0], tuple(counts))]

    def views(self, inputs: Mapping[str, Any]) -> list[View]:
        """Return the whole image (its last tile), then the other tiles as one picture.

        No argument has the grid of the tiles: the grid that looks most like the whole is used.
        """
        views: list[View] = []
        tokens, tiles = self._tokens_per_tile(inputs), self._tiles(inputs)
        side, first_token = math.isqrt(tokens), 0
        height, width = (side * self._side * patch for patch in self._patch_size)
        for pixels in inputs["pixel_values"][..., :height, :width].split(tiles):
            *parts, whole = pixels
            views.append(grid_view(whole, side, side, first_token + len(parts) * tokens))
            if parts:
                rows, columns = _grid_of_tiles(pixels[:-1], whole)
                boxes = [
                    (
                        left + column * width,
                        top + row * height,
                        right + column * width,
                        bottom + row * height,
                    )
                    for row in range(rows)
                    for column in range(columns)
                    for left, top, right, bottom in grid_boxes(height, width, side, side)
                ]
                views.append(
                    View(
                        arranged(pixels[:-1], rows, columns),
                        tuple(range(first_token, first_token + len(boxes))),
                        tuple(boxes),
                    )
                )
            first_token += len(pixels) * tokens
        return views

    def _tokens_per_tile(self, inputs: Mapping[str, Any]) -> int:
        """
        Raises:
            ValueError, TypeError: ``pixel_values`` does not hold square tiles that pixel shuffle
                can merge.
        """
        pixels = inputs["pixel_values"]
        if not isinstance(pixels, torch.Tensor) or pixels.ndim != 4:
            is_tensor = isinstance(pixels, torch.Tensor)
            got = list(pixels.shape) if is_tensor else type(pixels).__name__
            raise TypeError(
                f"pixel_values must be a tensor [tiles, channels, height, width], got {got}"
            )
        rows, columns = (
            length // patch
            for length, patch in zip(pixels.shape[2:], self._patch_size, strict=True)
        )
        if not len(pixels) or rows != columns or rows < 1 or rows % self._side:
            raise ValueError(
                f"pixel_values must be one or more square tiles with a multiple of {self._side} "
                f"patches to a side, as {self._side} x {self._side} patches make a token, got "
                f"{list(pixels.shape)}, which are {rows} x {columns} patches"
            )
        return (rows // self._side) ** 2

    def _tiles(self, inputs: Mapping[str, Any]) -> list[int]:
        """Return the number of tiles of each image. Synchronises ``input_ids``.

        Raises:
            ValueError: the prompts do not show which tiles belong to one image.
        """
        tiles, tokens = len(inputs["pixel_values"]), self._tokens_per_tile(inputs)
        input_ids = inputs.get("input_ids")
        if input_ids is None:
            if inputs.get("inputs_embeds") is not None:
                raise ValueError(
                    "prompts with images must be given as input_ids: where their placeholders "
                    "stand together tells which tiles are one image, and inputs_embeds have none"
                )
            return [1] * tiles  # views() without a prompt
        runs = placeholder_runs(input_ids, self.token_ids[0])
        # generate may repeat a prompt, but not its tiles.
        found = sum(map(sum, runs))
        repeats = found // (tiles * tokens)
        if repeats < 1 or len(runs) % repeats or found != repeats * tiles * tokens:
            return [1] * tiles  # no match: find_images raises the error
        images = []
        for row, lengths in enumerate(runs[::repeats]):
            for length in lengths:
                if length % tokens:
                    raise ValueError(
                        f"prompt {row} has {length} image placeholders in a run, which is not a "
                        f"multiple of the {tokens} tokens that the model makes of a tile. Either "
                        f"the processor counts otherwise (its image_seq_length must be the "
                        f"model's), or the prompt was cut, by a tokenizer's max_length"
                    )
                images.append(length // tokens)
        return images if sum(images) == tiles else [1] * tiles

    @torch.no_grad()  # the ops after the tower record no autograd graph either
    def encode(self, model: Any, inputs: Mapping[str, Any]) -> VisionOutput:
        inner = self.inner_model(model)
        tower = image_tower(model)  # not cached: it may be wrapped or compiled later
        tokens, tiles = self._tokens_per_tile(inputs), self._tiles(inputs)
        with self._listener.listen() as captured:
            # True, not a list of layers: transformers may return None for unlisted layers.
            outputs = tower(
                inputs["pixel_values"].to(dtype=inner.dtype),
                output_hidden_states=True,
                return_dict=True,
            )
        states, query, key = outputs.hidden_states, captured.query, captured.key
        assert query is not None and key is not None and captured.scale is not None
        # The tower may normalise the last layer's output, so take last_hidden_state then.
        is_last = self._feature_layer == -1
        features = outputs.last_hidden_state if is_last else states[self._feature_layer]

        def by_image(patches: torch.Tensor) -> torch.Tensor:
            """Shuffle [tiles, patches, width] to [images, N, patches per token * width]."""
            side = math.isqrt(patches.shape[1])
            grid = patches.reshape(len(patches), side, side, -1)
            shuffled = inner.pixel_shuffle(grid, scale_factor=self._ratio).flatten(1, 2)
            return padded(shuffled.flatten(0, 1).split([count * tokens for count in tiles]))

        def salience() -> torch.Tensor:
            of_patches = attention_salience(
                query[:, :, :1],  # of the CLS token
                key,
                scale=captured.scale,
                key_range=(1, key.shape[2]),
            )
            return by_image(of_patches[..., None]).sum(-1)

        return VisionOutput(
            fused_layers=[by_image(states[index][:, 1:]) for index in self.layers.states],
            features=by_image(features[:, 1:]),
            salience=salience,
            counts=tuple(count * tokens for count in tiles),
        )

    def project(self, model: Any, tokens: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = self.inner_model(model).multi_modal_projector(tokens)
        return projected

    def positions(self, model: Any, inputs: Mapping[str, Any], past: int) -> torch.Tensor:
        return counted_positions(inputs, past)

    def later_positions(self, model: Any, past: int, columns: int, rows: int) -> torch.Tensor:
        return torch.arange(past, past + columns)[None]


def _grid_of_tiles(tiles: torch.Tensor, whole: torch.Tensor) -> tuple[int, int]:
    """Return the grid (rows, columns) in which the tiles look most like the whole image.

    Ties go to the squarer grid.
    """
    count = len(tiles)
    grids = [(rows, count // rows) for rows in range(1, count + 1) if count % rows == 0]
    grids.sort(key=lambda grid: abs(grid[0] - grid[1]))

    def difference(grid: tuple[int, int]) -> float:
        picture = arranged(tiles.detach(), *grid).float()
        small = torch.nn.functional.interpolate(picture[None], whole.shape[1:], mode="area")[0]
        return float((small - whole.detach().float()).square().mean())

    return min(grids, key=difference)
