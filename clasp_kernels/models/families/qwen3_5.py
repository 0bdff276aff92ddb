"""Qwen3.5: the vision tower of Qwen3-VL without DeepStack, and a hybrid decoder."""

from __future__ import annotations

from clasp_kernels.models.families._packed import PackedAdapter


class Qwen3_5Adapter(PackedAdapter):
    """``Qwen3_5ForConditionalGeneration``.

    Most decoder layers are recurrent (gated delta nets), so tokens can only be dropped before the
    decoder.
    """

    model_class = "Qwen3_5ForConditionalGeneration"
    inner_class = "Qwen3_5Model"


class Qwen3_5MoeAdapter(Qwen3_5Adapter):
    """``Qwen3_5MoeForConditionalGeneration``: the same with experts."""

    model_class = "Qwen3_5MoeForConditionalGeneration"
    inner_class = "Qwen3_5MoeModel"
