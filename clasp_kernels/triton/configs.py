"""How each kernel is launched: block sizes and warps, by shape, dtype and device.

A table and not a race at run time: the same shapes give the same code, the first call costs one
compilation, and results do not depend on what was timed. Nothing here depends on the batch, so
that an image's result does not either.

Every entry is counted, not measured: these kernels have not run on a GPU yet.
"""

from __future__ import annotations

from typing import NamedTuple


def next_power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


class RowBlocks(NamedTuple):
    """Rows of D elements, a tile of them per program."""

    rows: int
    columns: int
    num_warps: int


def gather_tokens(dim: int, element_bytes: int) -> RowBlocks:
    """16 bytes a thread and row, and 4 rows in flight: enough to cover the latency of memory."""
    columns = min(next_power_of_2(dim), 2048 // element_bytes)
    return RowBlocks(4, columns, 4)


class CountBlocks(NamedTuple):
    """Tokens whose ranks a program counts, and how many others it compares them with at once."""

    tokens: int
    others: int
    num_warps: int


class SortBlocks(NamedTuple):
    """One program an image: all of its tokens, and how many pivots are sorted at once."""

    tokens: int
    pivots: int
    num_warps: int


def select_pivots(num_tokens: int, num_pivots: int) -> CountBlocks | SortBlocks:
    if not 1024 < num_tokens <= 16384:
        return CountBlocks(16, 512, 8)
    tokens = next_power_of_2(num_tokens)
    pivots = next_power_of_2(min(num_tokens, num_pivots))
    return SortBlocks(tokens, min(max(pivots, 64), 1024 if tokens == 16384 else 2048), 16)
