"""Checks that refuse unsupported calls of a patched model before anything runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from clasp_kernels.models.compat import image_tower, method_signature
from clasp_kernels.models.generation import GENERATION
from clasp_kernels.models.history import CachedPast, PrunedHistory
from clasp_kernels.models.patching import MethodPatches
from clasp_kernels.models.prefill import check_attention_mask, check_dtype, input_shape


def guard_images(inner: Any, pixel_arguments: Sequence[str]) -> tuple[Any, MethodPatches]:
    """Patch the inner model's forward to refuse pixels, which it would encode without pruning."""
    signature = method_signature(inner, "forward")
    names = tuple(signature.parameters)
    guarded = partial(_forward_without_images, names, tuple(pixel_arguments))
    return inner, MethodPatches(inner, {"forward": guarded}, {"forward": signature})


def _forward_without_images(
    names: Sequence[str],
    pixel_arguments: Sequence[str],
    inner: Any,
    original: Callable[..., Any],
    /,
    *args: Any,
    **kwargs: Any,
) -> Any:
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    if any(given.get(name) is not None for name in pixel_arguments):
        raise RuntimeError(
            f"pixels were passed to {type(inner).__name__}.forward directly, not through the "
            f"patched model, so they would not be pruned: call the patched model (some trainers "
            f"replace its forward), or remove() the handle"
        )
    return original(*args, **kwargs)


def check_generate(model: Any, arguments: Mapping[str, Any]) -> None:
    """Raise a ValueError for ``generate`` settings or a mask that pruning does not support."""
    implementation = setting(model, arguments, "cache_implementation")
    if implementation == "paged":
        raise ValueError("cache_implementation must not be 'paged' where images are pruned")
    rows, columns = prompt_shape(arguments)
    mask = arguments.get("attention_mask")
    seen = CachedPast.of(arguments.get("cache")).full_seen
    # In a later turn, input_ids may be the whole conversation or only the new ids. The mask covers
    # the whole conversation either way.
    if mask is not None and getattr(mask, "shape", None) != (rows, columns + seen):
        check_attention_mask(mask, rows, columns)


def check_weights(model: Any) -> None:
    """Check that embeddings and vision tower are loaded, or have a hook that loads them."""
    check_dtype(model.get_input_embeddings().weight.dtype)
    for part in (model.get_input_embeddings(), image_tower(model)):
        if not any(weight.is_meta for weight in part.parameters()):
            continue
        if not any(hasattr(module, "_hf_hook") for module in part.modules()):
            raise RuntimeError(
                f"the weights of {type(part).__name__} are on the meta device, and it has no hook "
                f"of its own that loads them. Images are pruned before the forward of its parent "
                f"module runs: offload {type(part).__name__} separately"
            )


def setting(model: Any, arguments: Mapping[str, Any], name: str) -> Any:
    """Return a setting of ``generate``: its argument, else the given config's, else the model's."""
    value = given_setting(arguments, name)
    return getattr(model.generation_config, name, None) if value is None else value


def given_setting(arguments: Mapping[str, Any], name: str) -> Any:
    """Return a setting that the caller of ``generate`` gave: its argument, else the config's."""
    value = arguments.get(name)
    return getattr(arguments.get("generation_config"), name, None) if value is None else value


def prompt_ids(arguments: Mapping[str, Any]) -> torch.Tensor | None:
    input_ids = arguments.get("input_ids")
    return arguments.get("inputs") if input_ids is None else input_ids


def prompt_shape(arguments: Mapping[str, Any]) -> tuple[int, int]:
    """Return rows and columns of the prompt that ``generate`` was given."""
    embeds = arguments.get("inputs_embeds")
    prompt = {"input_ids": prompt_ids(arguments)} if embeds is None else {"inputs_embeds": embeds}
    rows, columns, _ = input_shape(prompt)
    return rows, columns


def check_forward(model: Any) -> None:
    """Raise a RuntimeError if ``generate`` would not pass our keyword on to ``forward``.

    ``generate`` only accepts keywords that it finds in forward's signature.
    """
    if GENERATION not in inspect.signature(model.forward).parameters:
        raise RuntimeError(
            f"{type(model).__name__}.forward was replaced after apply_clasp by one that does not "
            f"show the arguments of what it wraps: wrap it with functools.wraps, or remove() the "
            f"handle and apply again"
        )


def refuse_chunks(model: Any, arguments: Mapping[str, Any], has_images: bool) -> None:
    """Refuse chunked prefill: chunks start at the cache length, which lacks dropped columns."""
    if not has_images and not PrunedHistory.of(arguments.get("cache")):
        return
    size = setting(model, arguments, "prefill_chunk_size")
    if size is not None:
        raise ValueError(
            f"prefill_chunk_size must be None where images are pruned, in this call and on a "
            f"cache of one before, got {size}"
        )


def encoded_images(inputs: Mapping[str, Any]) -> bool:
    """Return whether the caller passed encoded images or videos instead of pixels."""
    outputs = inputs.get("mm_encoder_outputs")
    if isinstance(outputs, Mapping):
        return any(outputs.get(kind) is not None for kind in ("image", "video"))
    # Some families take one tensor of features, called image_hidden_states in some releases.
    return outputs is not None or inputs.get("image_hidden_states") is not None


def refuse_encoded_images(inputs: Mapping[str, Any]) -> None:
    if encoded_images(inputs):
        raise ValueError(
            "mm_encoder_outputs, or image_hidden_states, holds images that are encoded already, "
            "too late to prune them; pass pixel_values instead"
        )
