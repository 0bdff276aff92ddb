"""Differences between transformers releases. All of them are handled in this module.

Features are detected by signatures and fields, never by version numbers: an unknown release works
if it looks like one of the tested ones, and raises an explanatory error if it does not. The rest of
``clasp_kernels.models`` calls a KV cache ``cache``; transformers before 5.24 calls it
``past_key_values``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

import torch

from clasp_kernels._warn import warn_caller

#: The transformers releases on which the tests of ``clasp_kernels.models`` pass, oldest first.
TESTED_RELEASES: tuple[str, ...] = ("5.17.0", "5.20.2", "5.23.0", "5.24.0")

#: Command that installs a suitable transformers.
INSTALL = 'pip install -U "clasp-kernels[hf]"'
# Model attribute in which ``generate`` stores the length of its longest static cache so far.
_LONGEST = "_previous_max_cache_length"
# Attribute of a static cache layer that holds its original length.
_GIVEN_LENGTH = "_clasp_given_length"
# Layer types of the decoder that have a KV cache.
_ATTENTION = ("full_attention", "sliding_attention", "chunked_attention")
_CACHE_NAMES = ("cache", "past_key_values")


def require_transformers(warn: bool = True) -> None:
    """Check that transformers is installed and not too old; warn once if it is newer than tested.

    Raises:
        ImportError: transformers is missing, broken or older than the oldest tested release. The
            message has an install command.
    """
    try:
        import transformers
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "transformers":
            problem = "transformers is not installed"
        else:  # transformers checks the versions of its dependencies at import
            problem = f"transformers cannot be imported ({' '.join(str(error).split())})"
        raise ImportError(f"{problem}; {INSTALL}", name="transformers") from None
    version = transformers.__version__
    if is_too_old(version):
        raise ImportError(f"{release_problem(version)}; {INSTALL}", name="transformers")
    if warn and not is_tested(version):
        _warn_untested(version)


def release_problem(version: str) -> str:
    """Return why a transformers release may not work; empty if it was tested."""
    if is_too_old(version):
        return f"transformers {version} is too old, {TESTED_RELEASES[0]} or later is needed"
    if not is_tested(version):
        return (
            f"transformers {version} is newer than those that clasp_kernels was tested with, "
            f"{TESTED_RELEASES[0]} to {TESTED_RELEASES[-1]}"
        )
    return ""


def is_too_old(version: str) -> bool:
    """Return whether a transformers version is older than the oldest tested release."""
    return _release(version) < _release(TESTED_RELEASES[0])


def is_tested(version: str) -> bool:
    """Return whether a transformers version is within the range of tested releases."""
    return not is_too_old(version) and _release(version) <= _release(TESTED_RELEASES[-1])


@cache
def _warn_untested(version: str) -> None:
    warn_caller(
        f"{release_problem(version)}; `clasp doctor --verify` tells in a minute whether pruning is "
        f"right with it"
    )


def _release(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: (5, 25, 0) for "5.25.0.dev0"."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, numbers[0].split("."))) if numbers else ()


def method_signature(model: Any, name: str) -> inspect.Signature:
    """Return the signature of a method of the model's class, without ``self`` and annotations.

    The class is used because a wrapper on the instance may only show ``*args, **kwargs``.
    Annotations are removed because some cannot be pickled, and a patched model must be picklable.
    """
    signature = inspect.signature(getattr(type(model), name).__get__(model))
    return signature.replace(
        parameters=[
            parameter.replace(annotation=inspect.Parameter.empty)
            for parameter in signature.parameters.values()
        ],
        return_annotation=inspect.Signature.empty,
    )


def by_name(
    signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of a call by name, without defaults."""
    arguments = dict(signature.bind(*args, **kwargs).arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            arguments.update(arguments.pop(parameter.name, {}))
    return arguments


def prepare_signature(model: Any) -> inspect.Signature:
    """Return the signature of ``prepare_inputs_for_generation``.

    Raises:
        RuntimeError: it lacks the arguments that tell the prefill from decode steps.
    """
    from transformers import GenerationMixin

    known = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
    missing = [name for name in ("is_first_iteration", "next_sequence_length") if name not in known]
    if missing:
        raise RuntimeError(
            f"generate of {_installed()} does not pass {' and '.join(missing)} to "
            f"prepare_inputs_for_generation, so the prefill cannot be told from decode steps; "
            f"{_way_out()}"
        )
    return method_signature(model, "prepare_inputs_for_generation")


def cache_name(model: Any, method: str) -> str:
    """Return the name of a method's cache argument: "cache" or "past_key_values".

    Raises:
        RuntimeError: its signature has neither.
    """
    from transformers import GenerationMixin

    signatures = [method_signature(model, method)]
    # A model family's override may take **kwargs and pass them to the method of GenerationMixin.
    inherited = getattr(GenerationMixin, method, None)
    kinds = {parameter.kind for parameter in signatures[0].parameters.values()}
    if inherited is not None and inspect.Parameter.VAR_KEYWORD in kinds:
        signatures.append(inspect.signature(inherited))
    for signature in signatures:
        for name in _CACHE_NAMES:
            if name in signature.parameters:
                return name
    raise RuntimeError(
        f"{type(model).__name__}.{method} of {_installed()} takes neither "
        f"{' nor '.join(_CACHE_NAMES)}, so what was pruned cannot follow its cache; {_way_out()}"
    )


def canonical_cache(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the cache argument to ``cache``.

    Raises:
        ValueError: the caller gave two different caches.
    """
    canonical = dict(arguments)
    given = {name: canonical.pop(name) for name in _CACHE_NAMES if name in canonical}
    caches = [cache for cache in given.values() if cache is not None]
    if any(cache is not caches[0] for cache in caches):
        raise ValueError(
            "cache and past_key_values are names of one argument, and hold different caches; pass "
            "one (PEFT's prefix tuning adds its own, and cannot be combined with pruning)"
        )
    if given:
        canonical["cache"] = caches[0] if caches else None
    return canonical


def native_cache(arguments: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Rename the argument ``cache`` to ``name``, the result of ``cache_name``."""
    return {name if key == "cache" else key: value for key, value in arguments.items()}


def is_foreign_cache(cache: Any) -> bool:
    """Return whether a cache argument is of a kind that pruning does not support.

    An example is the paged cache of continuous batching, whose pages many requests share.
    """
    return cache is not None and not hasattr(cache, "get_seq_length")


def has_foreign_cache(arguments: Mapping[str, Any]) -> bool:
    """Return whether forward's arguments hold an unsupported cache under any of the cache names."""
    return any(is_foreign_cache(arguments.get(name)) for name in _CACHE_NAMES)


def image_tower(model: Any) -> Any:
    """Return the vision tower.

    Raises:
        RuntimeError: the model does not name one.
    """
    tower = model.get_encoder(modality="image")
    if tower is None or tower is model:
        raise RuntimeError(
            f"{type(model).__name__} of {_installed()} names no image encoder; {_way_out()}"
        )
    return tower


def attention_modules(tower: torch.nn.Module, num_layers: int) -> list[torch.nn.Module]:
    """Return the attention module of each layer of a vision tower, first layer first.

    Raises:
        RuntimeError: the number of attention modules is not ``num_layers``.
    """
    found = [
        module
        for module in tower.modules()
        if type(module).__name__.endswith("Attention") and hasattr(module, "config")
    ]
    if len(found) != num_layers:
        raise RuntimeError(
            f"{type(tower).__name__} of {_installed()} has {len(found)} attention modules in "
            f"{num_layers} layers, so the module that scores the tokens cannot be identified; "
            f"{_way_out()}"
        )
    return found


def decoder_layers(model: Any) -> list[torch.nn.Module]:
    """Return the layers of a model's decoder, first layer first.

    Raises:
        RuntimeError: the decoder has no list of distinct layers, or the decoder or a layer takes no
            extra keyword arguments.
    """
    decoder = _uncompiled(model.get_decoder())
    layers = getattr(decoder, "layers", None)
    expected = model.config.get_text_config().num_hidden_layers
    if not isinstance(layers, torch.nn.ModuleList) or len(layers) != expected:
        raise RuntimeError(
            f"{type(decoder).__name__} of {_installed()} has no list of {expected} decoder layers, "
            f"so nothing can be pruned between them; {_way_out()}"
        )
    layers = [_uncompiled(layer) for layer in layers]
    if len({id(layer) for layer in layers}) < expected:
        raise RuntimeError(
            f"{type(decoder).__name__} has the same layer more than once in its list, so what is "
            f"pruned between them cannot be told apart; use a schedule that prunes before it"
        )
    for part in (decoder, *layers):
        parameters = method_signature(part, "forward").parameters.values()
        if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in parameters):
            raise RuntimeError(
                f"{type(part).__name__}.forward of {_installed()} takes no extra keyword "
                f"arguments, which pruning needs to reach the decoder layers; {_way_out()}"
            )
    return layers


def _uncompiled(module: Any) -> Any:
    """Return the module inside a ``torch.compile`` wrapper, or the module itself."""
    return getattr(module, "_orig_mod", module)


def layer_masks(
    model: Any,
    queries: torch.Tensor,
    attention_mask: torch.Tensor | None,
    cache: Any,
    layers: range,
    token_types: Mapping[str, torch.Tensor] | None = None,
) -> list[Any]:
    """Return the attention mask of each of the decoder ``layers``, which all hold the same columns.

    transformers makes the masks in the form that the model's attention implementation takes.
    ``queries`` [rows, new columns, any width] only gives shape, dtype and device.
    ``attention_mask`` is [rows, cached and new columns], or None for all ones. The cache does not
    hold the new columns yet. ``token_types`` has the token types of the new columns by argument of
    forward: in some models, attention between tokens of one image is bidirectional.
    """
    from transformers import Cache
    from transformers.masking_utils import create_masks_for_generate

    make = getattr(model, "create_masks_for_generate", create_masks_for_generate)
    # A cache reports the length of its first layer, so wrap only the layers in question.
    held = None if cache is None else Cache(layers=cache.layers[layers.start : layers.stop])
    takes = inspect.signature(create_masks_for_generate).parameters
    masks = make(
        config=model.config,
        inputs_embeds=queries,
        attention_mask=attention_mask,
        # No position ids: gaps in them would be taken for borders between packed samples.
        position_ids=None,
        **{next(name for name in _CACHE_NAMES if name in takes): held},
        **(token_types or {}),
    )
    if not isinstance(masks, dict):
        return [masks] * len(layers)
    kinds = model.config.get_text_config().layer_types
    return [masks[kinds[layer]] for layer in layers]


def is_made_by_generate(cache: Any) -> bool:
    """Return whether ``generate`` created the cache. Only valid during its first forward."""
    return cache is not None and not getattr(cache, "_is_user_defined", False)


def fit_static_layers(cache: Any, lengths: Sequence[int]) -> None:
    """Set how many columns each layer of an empty static cache will allocate.

    Layers of other classes, and layers that are already allocated, stay as they are.
    """
    from transformers.cache_utils import StaticLayer

    for layer, length in zip(cache.layers, lengths, strict=True):
        if type(layer) is StaticLayer and not layer.is_initialized:
            setattr(layer, _GIVEN_LENGTH, layer.max_cache_len)
            layer.max_cache_len = length


def unfit_static_layers(cache: Any) -> None:
    """Make an emptied static cache allocate its original number of columns again."""
    for layer in cache.layers:
        if hasattr(layer, _GIVEN_LENGTH):
            layer.max_cache_len = getattr(layer, _GIVEN_LENGTH)
            delattr(layer, _GIVEN_LENGTH)
            layer.is_initialized = False


@contextmanager
def own_static_length(model: Any) -> Iterator[None]:
    """Make ``generate`` size a static cache for its own prompt within a ``with`` block.

    By default it never makes one shorter than the longest so far; ``StaticLengths`` handles that
    for pruned lengths. Afterwards the model's attribute is set to the maximum again.
    """
    before = vars(model).pop(_LONGEST, None)
    try:
        yield
    finally:
        if before is not None:
            setattr(model, _LONGEST, max(before, getattr(model, _LONGEST, before)))


def static_lengths(cache: Any) -> list[int] | None:
    """Return how many columns each layer of a static cache allocates; None for other caches.

    The number is 0 for a recurrent layer, which has a state instead of columns.
    """
    if not getattr(cache, "is_compileable", False):
        return None
    return [int(getattr(layer, "max_cache_len", 0)) for layer in cache.layers]


def require_parts(module: Any, names: Sequence[str]) -> None:
    """Raise a RuntimeError if a model lacks a part that pruning calls by name."""
    missing = [name for name in names if not hasattr(module, name)]
    if missing:
        raise RuntimeError(
            f"{type(module).__name__} of {_installed()} has no {' or '.join(missing)}; {_way_out()}"
        )


def is_overridden(module: Any, name: str, original: type) -> bool:
    """Return whether a method differs from the one of the library's class ``original``."""
    method = inspect.unwrap(getattr(module, name))  # a compiled method is not an override
    function = inspect.unwrap(getattr(method, "__func__", method))
    return function is not inspect.unwrap(getattr(original, name))


def output_cache(outputs: Any) -> Any:
    """Return the cache in a model's outputs, or None."""
    return getattr(outputs, _field(outputs, _CACHE_NAMES))


def cache_bytes(cache: Any, columns: Callable[[int], int]) -> tuple[int, ...]:
    """Return the bytes of keys and values of ``columns(layer)`` columns in each layer of a cache.

    Bytes per column are read from the layer's tensors, because layers differ in heads and widths.
    A sliding window limits the columns of its layer. A linear attention layer has 0 bytes.
    """
    sizes = []
    for number, layer in enumerate([] if cache is None else cache.layers):
        window = getattr(layer, "sliding_window", None) or columns(number)
        size = 0
        for stored in (getattr(layer, "keys", None), getattr(layer, "values", None)):
            if isinstance(stored, torch.Tensor) and stored.ndim == 4 and stored.shape[2] > 0:
                column = stored[:, :, :1]
                size += column.numel() * column.element_size() * min(columns(number), window)
        sizes.append(size)
    return tuple(sizes)


def tile_grid(
    size: tuple[int, int], pinpoints: Sequence[Sequence[int]], tile: int
) -> tuple[int, int]:
    """Return rows and columns of the square tiles that a processor cuts an image into.

    ``size`` is the image's (height, width), ``pinpoints`` the allowed (height, width) of the tiled
    area, ``tile`` the side of a tile.
    """
    from transformers.image_processing_utils import select_best_resolution

    height, width = select_best_resolution(size, [tuple(pair) for pair in pinpoints])
    return -(-height // tile), -(-width // tile)


def tiles_of_image(size: tuple[int, int], pinpoints: Sequence[Sequence[int]], tile: int) -> int:
    """Return the number of tiles of ``tile_grid``, plus one for the tile of the whole image."""
    rows, columns = tile_grid(size, pinpoints, tile)
    return rows * columns + 1


def vision_window_index(grid_thw: torch.Tensor, vision_config: Any) -> torch.Tensor:
    """Return the indices of merged tokens in window order, for a tower with window attention."""
    from transformers.vision_utils import get_vision_window_index

    order, _ = get_vision_window_index(
        grid_thw,
        spatial_merge_size=vision_config.spatial_merge_size,
        window_size=vision_config.window_size,
        patch_size=vision_config.patch_size,
    )
    return order


def deepstack_features(outputs: Any, layers: int) -> Sequence[torch.Tensor]:
    """Return the DeepStack features for the first ``layers`` decoder layers, [tokens, text width].

    Raises:
        RuntimeError: the outputs do not have them.
    """
    features = getattr(outputs, "deepstack_features", None)
    if features is None or len(features) != layers:
        raise RuntimeError(
            f"the vision tower of {_installed()} did not return the features of {layers} layers, "
            f"which the decoder's first layers add to visual tokens; {_way_out()}"
        )
    return list(features)


def set_image_features(outputs: Any, features: Mapping[str, Sequence[torch.Tensor]]) -> None:
    """Store the features of the kept visual tokens in the outputs, in the field of the release.

    ``features`` has [tokens, text width] of each image and video, by kind. Since transformers 5.24
    the field is the ``pooler_output`` of ``image_outputs`` and ``video_outputs``; before, it is one
    tensor ``image_hidden_states`` and one ``video_hidden_states``.
    """
    known = [field.name for field in fields(outputs)]
    for kind, items in features.items():
        if f"{kind}_outputs" in known:
            from transformers.modeling_outputs import BaseModelOutputWithPooling

            pooled: Any = list(items)  # the field is typed as one tensor, but lengths may differ
            outputs[f"{kind}_outputs"] = BaseModelOutputWithPooling(pooler_output=pooled)
        elif f"{kind}_hidden_states" in known:  # not every family has the field
            outputs[f"{kind}_hidden_states"] = torch.cat(list(items))


def uses_flash_attention(config: Any) -> bool:
    """Return whether a model with this config uses a FlashAttention implementation."""
    from transformers.utils.generic import is_flash_attention_requested

    return bool(is_flash_attention_requested(config))


def attention_window(config: Any) -> int | None:
    """Return the smallest attention window of the decoder's layers; None if all are unlimited."""
    kinds = getattr(config, "layer_types", None)
    sliding, chunk = (
        getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")
    )
    if kinds is None:  # one kind of layer
        windows = [sliding if getattr(config, "use_sliding_window", True) else None]
    else:
        windows = [
            sliding if "sliding_attention" in kinds else None,
            chunk if "chunked_attention" in kinds else None,
        ]
    limits = [window for window in windows if window is not None]
    return min(limits) if limits else None


def recurrent_kinds(config: Any) -> list[str]:
    """Return the layer types without a KV cache: their recurrent state holds the whole prompt, so
    no token can be removed from it."""
    return sorted(set(getattr(config, "layer_types", None) or ()).difference(_ATTENTION))


def makes_cache(model: Any, inputs: Mapping[str, Any]) -> bool:
    """Return whether a forward without a cache argument creates a cache."""
    use_cache = inputs.get("use_cache")
    if use_cache is None:
        use_cache = getattr(model.config.get_text_config(), "use_cache", False)
    decoder = model.get_decoder()
    checkpoints = getattr(decoder, "gradient_checkpointing", False) and decoder.training
    return bool(use_cache) and not (checkpoints and torch.is_grad_enabled())


def _field(outputs: Any, names: Sequence[str]) -> str:
    known = [field.name for field in fields(outputs)] if is_dataclass(outputs) else []
    for name in names:
        if name in known:
            return name
    raise RuntimeError(
        f"{type(outputs).__name__}, which the model returned, has no field {' or '.join(names)}: "
        f"its forward is not that of {_installed()}; {_way_out()}"
    )


def _installed() -> str:
    import transformers

    return f"transformers {transformers.__version__}"


def _way_out() -> str:
    return (
        f"clasp_kernels was tested with transformers {TESTED_RELEASES[0]} to "
        f"{TESTED_RELEASES[-1]}, `clasp doctor --verify` tells what works here"
    )
