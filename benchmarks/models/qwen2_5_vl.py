"""Qwen2.5-VL: a tower with windows that merges 2 x 2 patches, and a decoder with 3-D positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from clasp_kernels.models.compat import image_tower

from .shape import Shape

MERGED, FRAMES, CHANNELS = 2, 2, 3  # patches merged a side, frames of a patch, colours


@dataclass(frozen=True, kw_only=True)
class Qwen2_5_VLShape(Shape):
    """A ``Qwen2_5_VLForConditionalGeneration``."""

    family: ClassVar[str] = "Qwen2.5-VL"
    rows: int
    """Rows of visual tokens in an image; of patches there are twice as many."""
    columns: int
    """Visual tokens in a row."""
    patch_size: int
    window_size: int
    """The side of a window of the tower, in pixels."""
    whole_blocks: tuple[int, ...]
    """The blocks of the tower that attend to the whole image. The others attend within windows."""

    @property
    def num_tokens(self) -> int:
        return self.rows * self.columns

    def config(self) -> Any:
        from transformers import Qwen2_5_VLConfig

        vision, text = self.vision, self.text
        return Qwen2_5_VLConfig(
            vision_config={
                "depth": vision.layers,
                "hidden_size": vision.width,
                "intermediate_size": vision.mlp_width,
                "num_heads": vision.heads,
                "out_hidden_size": text.width,
                "patch_size": self.patch_size,
                "spatial_merge_size": MERGED,
                "temporal_patch_size": FRAMES,
                "window_size": self.window_size,
                "fullatt_block_indexes": list(self.whole_blocks),
            },
            text_config={
                "num_hidden_layers": text.layers,
                "hidden_size": text.width,
                "intermediate_size": text.mlp_width,
                "num_attention_heads": text.heads,
                "num_key_value_heads": text.key_heads or text.heads,
                "vocab_size": self.vocabulary,
                "bos_token_id": None,
                "eos_token_id": None,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 1e6,
                    "mrope_section": _rotary_sections(text.width // text.heads),
                },
            },
            vision_start_token_id=self.vocabulary - 4,
            vision_end_token_id=self.vocabulary - 3,
            video_token_id=self.vocabulary - 2,
            image_token_id=self.vocabulary - 1,
        )

    def image_arguments(
        self, model: Any, input_ids: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Patches as rows, image after image, as this family's processor packs them."""
        grid = torch.tensor([[1, MERGED * self.rows, MERGED * self.columns]] * len(input_ids))
        values = CHANNELS * FRAMES * self.patch_size**2
        patches = torch.randn(int(grid.prod(1).sum()), values, generator=generator)
        return {
            "pixel_values": patches,
            "image_grid_thw": grid,
            "mm_token_type_ids": (input_ids == model.config.image_token_id).int(),
        }

    def visual_features(self, model: Any, prompt: Mapping[str, Tensor], num_tokens: int) -> Tensor:
        """Every patch goes through the merger, which is the tower's last layer."""
        tower, grid = image_tower(model), prompt["image_grid_thw"]
        outputs = tower(prompt["pixel_values"], grid_thw=grid, return_dict=True)
        merged: Tensor = outputs.pooler_output
        return merged.unflatten(0, (-1, self.num_tokens))[:, :num_tokens]

    def positions(self, model: Any, prompt: Mapping[str, Tensor]) -> Tensor:
        """[3, B, columns]: the frame, row and column of a visual token."""
        positions: Tensor
        positions, _ = model.model.get_rope_index(
            prompt["input_ids"],
            image_grid_thw=prompt["image_grid_thw"],
            mm_token_type_ids=prompt["mm_token_type_ids"],
        )
        return positions


def _rotary_sections(head_width: int) -> list[int]:
    """How many of a head's rotations follow the frame, the row and the column.

    They are in proportion to the 7B model's 16, 24 and 24 of 64.
    """
    rotations = head_width // 2
    frame = rotations // 4
    row = (rotations - frame) // 2
    return [frame, row, rotations - frame - row]
