"""Qwen2-VL: every block of the vision tower attends to the whole image."""

from __future__ import annotations

from clasp_kernels.models.families._packed import PackedAdapter


class Qwen2VLAdapter(PackedAdapter):
    """``Qwen2VLForConditionalGeneration``."""

    model_class = "Qwen2VLForConditionalGeneration"
    inner_class = "Qwen2VLModel"
