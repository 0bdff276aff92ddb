"""The shapes that are measured, by name."""

from __future__ import annotations

from dataclasses import replace

from .llava import LlavaShape
from .qwen2_5_vl import Qwen2_5_VLShape
from .shape import Shape, Tower

_LLAVA_7B = LlavaShape(
    vision=Tower(24, 1024, 4096, 16),
    text=Tower(32, 4096, 11008, 32),
    image_size=336,
    patch_size=14,
    vocabulary=32064,
    text_before=40,
    text_after=24,
    budgets=(192, 128, 64),
    batches=(1, 4),
)
_QWEN_7B = Qwen2_5_VLShape(
    vision=Tower(32, 1280, 3420, 16),
    text=Tower(28, 3584, 18944, 28, key_heads=4),
    rows=36,  # 1008 x 1176 pixels, 1512 tokens
    columns=42,
    patch_size=14,
    window_size=112,
    whole_blocks=(7, 15, 23, 31),
    vocabulary=152064,
    text_before=40,
    text_after=24,
    budgets=(504, 336, 168),  # the paper's 192, 128 and 64 of 576, in proportion
    batches=(1, 4),
)
SHAPES: dict[str, Shape] = {
    "7b": _LLAVA_7B,
    # The same images and prompts. The tower has a quarter of its layers: whole, it would hold as
    # many parameters as this decoder, which at 7b has 22 times as many.
    "0.4b": replace(_LLAVA_7B, vision=Tower(6, 1024, 4096, 16), text=Tower(16, 1152, 3072, 9)),
    "qwen2.5-vl-7b": _QWEN_7B,
    # The same images and prompts. Every width and count of heads is half of the 7B's, and the
    # decoder has half of its layers. The tower has 12 of 32 blocks, two of them without windows, so
    # that the decoder dominates as it does at 7B: of an unpruned prompt it does 2.8 times the
    # multiply-adds of the tower, at 7B 2.5 times. The attention that scores the tokens, of all
    # patches to all, shrinks less than the rest: it takes 0.3 % of the multiply-adds of the 7B
    # model, unpruned, and 1.3 % here, so what pruning costs is overstated.
    "qwen2.5-vl-1b": replace(
        _QWEN_7B,
        vision=Tower(12, 640, 1710, 8),
        text=Tower(14, 1792, 9472, 14, key_heads=2),
        whole_blocks=(5, 11),
        vocabulary=38016,
        batches=(1,),
    ),
    # For tests.
    "tiny": LlavaShape(
        vision=Tower(4, 32, 64, 4),
        text=Tower(6, 32, 64, 4),
        image_size=24,
        patch_size=4,
        vocabulary=64,
        text_before=5,
        text_after=3,
        budgets=(18, 12),
        batches=(1, 2),
    ),
    "qwen2.5-vl-tiny": Qwen2_5_VLShape(
        vision=Tower(4, 32, 64, 4),
        text=Tower(6, 32, 64, 4, key_heads=2),
        rows=4,
        columns=9,  # windows of 2 x 2 tokens, of which the last in a row are cut
        patch_size=4,
        window_size=16,
        whole_blocks=(1, 3),
        vocabulary=64,
        text_before=5,
        text_after=3,
        budgets=(18, 12),
        batches=(1, 2),
    ),
}
# The shapes whose results on a CPU are committed, and the names of their files.
RECORDED = {"0.4b": "prefill.json", "qwen2.5-vl-1b": "prefill_qwen2_5_vl.json"}
