"""Tensors for the tests of the CPU kernels through torch."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def clusters(generator: torch.Generator, batch: int, num_tokens: int, dim: int) -> Tensor:
    """[batch, num_tokens, dim], clustered around a dozen centers like the tokens of an image."""
    centres = torch.randn(12, dim, generator=generator)
    which = torch.randint(12, (batch, num_tokens), generator=generator)
    return centres[which] + 0.7 * torch.randn(batch, num_tokens, dim, generator=generator)
