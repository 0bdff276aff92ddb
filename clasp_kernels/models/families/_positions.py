"""Positions of prompts in families that count columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def counted_positions(inputs: Mapping[str, Any], past: int) -> torch.Tensor:
    """[1, columns]: the positions of a prompt after ``past`` columns, padding counted."""
    given = inputs.get("input_ids")
    tokens = inputs["inputs_embeds"] if given is None else given
    return torch.arange(past, past + tokens.shape[1], device=tokens.device)[None]
