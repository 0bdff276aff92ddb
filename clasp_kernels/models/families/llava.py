"""LLaVA 1.5: a CLIP vision tower, a per-token projector, a decoder-only language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clasp_kernels.models.adapter import View, VisionOutput, VisualGroup
from clasp_kernels.models.families._projected import ProjectedAdapter, check_pixels


def tokens_per_image(config: Any) -> int:
    """Return the visual tokens per image: patches, plus the CLS token unless the model drops it."""
    vision = config.vision_config
    patches: int = (vision.image_size // vision.patch_size) ** 2
    return patches + (config.vision_feature_select_strategy != "default")


class LlavaAdapter(ProjectedAdapter):
    """``LlavaForConditionalGeneration`` with a CLIP tower."""

    model_class = "LlavaForConditionalGeneration"
    inner_class = "LlavaModel"

    def tokens_per_image(self) -> int | None:
        return self.tokens_per_tile()

    def groups(self, inputs: Mapping[str, Any]) -> list[VisualGroup]:
        axes = ("images", "channels", "height", "width")
        pixels = check_pixels("pixel_values", inputs["pixel_values"], axes)
        counts = (self.tokens_per_tile(),) * len(pixels)
        return [VisualGroup("image", "pixel_values", self.token_ids[0], counts)]

    def views(self, inputs: Mapping[str, Any]) -> list[View]:
        each = self.tokens_per_tile()
        return [
            self.tile_view(pixels, number * each)
            for number, pixels in enumerate(inputs["pixel_values"])
        ]

    def check_call(self, model: Any, inputs: Mapping[str, Any]) -> None:
        super().check_call(model, inputs)
        if inputs.get("image_sizes") is not None:
            raise ValueError("image_sizes is for vision towers that keep the image's own size")

    def encode(self, model: Any, inputs: Mapping[str, Any]) -> VisionOutput:
        tiles = self.encode_tiles(model, inputs["pixel_values"])
        return VisionOutput(
            fused_layers=tiles.fused_layers,
            features=tiles.features,
            salience=tiles.salience,
            counts=(self.tokens_per_tile(),) * len(tiles),
        )
