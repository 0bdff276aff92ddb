"""Host values to the device, without waiting for what the device is busy with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def upload(
    values: Sequence[Any], device: torch.device, dtype: torch.dtype = torch.int64
) -> torch.Tensor:
    """A tensor of ``values``. From pageable memory the copy would first drain a GPU's queue.

    >>> upload([[1, 2], [3, 4]], torch.device("cpu"))
    tensor([[1, 2],
            [3, 4]])
    """
    # Pinned memory cannot be traced.
    pin = device.type == "cuda" and not torch.compiler.is_compiling()
    # On the CPU also where torch.set_default_device says otherwise, as nothing else can be pinned.
    here = torch.tensor(values, dtype=dtype, device="cpu", pin_memory=pin)
    return here.to(device, non_blocking=True)
