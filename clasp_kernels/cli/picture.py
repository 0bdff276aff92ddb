"""What is drawn: the image as the model saw it, and where in it the kept and dropped tokens are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from clasp_kernels.cli.comparison import Comparison
from clasp_kernels.cli.errors import refusing_as
from clasp_kernels.cli.loading import LoadedModel

if TYPE_CHECKING:
    from PIL import Image

    from clasp_kernels.visualize import Dropped


def overlay(
    loaded: LoadedModel, image: Image.Image, comparison: Comparison, size: int
) -> tuple[Image.Image, Image.Image, list[Dropped]]:
    """The image as the model sees it, what was kept, and what each stage dropped.

    Raises NoPicture if that is not known.
    """
    from clasp_kernels.visualize import draw_selection

    grid = patch_grid(comparison.all_tokens.visual_tokens)
    if grid is None:
        raise NoPicture(
            f"the model's {comparison.all_tokens.visual_tokens} tokens form no square grid"
        )
    rows, columns, leading = grid
    seen = image_as_seen(loaded, image)
    patches = [
        (index - leading, pivot)
        for index, pivot in zip(comparison.indices, comparison.is_pivot, strict=True)
        if index >= leading  # a kept CLS token has no place in the image
    ]
    indices, is_pivot = [index for index, _ in patches], [pivot for _, pivot in patches]
    dropped = _dropped(comparison, leading)
    drawn = draw_selection(seen, indices, is_pivot, (rows, columns), size=size, dropped=dropped)
    return seen, drawn, dropped


def _dropped(comparison: Comparison, leading: int) -> list[Dropped]:
    """The patches that each stage dropped; the first ``leading`` tokens are no patches."""
    from clasp_kernels.visualize import Dropped

    dropped = []
    left = set(range(leading, comparison.all_tokens.visual_tokens))
    for stage in comparison.stages:
        gone = sorted(left.difference(stage.indices))
        dropped.append(Dropped(stage.when, [index - leading for index in gone]))
        left.difference_update(gone)
    return dropped


def patch_grid(num_tokens: int) -> tuple[int, int, int] | None:
    """(rows, columns, tokens before the first patch) of a square grid, or None if it is not one.

    >>> patch_grid(576), patch_grid(577), patch_grid(600)
    ((24, 24, 0), (24, 24, 1), None)
    """
    for leading in (0, 1):  # one: a CLS token among the visual tokens
        side = math.isqrt(num_tokens - leading)
        if side * side == num_tokens - leading:
            return side, side, leading
    return None


class NoPicture(ValueError):
    """No picture can be drawn: the image that the model saw, or the places of its tokens in that
    image, are not known."""


def image_as_seen(loaded: LoadedModel, image: Image.Image) -> Image.Image:
    """The image under the patch grid: the model's own input, its normalisation undone.

    Whatever an image processor resizes, crops, pads or squashes is then in the picture. Raises
    NoPicture if the pixels are not those of one RGB image, or what was done to them is not known.
    """
    import torch
    from PIL import Image

    processor = loaded.processor.image_processor
    with refusing_as(f"the image processor of {loaded.name} cannot prepare this image"):
        pixels = processor(images=image, return_tensors="pt")["pixel_values"]
    if pixels.ndim != 4 or pixels.shape[:2] != (1, 3):
        raise NoPicture(
            f"the model's input has the shape {list(pixels.shape)}, not that of one RGB image"
        )
    try:
        values = pixels[0].double()
        if processor.do_normalize:
            scale, shift = (
                torch.as_tensor(each, dtype=torch.double).reshape(-1, 1, 1)
                for each in (processor.image_std, processor.image_mean)
            )
            values = values * scale + shift
        if processor.do_rescale:
            values = values / processor.rescale_factor
    except (AttributeError, TypeError, ValueError, RuntimeError):
        values = torch.tensor(math.nan)  # not described as transformers' own processors are
    # Smoothing may overshoot by some; NaN is no number either.
    if not ((values > -64) & (values < 255 + 64)).all():
        raise NoPicture(
            f"how the image processor of {loaded.name}, {type(processor).__name__}, changes "
            f"colours is not known"
        )
    seen = Image.fromarray(values.clamp(0, 255).round().byte().permute(1, 2, 0).numpy())
    # The tower cuts whole patches; what is left at the right and at the bottom it does not see.
    patch = loaded.model.config.vision_config.patch_size
    return seen.crop((0, 0, seen.width // patch * patch, seen.height // patch * patch))
