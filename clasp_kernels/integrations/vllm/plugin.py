"""The entry point in the group ``vllm.general_plugins``, which vLLM calls in every process."""

from __future__ import annotations

import os

_PREFIX = "CLASP_KERNELS_VLLM_"  # of all settings
# The classes that prune, by the architecture that they stand for.
_PRUNED = {
    "LlavaForConditionalGeneration": "pruned_llava:PrunedLlavaForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration": (
        "pruned_qwen2_5_vl:PrunedQwen2_5_VLForConditionalGeneration"
    ),
}


def register() -> None:
    """Let vLLM prune the images of LLaVA 1.5 and Qwen2.5-VL, and refuse other models that it would
    serve unpruned.

    Do nothing unless ``CLASP_KERNELS_VLLM_BUDGET`` is set. What fails is raised from here and not
    by the import of this module, of which vLLM would only log an error.

    Raises:
        ValueError: a setting is invalid.
    """
    if not any(name.startswith(_PREFIX) for name, value in os.environ.items() if value):
        return
    from clasp_kernels.integrations.vllm.settings import Settings

    if Settings.read() is None:
        return
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    from vllm import ModelRegistry

    with_images = set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values()) - _PRUNED.keys()
    for architecture in sorted(with_images & set(ModelRegistry.get_supported_archs())):
        ModelRegistry.register_model(architecture, f"{__package__}.refused:NotPruned")
    # By name: importing the class would start CUDA before vLLM forks.
    for architecture, place in _PRUNED.items():
        ModelRegistry.register_model(architecture, f"{__package__}.{place}")
