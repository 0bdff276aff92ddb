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
