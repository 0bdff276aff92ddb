"""Copies host values to a device without waiting for the work queued on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def upload(
    values: Sequence[Any], device: torch.device, dtype: torch.dtype = torch.int64
) -> torch.Tensor:
    """Returns a tensor of ``values`` on ``device``.

    Uses pinned memory, because a copy from pageable memory first drains the GPU's queue.

    >>> upload([[1, 2], [3, 4]], torch.device("cpu"))
    tensor([[1, 2],
            [3, 4]])
    """
    # Creating pinned memory cannot be traced. Before torch uses a GPU, a tensor on one has no data,
    # and pinning would ask for a driver.
    pin = (
        device.type == "cuda" and not torch.compiler.is_compiling() and torch.cuda.is_initialized()
    )
    # Sets the device in case torch.set_default_device names another: only CPU memory can be pinned.
    here = torch.tensor(values, dtype=dtype, device="cpu", pin_memory=pin)
    return here.to(device, non_blocking=True)
