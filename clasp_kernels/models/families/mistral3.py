"""Mistral 3: a Pixtral tower with the patches of all images in one row, neighbours merged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from clasp_kernels import attention_salience
from clasp_kernels.models.adapter import View, VisionOutput, VisualGroup
from clasp_kernels.models.compat import image_tower
from clasp_kernels.models.families._items import padded
from clasp_kernels.models.families._projected import (
    ProjectedAdapter,
    check_image_sizes,
    check_pixels,
)
from clasp_kernels.models.families._views import grid_view
from clasp_kernels.policy import Profile


class Mistral3Adapter(ProjectedAdapter):
    """``Mistral3ForConditionalGeneration`` with a Pixtral tower.

    A visual token's salience is the attention that its patches get from all patches of its image in
    one vision layer. Its fused feature is the mean over its patches. The row-end tokens of an image
    are text and are never dropped.
    """

    model_class = "Mistral3ForConditionalGeneration"
    inner_class = "Mistral3Model"
    towers = ("pixtral",)
    settings = ("vision_feature_layer", "spatial_merge_size")
    visual_arguments: tuple[str, ...] = ("pixel_values", "image_sizes")

    def __init__(self, model: Any, profile: Profile, fuse_into: str) -> None:
        super().__init__(model, profile, fuse_into)
        if fuse_into == "projector":
            raise ValueError(
                "fuse_into='projector' needs a projector that takes tokens one by one, but this "
                "model merges patches; use fuse_into='selection'"
            )
        self._patch = int(model.config.vision_config.patch_size)
        self._merged = int(model.config.spatial_merge_size)

    def untrained(self, model: Any) -> dict[str, torch.nn.Module]:
        projector = self.inner_model(model).multi_modal_projector
        return {**super().untrained(model), "the projector": projector}

    def groups(self, inputs: Mapping[str, Any]) -> list[VisualGroup]:
        counts = [
            (rows // self._merged) * (columns // self._merged)
            for rows, columns in self._grids(inputs)
        ]
        return [VisualGroup("image", "pixel_values", self.token_ids[0], tuple(counts))]

    def _grids(self, inputs: Mapping[str, Any]) -> list[tuple[int, int]]:
        """Return rows and columns of patches of each image. Synchronises.

        Raises:
            ValueError, TypeError: ``image_sizes`` and ``pixel_values`` do not match.
        """
        axes = ("images", "channels", "height", "width")
        pixels = check_pixels("pixel_values", inputs["pixel_values"], axes)
        sizes = check_image_sizes(inputs)
        token = self._patch * self._merged
        if len(sizes) != len(pixels):
            raise ValueError(
                f"pixel_values holds {len(pixels)} images, but image_sizes {len(sizes)}"
            )
        for height, width in sizes:
            if not (token <= height <= pixels.shape[2] and token <= width <= pixels.shape[3]):
                raise ValueError(
                    f"image_sizes must be heights and widths from {token}, the side of a visual "
                    f"token, to those of pixel_values, {list(pixels.shape[2:])}, got "
                    f"{[height, width]}"
                )
        return [(height // self._patch, width // self._patch) for height, width in sizes]

    def views(self, inputs: Mapping[str, Any]) -> list[View]:
        views: list[View] = []
        first_token, side = 0, self._patch * self._merged
        for pixels, grid in zip(inputs["pixel_values"], self._grids(inputs), strict=True):
            rows, columns = (length // self._merged for length in grid)
            seen = pixels[:, : rows * side, : columns * side]
            views.append(grid_view(seen, rows, columns, first_token))
            first_token += rows * columns
        return views

    @torch.no_grad()  # the ops after the tower record no autograd graph either
    def encode(self, model: Any, inputs: Mapping[str, Any]) -> VisionOutput:
        grids = self._grids(inputs)
        sizes = [(rows * self._patch, columns * self._patch) for rows, columns in grids]
        lengths = [rows * columns for rows, columns in grids]
        with self._listeners["image"].listen() as captured:
            # True, not a list of layers: transformers may return None for unlisted layers.
            outputs = image_tower(model)(
                inputs["pixel_values"],
                image_sizes=sizes,
                output_hidden_states=True,
                return_dict=True,
            )
        states, query, key = outputs.hidden_states, captured.query, captured.key
        assert query is not None and key is not None
        selected = [states[index][0] for index in self.feature_states]
        projector = self.inner_model(model).multi_modal_projector
        features = projector(torch.cat(selected, dim=-1), sizes)

        def by_token(patches: torch.Tensor) -> list[torch.Tensor]:
            """Average [all patches, width] by token: [tokens, width] of each image."""
            return [
                _mean_of_squares(image.unflatten(0, grid), self._merged)
                for image, grid in zip(patches.split(lengths), grids, strict=True)
            ]

        def salience() -> torch.Tensor:
            images = zip(query.split(lengths, dim=2), key.split(lengths, dim=2), strict=True)
            of_patches = [attention_salience(q, k, scale=captured.scale)[0] for q, k in images]
            scores = by_token(torch.cat(of_patches)[:, None])
            return padded([image[:, 0] for image in scores]) * self._merged**2

        layers = [by_token(states[index][0]) for index in self.layers.states]
        counts = tuple(map(len, layers[0]))
        return VisionOutput(
            fused_layers=[padded(layer) for layer in layers],
            features=padded(features.split(counts)),
            salience=salience,
            counts=counts,
        )

    def project(self, model: Any, tokens: torch.Tensor) -> torch.Tensor:
        return tokens


def _mean_of_squares(grid: torch.Tensor, side: int) -> torch.Tensor:
    """Average squares of [rows, columns, width], row by row: [tokens, width]. Patches at the right
    and at the bottom that fill no square are left out."""
    rows, columns = grid.shape[0] // side, grid.shape[1] // side
    whole = grid[: rows * side, : columns * side]
    return whole.unflatten(1, (columns, side)).unflatten(0, (rows, side)).mean((1, 3)).flatten(0, 1)
