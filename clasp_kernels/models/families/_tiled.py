"""Shared by LLaVA-NeXT and LLaVA-OneVision: the whole image, its tiles, and newlines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from clasp_kernels.models.adapter import Box, View, VisualGroup
from clasp_kernels.models.compat import tile_grid, tiles_of_image
from clasp_kernels.models.families._projected import ProjectedAdapter, check_image_sizes
from clasp_kernels.models.families._views import arranged
from clasp_kernels.policy import Profile


class TiledAdapter(ProjectedAdapter):
    """Base adapter for images that the processor splits into a resized whole and tiles.

    The whole image and its tiles compete in one pool of tokens. The model arranges the tiles to the
    image again, cuts off their padding, and ends each row of patches with an embedding of its own
    (``image_newline``). The newline has a placeholder, but is not a visual token and is never
    dropped. An image without tiles has one newline at its end.
    """

    visual_arguments: tuple[str, ...] = ("pixel_values", "image_sizes")
    settings: tuple[str, ...] = (*ProjectedAdapter.settings, "image_grid_pinpoints")
    encoders: tuple[str, ...] = ("get_image_features", "pack_image_features")
    parts: tuple[str, ...] = (*ProjectedAdapter.parts, "image_newline", "pack_image_features")

    def __init__(self, model: Any, profile: Profile, fuse_into: str) -> None:
        import transformers

        super().__init__(model, profile, fuse_into)
        if self.tokens_per_tile() != self._side**2:
            raise ValueError(
                "config.vision_feature_select_strategy must be 'default', as a CLS token has no "
                "place among the patches of tiles, got 'full'"
            )
        self._original = getattr(transformers, self.inner_class)
        #: Stands in for the model as ``self`` of ``pack_image_features``, which only reads the
        #: config.
        self._model = SimpleNamespace(config=model.config)

    def packing(self) -> dict[str, Any]:
        """Return further arguments of the model's ``pack_image_features``."""
        raise NotImplementedError

    def pack(
        self,
        tiles: Sequence[torch.Tensor],
        sizes: Sequence[Sequence[int]],
        newline: torch.Tensor | None = None,
    ) -> list[torch.Tensor]:
        """Arrange each image's tiles [tiles, P, width] to [tokens, width], as the model does.

        ``newline`` [width] is put at the end of each row, if given.
        """
        images, _ = self._original.pack_image_features(
            self._model, tiles, sizes, image_newline=newline, **self.packing()
        )
        return list(images)

    def image_group(self, inputs: Mapping[str, Any]) -> VisualGroup:
        sizes, tiles = self.image_tiles(inputs)
        blank = [torch.zeros(count, self._side**2, 1, device="cpu") for count in tiles]
        newline = torch.ones(1, device="cpu")
        ends = [image[:, 0].nonzero()[:, 0].tolist() for image in self.pack(blank, sizes, newline)]
        lengths = [len(image) for image in self.pack(blank, sizes)]
        separators = tuple(map(tuple, ends))
        return VisualGroup("image", "pixel_values", self.token_ids[0], tuple(lengths), separators)

    def image_views(self, inputs: Mapping[str, Any]) -> list[View]:
        """Return two views of each image: the whole, and its tiles put together without padding."""
        views: list[View] = []
        sizes, counts = self.image_tiles(inputs)
        first_token = 0
        images = self.pixels_of(inputs, counts).split(counts)
        for pixels, size, count in zip(images, sizes, counts, strict=True):
            grid = tile_grid(size, self._settings["image_grid_pinpoints"], self._tile)
            # Pack the patches' positions like features: this gives the position of each token.
            [places] = self.pack([self._places(grid)[:count]], [size])
            tokens = range(first_token, first_token + len(places))
            views.append(self.tile_view(pixels[0], first_token))
            if count > 1:
                whole = self._side**2
                mosaic = arranged(self.seen(pixels[1:]), *grid)
                views.append(_placed(mosaic, places[whole:], tokens[whole:], self._patch))
            first_token += len(places)
        return views

    def _places(self, grid: tuple[int, int]) -> torch.Tensor:
        """Return the centre of each patch in pixels (row, column), [tiles, patches, 2].

        The first tile is the whole image, with centres in that view. The centres of the other tiles
        are in the arranged tiles.
        """
        rows, columns = grid
        length = self._side * self._patch
        inside = (torch.arange(self._side) + 0.5) * self._patch
        tile = torch.cartesian_prod(inside, inside)
        corners = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)) * length
        return torch.cat([tile[None], tile + corners[:, None]])

    def image_tiles(self, inputs: Mapping[str, Any]) -> tuple[list[tuple[int, int]], list[int]]:
        """Return each image's height and width, and its number of tiles. Synchronises.

        Raises:
            ValueError, TypeError: ``pixel_values`` and ``image_sizes`` do not match.
        """
        pixels, sizes = inputs["pixel_values"], check_image_sizes(inputs)
        pinpoints = self._settings["image_grid_pinpoints"]
        tiles = [
            tiles_of_image(size, pinpoints, self._tile) if alone else 1
            for size, alone in zip(sizes, self.alone(inputs, len(sizes)), strict=True)
        ]
        is_tensor = isinstance(pixels, torch.Tensor)
        got = list(pixels.shape) if is_tensor else type(pixels).__name__
        if not is_tensor or pixels.ndim not in (4, 5):
            raise TypeError(
                f"pixel_values must be a tensor [images, tiles, channels, height, width], got {got}"
            )
        self.check_size("pixel_values", pixels)
        if pixels.ndim == 5 and len(pixels) != len(sizes):
            raise ValueError(
                f"pixel_values holds {len(pixels)} images, but image_sizes {len(sizes)}"
            )
        has = pixels.shape[1] if pixels.ndim == 5 else len(pixels)
        needs = max(tiles, default=0) if pixels.ndim == 5 else sum(tiles)
        if has < needs or (pixels.ndim == 4 and has != needs):
            raise ValueError(
                f"pixel_values has {has} tiles, but image_sizes {sizes} need {needs}: the "
                f"processor's image_grid_pinpoints and size must be the model's"
            )
        return sizes, tiles

    def alone(self, inputs: Mapping[str, Any], images: int) -> list[bool]:
        """Return whether each image has tiles, rather than only the whole image."""
        return [True] * images

    def pixels_of(self, inputs: Mapping[str, Any], tiles: Sequence[int]) -> torch.Tensor:
        """Return the pixels of all tiles, [all tiles, channels, height, width]."""
        pixels: torch.Tensor = inputs["pixel_values"]
        if pixels.ndim == 4:
            return pixels
        return torch.cat([image[:count] for image, count in zip(pixels, tiles, strict=True)])


def _placed(pixels: torch.Tensor, middles: torch.Tensor, tokens: Sequence[int], patch: int) -> View:
    """Return a view of the part of a picture that a grid of tokens covers.

    ``middles`` [tokens, 2] has the centre (row, column) of each token. A token may cover several
    patches, if the model downsamples the image.
    """
    height, width = (_step(middles[:, axis], patch) for axis in (0, 1))
    edges = [
        (column - width / 2, row - height / 2, column + width / 2, row + height / 2)
        for row, column in middles.tolist()
    ]
    # The offset makes a shared edge of two tokens round to the same pixel despite float error.
    inside = [tuple(round(edge + 1e-3) for edge in of_token) for of_token in edges]
    left, top = (min(box[side] for box in inside) for side in (0, 1))
    boxes: list[Box] = [(x - left, y - top, r - left, b - top) for x, y, r, b in inside]
    right, bottom = (max(box[side] for box in boxes) for side in (2, 3))
    return View(pixels[:, top : top + bottom, left : left + right], tuple(tokens), tuple(boxes))


def _step(middles: torch.Tensor, patch: int) -> float:
    """Return the distance between rows (or columns) of tokens; ``patch`` if there is only one."""
    steps = middles.sort().values.diff()
    steps = steps[steps > 0.5]
    return float(steps.min()) if len(steps) else float(patch)
