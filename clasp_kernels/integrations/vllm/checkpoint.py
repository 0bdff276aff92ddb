"""Save a model with the names of weights that vLLM's loader knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_TOWER = "vision_tower."
_PUBLISHED = "vision_tower.vision_model."
_FAMILIES = ("llava", "qwen2_5_vl")


def save_for_vllm(model: Any, processor: Any, folder: str | Path, **options: Any) -> None:
    """Save a model and its processor so that transformers and vLLM both load them.

    Checkpoints of LLaVA on the hub name the weights of its vision tower
    ``vision_tower.vision_model.*``. vLLM's loader knows these names only. ``save_pretrained`` of
    recent transformers writes them for a model that was loaded with them, but ``vision_tower.*``
    for one that was built from a config. Every supported transformers loads both. Of Qwen2.5-VL,
    vLLM knows the names that ``save_pretrained`` writes.

    Args:
        model: a ``LlavaForConditionalGeneration`` or ``Qwen2_5_VLForConditionalGeneration``.
        processor: the model's processor.
        folder: the folder, created if it is not there.
        options: options of ``model.save_pretrained``, such as ``max_shard_size``. Not ``variant``,
            whose files vLLM does not look for.

    Raises:
        ValueError: ``model`` is of another family, or ``variant`` is given.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type not in _FAMILIES:
        raise ValueError(
            f"model must be a {' or '.join(map(repr, _FAMILIES))} model, got {model_type!r}"
        )
    if options.get("variant") is not None:
        raise ValueError(
            f"variant must be left out, as vLLM looks for {_WHOLE} alone, "
            f"got {options['variant']!r}"
        )
    folder = Path(folder)
    model.save_pretrained(folder, **options)
    processor.save_pretrained(folder)
    for file in sorted(folder.glob("model*.safetensors")):
        _rename(file)
    index = folder / _INDEX
    if (folder / _WHOLE).exists():
        index.unlink(missing_ok=True)  # of shards that were there before
    elif index.exists():
        content = json.loads(index.read_text())
        content["weight_map"] = {
            published_name(name): file for name, file in content["weight_map"].items()
        }
        index.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def published_name(name: str) -> str:
    """Return the name that published checkpoints have for a weight.

    >>> published_name("vision_tower.embeddings.class_embedding")
    'vision_tower.vision_model.embeddings.class_embedding'
    >>> published_name("multi_modal_projector.linear_1.bias")
    'multi_modal_projector.linear_1.bias'
    """
    if name.startswith(_TOWER) and not name.startswith(_PUBLISHED):
        return _PUBLISHED + name.removeprefix(_TOWER)
    return name


def _rename(file: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(file)
    renamed = {published_name(name): weight for name, weight in weights.items()}
    if renamed.keys() != weights.keys():
        save_file(renamed, file, metadata={"format": "pt"})
