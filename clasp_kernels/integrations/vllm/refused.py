"""Stands in vLLM's registry for models whose images the plugin cannot prune.

vLLM imports the class of a model before it loads weights, logs what that raises, and stops.
"""

from __future__ import annotations

from clasp_kernels.integrations.vllm.settings import BUDGET


def __getattr__(name: str) -> object:
    if name == "NotPruned":
        raise ValueError(
            f"{BUDGET} is set, but this model's images would be served unpruned: the plugin prunes "
            f"those of LLaVA 1.5 and Qwen2.5-VL only. Unset {BUDGET} to serve the model as it is."
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
