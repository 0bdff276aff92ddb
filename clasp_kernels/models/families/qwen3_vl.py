"""Qwen3-VL: features of early vision blocks are added inside the decoder (DeepStack)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from clasp_kernels.models.compat import deepstack_features
from clasp_kernels.models.families._packed import PackedAdapter
from clasp_kernels.policy import Profile


class Qwen3VLAdapter(PackedAdapter):
    """``Qwen3VLForConditionalGeneration``.

    All frames of a video compete in one pool of tokens, although the prompt has timestamps between
    them.
    """

    model_class = "Qwen3VLForConditionalGeneration"
    inner_class = "Qwen3VLModel"

    def __init__(self, model: Any, profile: Profile, fuse_into: str) -> None:
        super().__init__(model, profile, fuse_into)
        self.deeper_layers = len(model.config.vision_config.deepstack_visual_indexes)

    def deeper(self, outputs: Any) -> Sequence[torch.Tensor]:
        return deepstack_features(outputs, self.deeper_layers)


class Qwen3VLMoeAdapter(Qwen3VLAdapter):
    """``Qwen3VLMoeForConditionalGeneration``: the same with experts."""

    model_class = "Qwen3VLMoeForConditionalGeneration"
    inner_class = "Qwen3VLMoeModel"
