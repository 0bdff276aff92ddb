"""The entry point in the group ``vllm.general_plugins``, which vLLM calls in every process."""

from __future__ import annotations

from clasp_kernels.integrations.vllm.settings import Settings

_ARCHITECTURE = "LlavaForConditionalGeneration"


def register() -> None:
    """Let vLLM prune the images of LLaVA 1.5. Do nothing unless ``CLASP_KERNELS_VLLM_BUDGET`` is
    set.

    Raises:
        ValueError: a setting is invalid.
    """
    if Settings.read() is None:
        return
    from vllm import ModelRegistry

    # By name: importing the class would start CUDA before vLLM forks.
    ModelRegistry.register_model(
        _ARCHITECTURE, f"{__package__}.pruned_llava:PrunedLlavaForConditionalGeneration"
    )
