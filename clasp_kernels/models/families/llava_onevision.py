"""LLaVA-OneVision: SigLIP encodes tiled images, several images per prompt, and videos."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from clasp_kernels.models.adapter import View, VisionOutput, VisualGroup
from clasp_kernels.models.families._items import padded
from clasp_kernels.models.families._modules import parameter_of
from clasp_kernels.models.families._projected import check_pixels
from clasp_kernels.models.families._tiled import TiledAdapter
from clasp_kernels.models.families._views import grid_view
from clasp_kernels.policy import Profile

_VIDEO_AXES = ("videos", "frames", "channels", "height", "width")


class LlavaOnevisionAdapter(TiledAdapter):
    """``LlavaOnevisionForConditionalGeneration`` with a SigLIP tower.

    The model downsamples images with many tiles, and every video frame, after the projector. The
    fused features and the salience are downsampled in the same way, and fuse_into="projector" is
    not possible. ``batch_num_images`` has the number of images of each prompt; in a prompt with
    several images, none has tiles. All frames of a video compete in one pool of tokens.
    """

    model_class = "LlavaOnevisionForConditionalGeneration"
    inner_class = "LlavaOnevisionModel"
    towers = ("siglip_vision_model",)
    settings = (*TiledAdapter.settings, "vision_aspect_ratio")
    encoders = (*TiledAdapter.encoders, "get_video_features", "apply_pooling")
    parts = (*TiledAdapter.parts, "apply_pooling")
    pixel_arguments: tuple[str, ...] = ("pixel_values", "pixel_values_videos")
    visual_arguments: tuple[str, ...] = (
        *pixel_arguments,
        "image_sizes",
        "image_sizes_videos",
        "batch_num_images",
        "vision_aspect_ratio",
    )

    def __init__(self, model: Any, profile: Profile, fuse_into: str) -> None:
        super().__init__(model, profile, fuse_into)
        if fuse_into == "projector":
            raise ValueError(
                "fuse_into='projector' needs a projector that takes tokens one by one, but this "
                "model shrinks what it projected; use fuse_into='selection'"
            )
        self.token_ids = (int(model.config.image_token_id), int(model.config.video_token_id))

    def packing(self) -> dict[str, Any]:
        return {"vision_aspect_ratio": self._settings["vision_aspect_ratio"]}

    def alone(self, inputs: Mapping[str, Any], images: int) -> list[bool]:
        given = inputs.get("batch_num_images")
        if given is None:
            return [True] * images
        counts = [int(count) for count in given]
        if sum(counts) != images:
            raise ValueError(
                f"batch_num_images must add up to the {images} images of image_sizes, got {counts}"
            )
        return [count == 1 for count in counts for _ in range(count)]

    def groups(self, inputs: Mapping[str, Any]) -> list[VisualGroup]:
        groups = []
        if inputs.get("pixel_values") is not None:
            groups.append(self.image_group(inputs))
        if inputs.get("pixel_values_videos") is not None:
            name = "pixel_values_videos"
            videos, frames = check_pixels(name, inputs[name], _VIDEO_AXES).shape[:2]
            self.check_size(name, inputs[name])
            count = frames * self._side_of_frame**2
            groups.append(
                VisualGroup(
                    "video", name, self.token_ids[1], (count,) * videos, ((count,),) * videos
                )
            )
        return groups

    @property
    def _side_of_frame(self) -> int:
        """Tokens per side of a downsampled video frame."""
        return math.ceil(self._side / 2)

    def views(self, inputs: Mapping[str, Any]) -> list[View]:
        views = []
        if inputs.get("pixel_values") is not None:
            views += self.image_views(inputs)
        if inputs.get("pixel_values_videos") is not None:
            first_token = sum(len(view.tokens) for view in views)
            side = self._side_of_frame
            for number, frame in enumerate(inputs["pixel_values_videos"].flatten(0, 1)):
                views.append(
                    grid_view(self.seen(frame), side, side, first_token + number * side**2)
                )
        return views

    @torch.no_grad()  # the ops after the tower record no autograd graph either
    def encode(self, model: Any, inputs: Mapping[str, Any]) -> VisionOutput:
        inner = self.inner_model(model)
        # Per item, in the order of the groups: features, fused layers and salience.
        features: list[torch.Tensor] = []
        layers: list[list[torch.Tensor]] = [[] for _ in self.layers.states]
        saliences: list[Callable[[], list[torch.Tensor]]] = []

        def add(
            pixels: torch.Tensor, arrange: Callable[[torch.Tensor], list[torch.Tensor]]
        ) -> None:
            tiles = self.encode_tiles(model, pixels)
            features.extend(arrange(inner.multi_modal_projector(tiles.features)))
            for items, layer in zip(layers, tiles.fused_layers, strict=True):
                items.extend(arrange(layer))
            saliences.append(lambda: arrange(tiles.salience()[..., None]))

        if inputs.get("pixel_values") is not None:
            sizes, counts = self.image_tiles(inputs)
            add(
                self.pixels_of(inputs, counts),
                lambda patches: self.pack(patches.split(counts), sizes),
            )
        if inputs.get("pixel_values_videos") is not None:
            videos: torch.Tensor = inputs["pixel_values_videos"]
            add(
                videos.flatten(0, 1),
                lambda patches: list(
                    inner.apply_pooling(patches).unflatten(0, videos.shape[:2]).flatten(1, 2)
                ),
            )
        return VisionOutput(
            fused_layers=[padded(items) for items in layers],
            features=padded(features),
            salience=lambda: padded([item[:, 0] for items in saliences for item in items()]),
            counts=tuple(map(len, features)),
            separator=parameter_of(inner, "image_newline"),
        )

    def untrained(self, model: Any) -> dict[str, torch.nn.Module]:
        projector = self.inner_model(model).multi_modal_projector
        return {**super().untrained(model), "the projector": projector}

    def project(self, model: Any, tokens: torch.Tensor) -> torch.Tensor:
        return tokens
