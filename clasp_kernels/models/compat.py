"""This module alone knows how releases of transformers differ.

Differences are found by looking at signatures and fields, never by comparing version numbers: a
release that nobody has seen yet is served if it looks like one of these, and refused in words if
it does not. The rest of ``clasp_kernels.models`` calls a key-value cache ``cache``, which
transformers before 5.24 calls ``past_key_values``.
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

#: The transformers releases that the tests of ``clasp_kernels.models`` pass on, oldest first.
TESTED_RELEASES: tuple[str, ...] = ("5.17.0", "5.20.2", "5.23.0", "5.24.0")

#: How to get a transformers that fits.
INSTALL = 'pip install -U "clasp-kernels[hf]"'
# Where ``generate`` remembers the longest static cache it made for a model.
_LONGEST = "_previous_max_cache_length"
# Where a layer of a static cache keeps the length it was made with.
_GIVEN_LENGTH = "_clasp_given_length"
# The kinds of decoder layers that keep keys and values.
_ATTENTION = ("full_attention", "sliding_attention", "chunked_attention")
_CACHE_NAMES = ("cache", "past_key_values")


def require_transformers(warn: bool = True) -> None:
    """Check that transformers is there and not too old; warn once if nobody tested one so new.

    Raises:
        ImportError: it is missing, broken or older than the oldest tested release. The text says
            how to get another.
    """
    try:
        import transformers
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "transformers":
            problem = "transformers is not installed"
        else:  # it checks the versions of what it needs while it is imported
            problem = f"transformers cannot be imported ({' '.join(str(error).split())})"
        raise ImportError(f"{problem}; {INSTALL}", name="transformers") from None
    version = transformers.__version__
    if is_too_old(version):
        raise ImportError(f"{release_problem(version)}; {INSTALL}", name="transformers")
    if warn and not is_tested(version):
        _warn_untested(version)


def release_problem(version: str) -> str:
    """What speaks against a release of transformers; empty if it was tested."""
    if is_too_old(version):
        return f"transformers {version} is too old, {TESTED_RELEASES[0]} or later is needed"
    if not is_tested(version):
        return (
            f"transformers {version} is newer than those that clasp_kernels was tested with, "
            f"{TESTED_RELEASES[0]} to {TESTED_RELEASES[-1]}"
        )
    return ""


def is_too_old(version: str) -> bool:
    """Whether a transformers is older than the oldest that was tested."""
    return _release(version) < _release(TESTED_RELEASES[0])


def is_tested(version: str) -> bool:
    """Whether a transformers lies within those that were tested."""
    return not is_too_old(version) and _release(version) <= _release(TESTED_RELEASES[-1])


@cache
def _warn_untested(version: str) -> None:
    warn_caller(
        f"{release_problem(version)}; `clasp doctor --verify` tells in a minute whether pruning is "
        f"right with it"
    )


def _release(version: str) -> tuple[int, ...]:
    """A version as numbers, what comes after them left out: "5.25.0.dev0" is (5, 25, 0)."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, numbers[0].split("."))) if numbers else ()


def method_signature(model: Any, name: str) -> inspect.Signature:
    """The signature that a model's class gives a method, without ``self``.

    Whatever wraps the method on the instance need not show the arguments it passes on. Annotations
    are left out: they may hold what cannot be pickled, and a patched model can be saved whole.
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
    """A call's arguments by name, without those that the caller did not give."""
    arguments = dict(signature.bind(*args, **kwargs).arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            arguments.update(arguments.pop(parameter.name, {}))
    return arguments


def prepare_signature(model: Any) -> inspect.Signature:
    """The signature of ``prepare_inputs_for_generation``, checked for what pruning reads there.

    Raises:
        RuntimeError: ``generate`` no longer says there which forward is the first.
    """
    from transformers import GenerationMixin

    known = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
    missing = [name for name in ("is_first_iteration", "next_sequence_length") if name not in known]
    if missing:
        raise RuntimeError(
            f"generate of {_installed()} does not hand {' and '.join(missing)} to "
            f"prepare_inputs_for_generation, by which the prefill is told from decoding; "
            f"{_way_out()}"
        )
    return method_signature(model, "prepare_inputs_for_generation")


def cache_name(model: Any, method: str) -> str:
    """The name of a method's cache argument: "cache" or "past_key_values".

    Raises:
        RuntimeError: its signature has neither.
    """
    from transformers import GenerationMixin

    signatures = [method_signature(model, method)]
    # A family's own version of the library's method may only hand on its keywords.
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
    """Arguments in which the cache is called ``cache``, whatever the caller called it.

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
    """The arguments of a function that calls its cache ``name``, as ``cache_name`` found."""
    return {name if key == "cache" else key: value for key, value in arguments.items()}


def is_foreign_cache(cache: Any) -> bool:
    """Whether something given as a cache is none that prompts are pruned in.

    Continuous batching's is one: it has pages that many requests share.
    """
    return cache is not None and not hasattr(cache, "get_seq_length")


def has_foreign_cache(arguments: Mapping[str, Any]) -> bool:
    """Whether a forward is given such a cache, under any of the names of caches."""
    return any(is_foreign_cache(arguments.get(name)) for name in _CACHE_NAMES)


def image_tower(model: Any) -> Any:
    """The module that encodes images.

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
    """The attention module of each layer of a vision tower, first layer first.

    Raises:
        RuntimeError: there is not one for each of the ``num_layers`` layers.
    """
    found = [
        module
        for module in tower.modules()
        if type(module).__name__.endswith("Attention") and hasattr(module, "config")
    ]
    if len(found) != num_layers:
        raise RuntimeError(
            f"{type(tower).__name__} of {_installed()} has {len(found)} attention modules in "
            f"{num_layers} layers, so the one that scores the tokens cannot be told; {_way_out()}"
        )
    return found


def decoder_layers(model: Any) -> list[torch.nn.Module]:
    """The layers of a model's decoder, first layer first, checked for what pruning them needs.

    Raises:
        RuntimeError: the decoder has no such list, or does not hand its keywords on to its layers.
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
                f"{type(part).__name__}.forward of {_installed()} takes no further keywords, by "
                f"which decoder layers learn what is pruned; {_way_out()}"
            )
    return layers


def _uncompiled(module: Any) -> Any:
    """The module inside of one that ``torch.compile`` made."""
    return getattr(module, "_orig_mod", module)


def layer_masks(
    model: Any,
    queries: torch.Tensor,
    attention_mask: torch.Tensor | None,
    cache: Any,
    layers: range,
    token_types: Mapping[str, torch.Tensor] | None = None,
) -> list[Any]:
    """The mask that each of some decoder layers should get, which all hold the same columns.

    As transformers makes it for the model's attention implementation. ``queries`` [rows, new
    columns, any width] only gives shape, dtype and device; ``attention_mask`` [rows, cached and new
    columns] says which count, None for all. The cache has not seen the new columns yet.
    ``token_types`` has the kinds of the new columns by argument of forward, as far as the model was
    given some: tokens of one image may see each other both ways.
    """
    from transformers import Cache
    from transformers.masking_utils import create_masks_for_generate

    make = getattr(model, "create_masks_for_generate", create_masks_for_generate)
    # A cache that borrows the layers tells their length, where the whole tells the first layer's.
    held = None if cache is None else Cache(layers=cache.layers[layers.start : layers.stop])
    takes = inspect.signature(create_masks_for_generate).parameters
    masks = make(
        config=model.config,
        inputs_embeds=queries,
        attention_mask=attention_mask,
        # No positions: their gaps would be taken for the borders of packed samples.
        position_ids=None,
        **{next(name for name in _CACHE_NAMES if name in takes): held},
        **(token_types or {}),
    )
    if not isinstance(masks, dict):
        return [masks] * len(layers)
    kinds = model.config.get_text_config().layer_types
    return [masks[kinds[layer]] for layer in layers]


def is_made_by_generate(cache: Any) -> bool:
    """Whether ``generate`` made a cache, rather than its caller. Asked during its first forward."""
    return cache is not None and not getattr(cache, "_is_user_defined", False)


def fit_static_layers(cache: Any, lengths: Sequence[int]) -> None:
    """Have a static cache, which holds nothing yet, allocate so many columns in each layer.

    Layers of another kind, and those that are allocated already, stay as they are.
    """
    from transformers.cache_utils import StaticLayer

    for layer, length in zip(cache.layers, lengths, strict=True):
        if type(layer) is StaticLayer and not layer.is_initialized:
            setattr(layer, _GIVEN_LENGTH, layer.max_cache_len)
            layer.max_cache_len = length


def unfit_static_layers(cache: Any) -> None:
    """Have a static cache that was emptied allocate anew as many columns as it was made for."""
    for layer in cache.layers:
        if hasattr(layer, _GIVEN_LENGTH):
            layer.max_cache_len = getattr(layer, _GIVEN_LENGTH)
            delattr(layer, _GIVEN_LENGTH)
            layer.is_initialized = False


@contextmanager
def own_static_length(model: Any) -> Iterator[None]:
    """Have ``generate`` make a static cache for its own prompt, whatever came before.

    It makes none shorter than the one before, which for pruned prompts says little. What it
    remembers is in the end the longest of all.
    """
    before = vars(model).pop(_LONGEST, None)
    try:
        yield
    finally:
        if before is not None:
            setattr(model, _LONGEST, max(before, getattr(model, _LONGEST, before)))


def static_lengths(cache: Any) -> list[int] | None:
    """How many columns each layer of a cache will allocate; None if the cache is not static.

    A layer that has a state instead of columns allocates 0.
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
    """Whether a method is not the one that the library's class gives it."""
    method = inspect.unwrap(getattr(module, name))  # a compiled one does the same
    function = inspect.unwrap(getattr(method, "__func__", method))
    return function is not inspect.unwrap(getattr(original, name))


def output_cache(outputs: Any) -> Any:
    """The cache among a model's outputs, None where it used none."""
    return getattr(outputs, _field(outputs, _CACHE_NAMES))


def cache_bytes(cache: Any, columns: Callable[[int], int]) -> tuple[int, ...]:
    """Bytes of the keys and values that each layer of a cache has, or would have.

    Of ``columns(layer)`` columns, from the tensors that are there, as layers differ in heads and
    widths. One with a sliding window holds no more columns than that; linear attention holds none.
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
    """Rows and columns of the square tiles that a processor cuts an image of a height and width in.

    ``pinpoints`` are the heights and widths that it may be fitted into, ``tile`` is the side of a
    tile.
    """
    from transformers.image_processing_utils import select_best_resolution

    height, width = select_best_resolution(size, [tuple(pair) for pair in pinpoints])
    return -(-height // tile), -(-width // tile)


def tiles_of_image(size: tuple[int, int], pinpoints: Sequence[Sequence[int]], tile: int) -> int:
    """How many tiles ``tile_grid`` has, and one more: that of the whole image."""
    rows, columns = tile_grid(size, pinpoints, tile)
    return rows * columns + 1


def vision_window_index(grid_thw: torch.Tensor, vision_config: Any) -> torch.Tensor:
    """Of a tower that attends within windows, the merged tokens in the order of the windows."""
    from transformers.vision_utils import get_vision_window_index

    order, _ = get_vision_window_index(
        grid_thw,
        spatial_merge_size=vision_config.spatial_merge_size,
        window_size=vision_config.window_size,
        patch_size=vision_config.patch_size,
    )
    return order


def deepstack_features(outputs: Any, layers: int) -> Sequence[torch.Tensor]:
    """[tokens, text width] each: what a vision tower has for so many of the decoder's first layers.

    Raises:
        RuntimeError: it is not there.
    """
    features = getattr(outputs, "deepstack_features", None)
    if features is None or len(features) != layers:
        raise RuntimeError(
            f"the vision tower of {_installed()} did not return the features of {layers} layers, "
            f"which the decoder's first layers add to visual tokens; {_way_out()}"
        )
    return list(features)


def set_image_features(outputs: Any, features: Mapping[str, Sequence[torch.Tensor]]) -> None:
    """Put the features of images and videos that the language model saw where a release has them.

    ``features`` holds [tokens, text width] for each image and for each video, by kind. Since 5.24
    they are the ``pooler_output`` of ``image_outputs`` and ``video_outputs``; before, one tensor
    ``image_hidden_states``, and one ``video_hidden_states``.
    """
    known = [field.name for field in fields(outputs)]
    for kind, items in features.items():
        if f"{kind}_outputs" in known:
            from transformers.modeling_outputs import BaseModelOutputWithPooling

            pooled: Any = list(items)  # typed as one tensor, which items that differ do not fit
            outputs[f"{kind}_outputs"] = BaseModelOutputWithPooling(pooler_output=pooled)
        elif f"{kind}_hidden_states" in known:  # not every family told them
            outputs[f"{kind}_hidden_states"] = torch.cat(list(items))


def uses_flash_attention(config: Any) -> bool:
    """Whether a model with this config runs some FlashAttention."""
    from transformers.utils.generic import is_flash_attention_requested

    return bool(is_flash_attention_requested(config))


def attention_window(config: Any) -> int | None:
    """How many columns back a language model's layers look, where some look back a limited way."""
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
    """The kinds of a decoder's layers that have one state for the whole prompt instead of keys and
    values, so that no token can be taken out again."""
    return sorted(set(getattr(config, "layer_types", None) or ()).difference(_ATTENTION))


def makes_cache(model: Any, inputs: Mapping[str, Any]) -> bool:
    """Whether a forward that is given no cache makes one."""
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
