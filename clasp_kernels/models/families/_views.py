"""Views: pictures that the vision tower encodes, with a box for each visual token."""

from __future__ import annotations

import torch

from clasp_kernels.models.adapter import Box, View


def grid_view(pixels: torch.Tensor, rows: int, columns: int, first_token: int) -> View:
    """Return a view of a picture that is divided evenly into tokens, row by row.

    >>> grid_view(torch.zeros(3, 4, 6), 1, 2, first_token=5).tokens
    (5, 6)
    """
    height, width = pixels.shape[1:]
    boxes = grid_boxes(height, width, rows, columns)
    return View(pixels, tuple(range(first_token, first_token + len(boxes))), boxes)


def mosaic_view(tiles: torch.Tensor, rows: int, side: int, first_token: int) -> View:
    """A picture of tiles [tiles, channels, height, width] in ``rows``, each of which tokens divide
    evenly, ``side`` by ``side``. Tokens are numbered tile after tile.

    >>> mosaic_view(torch.zeros(2, 3, 4, 4), 1, 2, first_token=0).tokens
    (0, 1, 4, 5, 2, 3, 6, 7)
    """
    columns = len(tiles) // rows
    numbers = torch.arange(len(tiles) * side**2).view(rows, columns, side, side)
    tokens = numbers.transpose(1, 2).flatten() + first_token
    pixels = arranged(tiles, rows, columns)
    height, width = pixels.shape[1:]
    boxes = grid_boxes(height, width, rows * side, columns * side)
    return View(pixels, tuple(tokens.tolist()), boxes)


def grid_boxes(height: int, width: int, rows: int, columns: int) -> tuple[Box, ...]:
    """Divide a picture evenly into boxes, row by row.

    >>> grid_boxes(4, 6, 1, 2)
    ((0, 0, 3, 4), (3, 0, 6, 4))
    """
    ys = [round(height * row / rows) for row in range(rows + 1)]
    xs = [round(width * column / columns) for column in range(columns + 1)]
    return tuple(
        (xs[column], ys[row], xs[column + 1], ys[row + 1])
        for row in range(rows)
        for column in range(columns)
    )


def arranged(tiles: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Put tiles [rows * columns, channels, height, width] together to one picture [channels,
    height, width]."""
    grid = tiles.unflatten(0, (rows, columns))
    return grid.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
