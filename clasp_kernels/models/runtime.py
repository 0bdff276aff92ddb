"""The patched methods of one model: generate, forward, and the two hooks between them.

- ``generate`` refuses to draft for another model, which only its arguments tell.
- ``_expand_inputs_for_generation`` runs once per ``generate``: prompts are routed there, while
  they are still whole and unrepeated, and images are kept from being repeated with them.
- ``prepare_inputs_for_generation`` runs before every forward, outside compiled regions: decode
  steps have the mask and positions of the full prompt turned into those of the pruned cache.
- ``forward`` prunes where images meet their placeholders, and otherwise runs the original.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from clasp_kernels.models.compat import (
    cache_name,
    canonical_cache,
    method_signature,
    native_cache,
    output_cache,
    set_image_features,
)
from clasp_kernels.models.history import CachedPast
from clasp_kernels.models.layout import PromptImages
from clasp_kernels.models.patching import PatchedMethod
from clasp_kernels.models.prefill import (
    check_attention_mask,
    check_inputs,
    find_images,
    input_shape,
    prune_prompt,
)
from clasp_kernels.models.prompts import PromptCategories
from clasp_kernels.models.records import PrefillRecord
from clasp_kernels.models.selection import TokenSelector
from clasp_kernels.models.stopwatch import Stopwatch

# Private keyword arguments from prepare_inputs_for_generation to forward.
_GENERATION = "clasp_generation"
_PREPARED = "clasp_prepared"


@dataclass(frozen=True)
class _Generation:
    """What one ``generate`` call settled before its first forward."""

    categories: tuple[str, ...]
    repeats: int = 1
    """Rows per prompt: beams or returned sequences."""


class ClaspRuntime:
    """One model's pruning: its settings, the methods it had, and the last prefill's record."""

    def __init__(
        self,
        model: Any,
        selector: TokenSelector,
        prompt_categories: PromptCategories,
        *,
        compact_positions: bool,
    ) -> None:
        self.last: PrefillRecord | None = None
        self._model = model
        self._selector = selector
        self._adapter = selector.adapter
        self._prompt_categories = prompt_categories
        self._compact = compact_positions
        self._generate: Callable[..., Any] = model.generate
        self._forward: Callable[..., Any] = model.forward
        self._prepare: Callable[..., Any] = model.prepare_inputs_for_generation
        self._expand: Callable[..., Any] = model._expand_inputs_for_generation
        self._signature = _with_categories(method_signature(model, "forward"))
        self._forward_cache = cache_name(model, "forward")
        self._prepare_cache = cache_name(model, "prepare_inputs_for_generation")

    def patched_methods(self) -> dict[str, PatchedMethod]:
        """The attributes that make the model prune."""
        return {
            "generate": PatchedMethod(self.generate, inspect.signature(self._generate)),
            "forward": PatchedMethod(self.forward, self._signature),
            "prepare_inputs_for_generation": PatchedMethod(
                self.prepare_inputs_for_generation, inspect.signature(self._prepare)
            ),
            "_expand_inputs_for_generation": PatchedMethod(
                self.expand_inputs_for_generation, inspect.signature(self._expand)
            ),
        }

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        # An assistant's first forward is not marked as one and its prompt has grown since the
        # images came, so it cannot tell where to prune.
        drafts = getattr(kwargs.get("generation_config"), "is_assistant", False)
        if drafts and (kwargs.get("pixel_values") is not None or _encoded_images(kwargs)):
            raise ValueError(
                "an assistant model cannot be pruned; remove() its handle (the model that it "
                "assists may be pruned)"
            )
        return self._generate(*args, **kwargs)

    def expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[torch.Tensor | None, dict[str, Any]]:
        _refuse_encoded_images(model_kwargs)
        pixel_values = model_kwargs.pop("pixel_values", None)
        categories = model_kwargs.pop("categories", None)
        generation = None
        if pixel_values is not None:
            embeds = model_kwargs.get("inputs_embeds")
            prompt = {"input_ids": input_ids} if embeds is None else {"inputs_embeds": embeds}
            num_prompts, _, _ = input_shape(prompt)
            generation = _Generation(
                self._prompt_categories.resolve(
                    categories,
                    num_prompts,
                    prompt.get("input_ids"),
                    model_kwargs.get("attention_mask"),
                ),
                repeats=expand_size,
            )
        input_ids, model_kwargs = self._expand(
            expand_size=expand_size,
            is_encoder_decoder=is_encoder_decoder,
            input_ids=input_ids,
            **model_kwargs,
        )
        if generation is not None:
            # Each image is encoded and pruned once, and its tokens repeated after that. Repeating
            # images row by row would also interleave those of a prompt that has several.
            # What was settled travels on a tensor object of this call's own: as a keyword it
            # would reach assistant models too, which do not know it.
            model_kwargs["pixel_values"] = pixel_values.detach()
            setattr(model_kwargs["pixel_values"], _GENERATION, generation)
        return input_ids, model_kwargs

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, **kwargs: Any
    ) -> dict[str, Any]:
        kwargs = canonical_cache(kwargs)
        first = bool(kwargs.get("is_first_iteration", False))
        embeds = kwargs.get("inputs_embeds") if first else None
        length = input_ids.shape[1] if embeds is None else embeds.shape[1]
        cache = kwargs.get("cache")
        # A step of a running generation must not wait to learn how far it is.
        past = CachedPast.of(cache) if first else CachedPast.of_running(cache)
        if past.history and kwargs.get("next_sequence_length") not in (None, 1):
            # It was counted from the length of the cache, which has seen more than it holds.
            kwargs["next_sequence_length"] = length - past.full_seen

        # The rule by which the original forwards images: in the prefill, or always if uncached.
        forwards_images = first or not kwargs.get("use_cache", True)
        if kwargs.get("pixel_values") is not None and forwards_images:
            # For a static cache the original expands the mask to 4D, with the columns that are
            # about to go; forward wants it as it is.
            attention_mask = kwargs.pop("attention_mask", None)
            kwargs["attention_mask"] = None
            model_inputs: dict[str, Any] = self._prepare_native(input_ids, kwargs)
            model_inputs["attention_mask"] = attention_mask
            model_inputs[_GENERATION] = getattr(kwargs["pixel_values"], _GENERATION, None)
            return model_inputs

        if kwargs.get("pixel_values") is not None and not past.history:
            raise ValueError(
                "the prompt was fed without its images, in chunks; prefill_chunk_size must be "
                "None where images are pruned"
            )
        if past.history:
            position_ids = kwargs.get("position_ids")
            total = length if position_ids is None else position_ids.shape[-1]
            kwargs["attention_mask"] = past.mask(kwargs.get("attention_mask"), total)
            if position_ids is not None:
                kwargs["position_ids"] = past.history.positions(position_ids)
        model_inputs = self._prepare_native(input_ids, kwargs)
        model_inputs[_PREPARED] = True
        return model_inputs

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs.pop(_PREPARED, False):  # all that compiled decoding traces
            return self._forward(*args, **kwargs)
        generation: _Generation | None = kwargs.pop(_GENERATION, None)
        inputs = canonical_cache(_by_name(self._signature, args, kwargs))
        _refuse_encoded_images(inputs)
        categories = inputs.pop("categories", None)
        if inputs.get("pixel_values") is not None:
            return self._prune_and_forward(inputs, categories, generation)
        past = CachedPast.of(inputs.get("cache"))
        if past.history:
            self._continue_from(past, inputs)
        return self._forward_native(inputs)

    def _prepare_native(self, input_ids: torch.Tensor, arguments: Mapping[str, Any]) -> Any:
        return self._prepare(input_ids, **native_cache(arguments, self._prepare_cache))

    def _forward_native(self, arguments: Mapping[str, Any]) -> Any:
        return self._forward(**native_cache(arguments, self._forward_cache))

    def _continue_from(self, past: CachedPast, inputs: dict[str, Any]) -> None:
        """Turn the caller's mask and positions into those of a pruned cache."""
        rows, length, device = input_shape(inputs)
        total = past.full_seen + length
        check_attention_mask(inputs.get("attention_mask"), rows, total)
        inputs["attention_mask"] = past.mask(inputs.get("attention_mask"), total)
        positions = inputs.get("position_ids")
        if positions is None:
            positions = torch.arange(past.full_seen, total, device=device)[None]
        inputs["position_ids"] = past.history.positions(positions)

    def _prune_and_forward(
        self,
        inputs: dict[str, Any],
        categories: str | Sequence[str] | None,
        generation: _Generation | None,
    ) -> Any:
        rows, length, _ = input_shape(inputs)
        past = CachedPast.of(inputs.get("cache"))
        self._adapter.check_call(inputs)
        check_inputs(inputs, past)
        if generation is None:
            generation = _Generation(
                self._prompt_categories.resolve(
                    categories, rows, inputs.get("input_ids"), inputs.get("attention_mask")
                )
            )
        embed = self._model.get_input_embeddings()
        images = find_images(self._adapter, embed, inputs, generation.repeats)
        kept = self._selector.select(
            inputs["pixel_values"], _per_image(generation.categories, images)
        )
        return_dict = inputs.pop("return_dict", None)
        prompt = prune_prompt(
            inputs,
            images,
            kept,
            past,
            embed=embed,
            text_config=self._adapter.text_config,
            repeats=generation.repeats,
            compact=self._compact,
        )
        embeds = prompt.inputs["inputs_embeds"]
        with Stopwatch(embeds.device) as prefill_stopwatch:
            outputs = self._forward_native({**prompt.inputs, "return_dict": True})
        set_image_features(outputs, prompt.image_features)
        cache = output_cache(outputs)
        if cache is not None:
            prompt.history.attach(cache)

        column_bytes = rows * kv_bytes_per_token(self._adapter.text_config, embeds.dtype)
        layout = prompt.layout
        self.last = PrefillRecord(
            categories=generation.categories,
            images_per_prompt=images.per_prompt,
            stages=(kept.stage,),
            columns=layout.source.masked_fill(layout.is_padding, -1),
            prompt_length=length,
            pruned_length=layout.length,
            kv_cache_bytes=column_bytes * prompt.history.pruned_length,
            kv_cache_bytes_unpruned=column_bytes * prompt.history.full_length,
            vision_stopwatch=kept.vision_stopwatch,
            prefill_stopwatch=prefill_stopwatch,
        )
        return outputs.to_tuple() if return_dict is False else outputs


def _encoded_images(inputs: Mapping[str, Any]) -> bool:
    return (inputs.get("mm_encoder_outputs") or {}).get("image") is not None


def _refuse_encoded_images(inputs: Mapping[str, Any]) -> None:
    if _encoded_images(inputs):
        raise ValueError(
            "mm_encoder_outputs holds images that are encoded already, too late to prune them; "
            "pass pixel_values instead"
        )


def kv_bytes_per_token(text_config: Any, dtype: torch.dtype) -> int:
    """Bytes of keys and values one token leaves in the cache, over all layers."""
    heads = text_config.num_attention_heads
    head_dim = getattr(text_config, "head_dim", None) or text_config.hidden_size // heads
    kv_heads = getattr(text_config, "num_key_value_heads", None) or heads
    return int(2 * text_config.num_hidden_layers * kv_heads * head_dim * dtype.itemsize)


def _per_image(categories: Sequence[str], images: PromptImages) -> list[str]:
    pairs = zip(categories, images.per_prompt, strict=True)
    return [category for category, in_prompt in pairs for _ in range(in_prompt)]


def _with_categories(signature: inspect.Signature) -> inspect.Signature:
    """Forward's signature as ``generate`` should see it.

    With ``categories``, which ``generate`` then lets through; without ``mm_encoder_outputs``, or
    it would encode and project every visual token before the prompt's category is known.
    """
    parameters = [p for p in signature.parameters.values() if p.name != "mm_encoder_outputs"]
    categories = inspect.Parameter("categories", inspect.Parameter.KEYWORD_ONLY, default=None)
    has_var_keyword = parameters[-1].kind is inspect.Parameter.VAR_KEYWORD
    parameters.insert(len(parameters) - has_var_keyword, categories)
    return signature.replace(parameters=parameters)


def _by_name(
    signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """A call's arguments by name, those the caller left out left out."""
    arguments = dict(signature.bind(*args, **kwargs).arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            arguments.update(arguments.pop(parameter.name, {}))
    return arguments
