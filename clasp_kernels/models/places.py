"""Where visual tokens lie in their images, for selection rules that use it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from clasp_kernels.models.adapter import View, VisualGroup


def token_places(groups: Sequence[VisualGroup], views: Sequence[View]) -> torch.Tensor:
    """Return the frame, y and x of each visual token's centre, [items, N, 3] float32 on the CPU.

    A view shows all of an item, so y and x are relative to what the item's tokens cover in it. They
    are scaled so that the item's longer side is 1 long. The view with the most tokens has the
    item's shape: a model may squeeze the image to a square for another one. The frame is the number
    of the view in a video, and 0 in an image. A token that is in no view, such as a CLS token, has
    NaN. Items are in the order of the groups, padded with 0 at the end.

    >>> from clasp_kernels.models.families._views import grid_view
    >>> view = grid_view(torch.zeros(3, 2, 4), 1, 2, first_token=0)
    >>> token_places([VisualGroup("image", "pixel_values", 9, (2,))], [view])
    tensor([[[0.0000, 0.2500, 0.2500],
             [0.0000, 0.2500, 0.7500]]])
    """
    kinds = [group.kind for group in groups for _ in group.counts]
    counts = [count for group in groups for count in group.counts]
    with torch.device("cpu"):
        item_of = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        places = torch.full((len(item_of), 3), torch.nan, dtype=torch.double)
        # The numbers and boxes of each item's tokens, view after view.
        parts: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in counts]
        for view in views:
            tokens, boxes = torch.tensor(view.tokens), torch.tensor(view.boxes).double()
            for item in item_of[tokens].unique().tolist():  # tiles may be items of their own
                is_own = item_of[tokens] == item
                parts[item].append((tokens[is_own], boxes[is_own]))
    for kind, of_item in zip(kinds, parts, strict=True):
        if not of_item:
            continue
        _, largest = max(of_item, key=lambda part: len(part[0]))
        size = _extent(largest)[1]
        for number, (tokens, boxes) in enumerate(of_item):
            start, own_size = _extent(boxes)
            x_and_y = (boxes.view(-1, 2, 2).mean(1) - start) / own_size * size / size.max()
            places[tokens, 0] = number if kind == "video" else 0
            places[tokens, 1:] = x_and_y.flip(1)
    of_items = places.float().split(counts)
    return torch.nn.utils.rnn.pad_sequence(of_items, batch_first=True)


def _extent(boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the left upper corner of what boxes cover, and its width and height, each [2]."""
    start = boxes[:, :2].amin(0)
    return start, boxes[:, 2:].amax(0) - start
