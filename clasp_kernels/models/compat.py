"""What differs between releases of transformers, and only here.

Differences are found by looking at signatures and fields, never by comparing version numbers: a
release that nobody has seen yet is served if it looks like one of these, and refused in words if
it does not. The rest of ``clasp_kernels.models`` calls a key-value cache ``cache``, which
transformers before 5.24 calls ``past_key_values``.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch

#: The transformers releases that the tests of ``clasp_kernels.models`` pass on, oldest first.
TESTED_RELEASES: tuple[str, ...] = ("5.17.0", "5.20.2", "5.23.0", "5.24.0")

_CACHE_NAMES = ("cache", "past_key_values")


def method_signature(model: Any, name: str) -> inspect.Signature:
    """The signature that a model's class gives a method, without ``self``.

    Whatever wraps the method on the instance need not show the arguments it passes on.
    """
    return inspect.signature(getattr(type(model), name).__get__(model))


def cache_name(model: Any, method: str) -> str:
    """What a model's method calls its cache: "cache" or "past_key_values".

    Raises:
        RuntimeError: its signature has neither.
    """
    parameters = method_signature(model, method).parameters
    for name in _CACHE_NAMES:
        if name in parameters:
            return name
    raise RuntimeError(
        f"{type(model).__name__}.{method} of {_installed()} takes neither "
        f"{' nor '.join(_CACHE_NAMES)}, so what was pruned cannot follow its cache; {_way_out()}"
    )


def canonical_cache(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments in which the cache is called ``cache``, whatever the caller called it.

    Raises:
        ValueError: the caller gave two different caches.
    """
    canonical = dict(arguments)
    given = {name: canonical.pop(name) for name in _CACHE_NAMES if name in canonical}
    caches = [cache for cache in given.values() if cache is not None]
    if any(cache is not caches[0] for cache in caches):
        raise ValueError("pass one of cache and past_key_values, which are names of the same thing")
    if given:
        canonical["cache"] = caches[0] if caches else None
    return canonical


def native_cache(arguments: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The arguments of a function that calls its cache ``name``, as ``cache_name`` found."""
    return {name if key == "cache" else key: value for key, value in arguments.items()}


def output_cache(outputs: Any) -> Any:
    """The cache among a model's outputs, None where it used none."""
    return getattr(outputs, _field(outputs, _CACHE_NAMES))


def set_image_features(outputs: Any, features: Sequence[torch.Tensor]) -> None:
    """Put the image features that the language model saw where this release has them.

    ``features`` holds [tokens, text width] for each image. Since 5.24 they are the
    ``pooler_output`` of ``image_outputs``; before, one tensor ``image_hidden_states``.
    """
    if _field(outputs, ("image_outputs", "image_hidden_states")) == "image_outputs":
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        outputs["image_outputs"] = BaseModelOutputWithPooling(pooler_output=list(features))
    else:
        outputs["image_hidden_states"] = torch.cat(list(features))


def uses_flash_attention(config: Any) -> bool:
    """Whether a model with this config runs some FlashAttention."""
    from transformers.utils.generic import is_flash_attention_requested

    return bool(is_flash_attention_requested(config))


def _field(outputs: Any, names: Sequence[str]) -> str:
    known = [field.name for field in fields(outputs)] if is_dataclass(outputs) else []
    for name in names:
        if name in known:
            return name
    raise RuntimeError(
        f"{type(outputs).__name__} of {_installed()} has no field {' or '.join(names)}; "
        f"{_way_out()}"
    )


def _installed() -> str:
    import transformers

    return f"transformers {transformers.__version__}"


def _way_out() -> str:
    return (
        f"clasp_kernels was tested with transformers {TESTED_RELEASES[0]} to "
        f"{TESTED_RELEASES[-1]}, `clasp doctor --verify` tells what works here"
    )
