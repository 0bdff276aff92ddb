"""Draw the image as the model sees it, with the kept and dropped tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clasp_kernels.cli.comparison import Comparison
from clasp_kernels.cli.loading import LoadedModel
from clasp_kernels.cli.report import caption

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from clasp_kernels.models.adapter import View
    from clasp_kernels.visualize import Box, Dropped

#: What frames mean where rules differ in how they choose: only some know a completion.
LEGEND = ("pivot: kept for its salience", "kept for another reason")
#: What they mean where a rule averages tokens.
_OF_MEANS = (LEGEND[0], "takes the mean of its group")

# Up to this many views are put in one row.
_ONE_ROW = 3
# If patches would be smaller than _LEAST_PATCH pixels, their frames would hide their content. Then
# the view is drawn larger than requested, by a factor of at most _LARGEST.
_LEAST_PATCH, _LARGEST = 14, 2.5


class NoPicture(ValueError):
    """No picture can be drawn, because the model's view of the image or the places of its tokens
    are not known."""


def overlay(
    loaded: LoadedModel, comparison: Comparison, size: int
) -> tuple[Image.Image, Image.Image, list[Dropped]]:
    """Return the image as the model sees it, the drawn selection, and the patches each stage drops.

    Several views of an image are put side by side. The longest side of a view is about ``size``, or
    larger if patches are small. Raises NoPicture if the model's view is not known.
    """
    from clasp_kernels.visualize import draw_selection

    seen, longest, placed = placed_tokens(loaded, comparison.views)
    # Token to patch number; a CLS token has no patch.
    patches = {token: number for number, (token, _) in enumerate(placed)}
    boxes = [box for _, box in placed]
    kept = [
        (patches[token], pivot)
        for token, pivot in zip(comparison.indices, comparison.is_pivot, strict=True)
        if token in patches
    ]
    dropped = _dropped(comparison, patches)
    smallest = min(min(box[2] - box[0], box[3] - box[1]) for box in boxes)
    length = min(max(size, _LEAST_PATCH * longest / smallest), _LARGEST * size)
    drawn = draw_selection(
        seen,
        [patch for patch, _ in kept],
        [pivot for _, pivot in kept],
        boxes=boxes,
        size=round(min(2.0, max(seen.size) / longest) * length),
        dropped=dropped,
    )
    return seen, drawn, dropped


def placed_tokens(
    loaded: LoadedModel, views: Sequence[View]
) -> tuple[Image.Image, int, list[tuple[int, Box]]]:
    """Return the views side by side on one page, the longest side of a view, and the tokens with
    their places on the page.

    Raises NoPicture if the model's view is not known.
    """
    if not views:
        raise NoPicture("where the model's tokens are in the image is not known")
    pictures = [as_seen(loaded, view.pixels) for view in views]
    page, corners = beside_each_other(pictures)
    placed = [
        (token, (left + x, top + y, right + x, bottom + y))
        for view, (x, y) in zip(views, corners, strict=True)
        for token, (left, top, right, bottom) in zip(view.tokens, view.boxes, strict=True)
    ]
    return page, max(max(picture.size) for picture in pictures), placed


def answer_picture(loaded: LoadedModel, comparison: Comparison) -> Image.Image:
    """Return a page with the image, what was kept of it, and both answers.

    Raises NoPicture if the model's view is not known.
    """
    from clasp_kernels.rules import find_rule
    from clasp_kernels.visualize import KEPT, selection_picture

    kept = KEPT if comparison.rule == "clasp" else LEGEND
    if find_rule(comparison.rule).pools:
        kept = _OF_MEANS
    seen, drawn, dropped = overlay(loaded, comparison, size=576)
    return selection_picture(
        seen,
        drawn,
        comparison.question,
        caption(comparison),
        dropped=dropped,
        below=len(comparison.views) > 1 and drawn.width > 1.5 * drawn.height,
        kept=kept,
    )


def _dropped(comparison: Comparison, patches: dict[int, int]) -> list[Dropped]:
    """Return the patches that each stage dropped. ``patches`` maps tokens to patch numbers."""
    from clasp_kernels.visualize import Dropped

    dropped = []
    left = set(patches)
    for stage in comparison.stages:
        gone = sorted(left.difference(stage.indices))
        dropped.append(Dropped(stage.when, [patches[token] for token in gone]))
        left.difference_update(gone)
    return dropped


def beside_each_other(
    pictures: Sequence[Image.Image],
) -> tuple[Image.Image, list[tuple[int, int]]]:
    """Put pictures in rows on a white page. Return the page and each upper left corner."""
    from PIL import Image

    per_row = len(pictures)
    if per_row > _ONE_ROW:
        per_row = math.ceil(math.sqrt(per_row))
    gap = max(1, max(max(picture.size) for picture in pictures) // 60)
    corners: list[tuple[int, int]] = []
    y = width = height = 0
    for start in range(0, len(pictures), per_row):
        x = 0
        for picture in pictures[start : start + per_row]:
            corners.append((x, y))
            width, height = max(width, x + picture.width), max(height, y + picture.height)
            x += picture.width + gap
        y = height + gap
    page = Image.new("RGB", (width, height), "white")
    for picture, corner in zip(pictures, corners, strict=True):
        page.paste(picture, corner)
    return page, corners


def as_seen(loaded: LoadedModel, pixels: torch.Tensor) -> Image.Image:
    """Convert the model's input [channels, height, width] to a picture by undoing normalisation.

    The picture shows the effect of resizing, cropping and padding. Raises NoPicture if the pixels
    are not one RGB image, or the processor's normalisation is not known.
    """
    import torch
    from PIL import Image

    processor = loaded.processor.image_processor
    if pixels.ndim != 3 or len(pixels) != 3:
        raise NoPicture(
            f"the model's input has the shape {list(pixels.shape)}, not that of one RGB image"
        )
    try:
        values = pixels.double().cpu()
        if processor.do_normalize:
            scale, shift = (
                torch.as_tensor(each, dtype=torch.double).reshape(-1, 1, 1)
                for each in (processor.image_std, processor.image_mean)
            )
            values = values * scale + shift
        if processor.do_rescale:
            values = values / processor.rescale_factor
    except (AttributeError, TypeError, ValueError, RuntimeError):
        values = torch.tensor(math.nan)  # the processor lacks the attributes of transformers' own
    # Resampling may overshoot 0..255 by some. NaN fails the comparison too.
    if not ((values > -64) & (values < 255 + 64)).all():
        raise NoPicture(
            f"the colour normalisation of the image processor of {loaded.name}, "
            f"{type(processor).__name__}, is not known"
        )
    return Image.fromarray(values.clamp(0, 255).round().byte().permute(1, 2, 0).numpy())
