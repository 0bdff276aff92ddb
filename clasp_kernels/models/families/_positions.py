"""Position ids in families that count columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def counted_positions(inputs: Mapping[str, Any], past: int) -> torch.Tensor:
    """Return position ids [1, columns] that start at ``past``. Padding is counted."""
    given = inputs.get("input_ids")
    tokens = inputs["inputs_embeds"] if given is None else given
    return torch.arange(past, past + tokens.shape[1], device=tokens.device)[None]
