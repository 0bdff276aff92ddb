"""Video-LLaVA: a CLIP tower for images, and another for the frames of videos."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from clasp_kernels.models.adapter import View, VisionOutput, VisualGroup
from clasp_kernels.models.families._items import padded
from clasp_kernels.models.families._projected import EncodedTiles, ProjectedAdapter, check_pixels
from clasp_kernels.policy import Profile

_IMAGES = ("pixel_values", "pixel_values_images")
_VIDEOS = ("pixel_values_videos",)
_IMAGE_AXES = ("images", "channels", "height", "width")
_VIDEO_AXES = ("videos", "frames", "channels", "height", "width")


class VideoLlavaAdapter(ProjectedAdapter):
    """``VideoLlavaForConditionalGeneration`` with CLIP towers.

    All frames of a video compete in one pool of tokens, so repeated content is kept once. As in the
    model, a frame's CLS token is a visual token, and an image's is not.
    """

    model_class = "VideoLlavaForConditionalGeneration"
    inner_class = "VideoLlavaModel"
    encoders = ("get_image_features", "get_video_features")
    pixel_arguments: tuple[str, ...] = (*_IMAGES, *_VIDEOS)
    visual_arguments: tuple[str, ...] = pixel_arguments

    parts = (*ProjectedAdapter.parts, "image_tower", "video_tower")

    def __init__(self, model: Any, profile: Profile, fuse_into: str) -> None:
        super().__init__(model, profile, fuse_into)
        self.token_ids = (int(model.config.image_token_id), int(model.config.video_token_id))

    def vision_towers(self, model: Any) -> dict[str, Any]:
        inner = self.inner_model(model)
        return {"image": inner.image_tower, "video": inner.video_tower}

    def groups(self, inputs: Mapping[str, Any]) -> list[VisualGroup]:
        images, videos = (self._given(inputs, names) for names in (_IMAGES, _VIDEOS))
        image_token, video_token = self.token_ids
        groups = []
        if images is not None:
            pixels = check_pixels(images, inputs[images], _IMAGE_AXES)
            self.check_size(images, pixels)
            counts = (self.tokens_per_tile(),) * len(pixels)
            groups.append(VisualGroup("image", images, image_token, counts))
        if videos is not None:
            pixels = check_pixels(videos, inputs[videos], _VIDEO_AXES)
            self.check_size(videos, pixels)
            counts = (pixels.shape[1] * self.tokens_per_tile(keeps_cls=True),) * len(pixels)
            groups.append(VisualGroup("video", videos, video_token, counts))
        return groups

    def views(self, inputs: Mapping[str, Any]) -> list[View]:
        views: list[View] = []
        first_token = 0
        images, videos = (self._given(inputs, names) for names in (_IMAGES, _VIDEOS))
        for name, keeps_cls in ((images, None), (videos, True)):
            if name is None:
                continue
            for pixels in inputs[name].reshape(-1, *inputs[name].shape[-3:]):
                views.append(self.tile_view(pixels, first_token, keeps_cls))
                first_token += self.tokens_per_tile(keeps_cls)
        return views

    def encode(self, model: Any, inputs: Mapping[str, Any]) -> VisionOutput:
        images, videos = (self._given(inputs, names) for names in (_IMAGES, _VIDEOS))
        encoded: list[tuple[int, EncodedTiles]] = []  # (tiles per item, all tiles) of each group
        if images is not None:
            encoded.append((1, self.encode_tiles(model, inputs[images])))
        if videos is not None:
            pixels = inputs[videos]
            tiles = self.encode_tiles(model, pixels.flatten(0, 1), "video", keeps_cls=True)
            encoded.append((pixels.shape[1], tiles))

        def by_item(parts: Iterable[torch.Tensor]) -> torch.Tensor:
            """Join each group's tiles [tiles, P, ...] by item: [items, N, ...]."""
            items: list[torch.Tensor] = []
            for part, (each, _) in zip(parts, encoded, strict=True):
                items += part.unflatten(0, (-1, each)).flatten(1, 2)
            return padded(items)

        layers = zip(*(tiles.fused_layers for _, tiles in encoded), strict=True)
        return VisionOutput(
            fused_layers=[by_item(layer) for layer in layers],
            features=by_item(tiles.features for _, tiles in encoded),
            salience=lambda: by_item(tiles.salience() for _, tiles in encoded),
            counts=tuple(count for group in self.groups(inputs) for count in group.counts),
        )

    @staticmethod
    def _given(inputs: Mapping[str, Any], names: Sequence[str]) -> str | None:
        """Return the name under which an argument was given, or None.

        Raises:
            ValueError: it was given under two names.
        """
        given = [name for name in names if inputs.get(name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are names of one argument; pass one")
        return given[0] if given else None
