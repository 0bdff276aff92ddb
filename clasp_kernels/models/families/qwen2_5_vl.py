"""Qwen2.5-VL: most blocks of the vision tower attend within windows."""

from __future__ import annotations

from typing import Any

import torch

from clasp_kernels.models.compat import vision_window_index
from clasp_kernels.models.families._packed import PackedAdapter


class Qwen2_5_VLAdapter(PackedAdapter):
    """``Qwen2_5_VLForConditionalGeneration``.

    The salience comes from the last block with full attention up to the profile's layer.
    """

    model_class = "Qwen2_5_VLForConditionalGeneration"
    inner_class = "Qwen2_5_VLModel"
    visual_arguments = (*PackedAdapter.visual_arguments, "second_per_grid_ts")

    def salience_layer(self, vision_config: Any, wanted: int) -> int:
        whole = [layer for layer in vision_config.fullatt_block_indexes if layer <= wanted]
        if not whole:
            raise ValueError(
                f"the profile takes salience from layer {wanted}, but of the vision tower's layers "
                f"up to there each attends within windows; those that do not are "
                f"{', '.join(map(str, vision_config.fullatt_block_indexes))}"
            )
        return max(whole)

    def order(self, grid: torch.Tensor, vision_config: Any) -> torch.Tensor | None:
        return vision_window_index(grid, vision_config)
