"""Idefics 3 and SmolVLM: tiles with text between them; pixel shuffle merges patches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
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
from clasp_kernels.models.families._positions import counted_positions
from clasp_kernels.models.families._projected import check_pixels
from clasp_kernels.models.families._views import mosaic_view
from clasp_kernels.models.patching import Patch
from clasp_kernels.policy import Profile

_AXES = ("prompts", "images", "channels", "height", "width")


class Idefics3Adapter:
    """``Idefics3ForConditionalGeneration``.

    The processor cuts an image into tiles, and puts text between the tiles and the whole image, so
    each of them counts as an image. Prompts with fewer images than others are padded with images of
    zeros, which the model ignores.

    There is no CLS token. A visual token's salience is the attention that its patches get from all
    patches of the tile in one vision layer. Its fused feature is the mean over its patches.
    """

    model_class = "Idefics3ForConditionalGeneration"
    inner_class = "Idefics3Model"
    pixel_arguments: tuple[str, ...] = ("pixel_values",)
    visual_arguments: tuple[str, ...] = ("pixel_values", "pixel_attention_mask")
    position_axes: tuple[int, ...] = ()
    deeper_layers: int = 0
    sees_prompts_whole: bool = False

    def __init__(self, model: Any, profile: Profile, fuse_into: str) -> None:
        import transformers

        config = model.config
        require_class(model, self.model_class)
        if fuse_into == "projector":
            raise ValueError(
                "fuse_into='projector' needs a projector that takes tokens one by one, but this "
                "model merges patches; use fuse_into='selection'"
            )
        num_layers = config.vision_config.num_hidden_layers
        self.layers = profile.for_tower(num_layers)
        wanted = self.layers.salience_layer
        attentions = attention_modules(image_tower(model), num_layers)
        self._attention = attentions[num_layers - 1 if wanted is None else wanted]
        self._listener = AttentionListener(self._attention)
        inner = self.inner_model(model)
        require_parts(inner, ("connector",))
        require_parts(inner.connector, ("pixel_shuffle",))
        if is_overridden(inner, "get_image_features", getattr(transformers, self.inner_class)):
            raise TypeError(
                f"{type(inner).__name__}.get_image_features is not {self.inner_class}'s, which "
                f"pruning relies on"
            )
        self._patch = int(config.vision_config.patch_size)
        self._side = int(config.scale_factor)
        self.token_ids: tuple[int, ...] = (int(config.image_token_id),)
        self.text_config = config.get_text_config()

    def inner_model(self, model: Any) -> Any:
        import transformers

        return module_inside(model, getattr(transformers, self.inner_class))

    def patches(self) -> list[Patch]:
        return [self._listener.patch(self._attention)]

    def untrained(self, model: Any) -> dict[str, torch.nn.Module]:
        projector = self.inner_model(model).connector
        return {"the vision tower": image_tower(model), "the projector": projector}

    def tokens_per_image(self) -> int | None:
        return None  # the size of tiles depends on the processor

    def check_call(self, model: Any, inputs: Mapping[str, Any]) -> None:
        names = ("image_token_id", "scale_factor")
        for name, before in zip(names, (self.token_ids[0], self._side), strict=True):
            if getattr(model.config, name) != before:
                raise ValueError(
                    f"config.{name} is {getattr(model.config, name)}, but was {before} when "
                    f"apply_clasp was called: remove() the handle and apply again"
                )

    def groups(self, inputs: Mapping[str, Any]) -> list[VisualGroup]:
        pixels = check_pixels("pixel_values", inputs["pixel_values"], _AXES)
        rows, columns = (length // self._patch for length in pixels.shape[3:])
        if rows != columns or rows < 1 or rows % self._side:
            raise ValueError(
                f"pixel_values must be square images with a multiple of {self._side} patches to a "
                f"side, as {self._side} x {self._side} patches make a token, got "
                f"{list(pixels.shape)}, which are {rows} x {columns} patches"
            )
        mask = inputs.get("pixel_attention_mask")
        expected = [*pixels.shape[:2], *pixels.shape[3:]]
        if mask is not None and list(mask.shape) != expected:
            raise ValueError(
                f"pixel_attention_mask must be [prompts, images, height, width], {expected}, got "
                f"{list(mask.shape)}"
            )
        images = int(_is_image(pixels).sum())
        if not images:
            raise ValueError("pixel_values holds no image: all pixels are 0, as in padding")
        counts = ((rows // self._side) ** 2,) * images
        return [VisualGroup("image", "pixel_values", self.token_ids[0], counts)]

    def views(self, inputs: Mapping[str, Any]) -> list[View]:
        """Tiles of one image are one view, arranged as the prompt has them."""
        [group] = self.groups(inputs)
        side = math.isqrt(group.counts[0])
        length = side * self._side * self._patch
        pixels = inputs["pixel_values"][..., :length, :length]
        images = pixels[_is_image(inputs["pixel_values"])]
        grids = [(1, 1)] * len(images)
        input_ids = inputs.get("input_ids")
        if input_ids is not None:
            # generate may repeat a prompt, but not its images.
            repeats = int((input_ids == group.token_id).sum()) // sum(group.counts)
            grids = _tile_grids(input_ids[:: max(1, repeats)], group.token_id, side**2)
        views: list[View] = []
        first = 0
        for rows, columns in grids:
            tiles = images[first : first + rows * columns]
            views.append(mosaic_view(tiles, rows, side, first * side**2))
            first += len(tiles)
        return views

    @torch.no_grad()  # the ops after the tower record no autograd graph either
    def encode(self, model: Any, inputs: Mapping[str, Any]) -> VisionOutput:
        inner = self.inner_model(model)
        pixels, mask = inputs["pixel_values"], inputs.get("pixel_attention_mask")
        [group] = self.groups(inputs)
        with self._listener.listen() as captured:
            # The model's own method, because it removes padding images. output_hidden_states is
            # True, not a list of layers: transformers may return None for unlisted layers.
            outputs = inner.get_image_features(
                pixels, mask, output_hidden_states=True, return_dict=True
            )
        features = outputs.pooler_output
        if not isinstance(features, torch.Tensor):  # some releases return one tensor per prompt
            features = torch.cat(list(features))
        query, key = captured.query, captured.key
        assert query is not None and key is not None

        def by_token(patches: torch.Tensor) -> torch.Tensor:
            """Average [images, patches, width] by token: [images, N, width]."""
            shuffled = inner.connector.pixel_shuffle(patches.contiguous(), self._side)
            mean: torch.Tensor = shuffled.unflatten(-1, (self._side**2, -1)).mean(2)
            return mean

        def salience() -> torch.Tensor:
            valid = None if mask is None else self._seen_patches(mask[_is_image(pixels)])
            weights = None if valid is None else valid.float()
            of_patches = attention_salience(
                query, key, scale=captured.scale, key_valid=valid, query_weights=weights
            )
            return by_token(of_patches[..., None])[..., 0] * self._side**2

        return VisionOutput(
            fused_layers=[by_token(outputs.hidden_states[state]) for state in self.layers.states],
            features=features.view(len(key), group.counts[0], -1),
            salience=salience,
            counts=group.counts,
        )

    def _seen_patches(self, mask: torch.Tensor) -> torch.Tensor:
        """Return the patches with a pixel in ``mask`` [images, height, width]: [images, patches]
        bool."""
        pooled = torch.nn.functional.max_pool2d(mask[:, None].float(), self._patch)
        return pooled.flatten(1) > 0

    def project(self, model: Any, tokens: torch.Tensor) -> torch.Tensor:
        return tokens

    def positions(self, model: Any, inputs: Mapping[str, Any], past: int) -> torch.Tensor:
        return counted_positions(inputs, past)

    def later_positions(self, model: Any, past: int, columns: int, rows: int) -> torch.Tensor:
        return torch.arange(past, past + columns)[None]


class SmolVLMAdapter(Idefics3Adapter):
    """``SmolVLMForConditionalGeneration``. Each frame of a video counts as an image."""

    model_class = "SmolVLMForConditionalGeneration"
    inner_class = "SmolVLMModel"


def _is_image(pixels: torch.Tensor) -> torch.Tensor:
    """Return which of [prompts, images, channels, height, width] are not padding: [prompts, images]
    bool."""
    return (pixels != 0).flatten(2).any(-1)


# The words between two tiles of a row: one that begins an image, and one that says which it is.
_BETWEEN_TILES = 2


def _tile_grids(input_ids: torch.Tensor, token_id: int, tokens: int) -> list[tuple[int, int]]:
    """Rows and columns of the images of prompts: of tiles that were cut from one, as one; of any
    other (1, 1). Waits for the device.

    Every image has so many ``tokens``. A word before each says which tile it is, or, the same word
    every time, that it is a view of the whole, which comes last. More words follow the end of a row
    of tiles.

    >>> _tile_grids(torch.tensor([[8, 1, 9, 8, 2, 9, 7, 8, 3, 9, 8, 4, 9, 7, 8, 5, 9]]), 9, 1)
    [(2, 2), (1, 1)]
    """
    grids: list[tuple[int, int]] = []
    for ids in input_ids.tolist():
        starts = [at for at, token in enumerate(ids) if token == token_id][::tokens]
        words = [ids[start - 1] if start else None for start in starts]
        tiles: list[int] = []  # where those start that are of the image whose view comes next
        for start, word in zip(starts, words, strict=True):
            if word != words[-1]:
                tiles.append(start)
                continue
            grids += [*_grid(tiles, tokens + _BETWEEN_TILES), (1, 1)]
            tiles = []
    return grids


def _grid(starts: list[int], step: int) -> list[tuple[int, int]]:
    """The grid of tiles that start there, a new row wherever more than a ``step`` is between two;
    an image each if rows differ in length."""
    rows = [[start] for start in starts[:1]]
    for before, start in pairwise(starts):
        if start - before > step:
            rows.append([])
        rows[-1].append(start)
    lengths = {len(row) for row in rows}
    if len(lengths) > 1:
        return [(1, 1)] * len(starts)
    return [(len(rows), length) for length in lengths]
