"""LLaVA-NeXT (1.6): CLIP encodes the whole image and its tiles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from clasp_kernels.models.adapter import View, VisionOutput, VisualGroup
from clasp_kernels.models.families._items import padded
from clasp_kernels.models.families._modules import parameter_of
from clasp_kernels.models.families._tiled import TiledAdapter


class LlavaNextAdapter(TiledAdapter):
    """``LlavaNextForConditionalGeneration`` with a CLIP tower."""

    model_class = "LlavaNextForConditionalGeneration"
    inner_class = "LlavaNextModel"

    def packing(self) -> dict[str, Any]:
        strategy = self._settings["vision_feature_select_strategy"]
        return {"vision_feature_select_strategy": strategy}

    def groups(self, inputs: Mapping[str, Any]) -> list[VisualGroup]:
        return [self.image_group(inputs)]

    def views(self, inputs: Mapping[str, Any]) -> list[View]:
        return self.image_views(inputs)

    def encode(self, model: Any, inputs: Mapping[str, Any]) -> VisionOutput:
        sizes, counts = self.image_tiles(inputs)
        tiles = self.encode_tiles(model, self.pixels_of(inputs, counts))

        def by_image(patches: torch.Tensor) -> torch.Tensor:
            """Arrange [tiles, P, width] to [images, N, width]."""
            return padded(self.pack(patches.split(counts), sizes))

        features = self.pack(tiles.features.split(counts), sizes)
        return VisionOutput(
            fused_layers=[by_image(layer) for layer in tiles.fused_layers],
            features=padded(features),
            salience=lambda: by_image(tiles.salience()[..., None])[..., 0],
            counts=tuple(map(len, features)),
            separator=parameter_of(self.inner_model(model), "image_newline"),
        )
