"""Pruned models for the evaluation harness ``lmms-eval``.

``manifests`` is the entry point in the group ``lmms_eval.models``, through which the harness finds
the models of this folder by name. Each is the harness's own model of the same name without
``clasp_``, with ``apply_clasp`` called after the weights are loaded: prompts, batches, generation
and metrics stay those of the harness. ``docs/evaluation.md`` shows how to use them.
"""

from __future__ import annotations

from typing import Any

_WRAPPERS = {
    "clasp_llava_hf": "llava_hf.ClaspLlavaHf",
    "clasp_qwen2_5_vl": "qwen2_5_vl.ClaspQwen2_5VL",
    "clasp_qwen3_vl": "qwen3_vl.ClaspQwen3VL",
}


def manifests() -> list[Any]:
    """Return a ``ModelManifest`` for each model, both in its chat form and in its simple one."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [
        ModelManifest(
            model_id=name,
            simple_class_path=f"{__name__}.wrappers.{path}Simple",
            chat_class_path=f"{__name__}.wrappers.{path}",
        )
        for name, path in _WRAPPERS.items()
    ]
