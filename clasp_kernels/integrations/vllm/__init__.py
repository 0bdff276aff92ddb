"""Pruned images for the inference engine vLLM: ``docs/vllm.md`` shows how to use it.

- ``PrunedEncoder`` encodes and prunes images outside the server, which gets their embeddings.
- ``save_for_vllm`` saves a model with the names of weights that vLLM's loader knows.
- ``plugin.register`` is the entry point in the group ``vllm.general_plugins``. With it, the server
  prunes the images that it is given. It does nothing unless ``CLASP_KERNELS_VLLM_BUDGET`` is set.

The first two need transformers and not vLLM, which runs elsewhere and may want another release.
They are imported on first use: every process of vLLM loads the plugin, also where it is off.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clasp_kernels.integrations.vllm.checkpoint import save_for_vllm
    from clasp_kernels.integrations.vllm.encoder import EncodedPrompt, PrunedEncoder

__all__ = ["EncodedPrompt", "PrunedEncoder", "save_for_vllm"]

_HOMES = {"EncodedPrompt": "encoder", "PrunedEncoder": "encoder", "save_for_vllm": "checkpoint"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value
