"""What a model family has to provide; everything else is shared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from clasp_kernels.models.patching import Patch
from clasp_kernels.policy import Profile
from clasp_kernels.policy.layers import TowerLayers


@dataclass(frozen=True)
class VisionOutput:
    """A batch of images after the vision tower: N visual tokens each, nothing dropped yet."""

    fused_layers: Sequence[torch.Tensor]
    """The adapter's ``layers.states``, each [images, N, D]."""
    features: torch.Tensor
    """[images, N, D']: what the unpruned model would hand to its projector."""
    query: torch.Tensor
    """[images, heads, T, head_dim]: the rows whose attention scores the tokens."""
    key: torch.Tensor
    """[images, heads, S, head_dim]: the keys they attend to, visual tokens among them."""
    scale: float
    key_range: tuple[int, int]
    """Where the N visual tokens lie among the S keys."""


class Adapter(Protocol):
    """One model family. Constructing one checks the model and the profile against each other.

    Methods are told the model anew, as a copy of the one that was checked may call: no adapter
    keeps it.

    Visual tokens are placeholders in ``input_ids``, ``tokens_per_image`` of them per image in
    the order of the rows of ``pixel_values``.
    """

    image_token_id: int
    tokens_per_image: int
    text_config: Any
    layers: TowerLayers
    """The profile's layers in this model's vision tower."""

    def __init__(self, model: Any, profile: Profile, fuse_into: str) -> None:
        """Raise a ValueError or TypeError that says what does not fit; change nothing."""

    def patches(self) -> list[Patch]:
        """The patches that ``encode`` needs to be in place."""

    def inner_model(self, model: Any) -> Any:
        """The module inside whose forward would encode images by itself."""

    def check_call(self, model: Any, inputs: dict[str, Any]) -> None:
        """Raise a ValueError for what pruning cannot honour: forward arguments of this family, or
        settings of the model that have changed since."""

    def encode(self, model: Any, pixel_values: torch.Tensor) -> VisionOutput:
        """Run the vision tower."""

    def project(self, model: Any, tokens: torch.Tensor) -> torch.Tensor:
        """[images, R, D or D'] to [images, R, text width]."""
