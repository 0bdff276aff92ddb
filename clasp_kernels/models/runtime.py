"""The patched methods of one model.

- ``generate`` routes the prompts before they are expanded for beams, and passes images and
  categories on in one object (``generation.py``).
- ``prepare_inputs_for_generation`` runs before every forward, outside compiled code. In decode
  steps it converts mask and position ids of the full prompt to those of the pruned cache.
- ``forward`` prunes if it is given images, and otherwise calls the original.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from clasp_kernels._warn import warn_caller
from clasp_kernels.models.categories import PromptCategories
from clasp_kernels.models.columns import (
    LABELS,
    MASKING_TYPES,
    given_token_types,
    with_loss,
    with_types_of_columns,
)
from clasp_kernels.models.compat import (
    by_name,
    cache_bytes,
    cache_name,
    canonical_cache,
    has_foreign_cache,
    is_made_by_generate,
    method_signature,
    native_cache,
    output_cache,
    own_static_length,
    prepare_signature,
    set_image_features,
    uses_flash_attention,
)
from clasp_kernels.models.decoder import MASKS, PRUNING, DecoderSeam
from clasp_kernels.models.encoded import EncodedImage, split_by_image
from clasp_kernels.models.generation import GENERATION, Generation, ImageDrafter
from clasp_kernels.models.guards import (
    check_forward,
    check_generate,
    check_weights,
    encoded_images,
    given_setting,
    prompt_ids,
    prompt_shape,
    refuse_chunks,
    refuse_encoded_images,
)
from clasp_kernels.models.history import CachedPast, PrunedHistory, reading
from clasp_kernels.models.instruction import instruction_columns
from clasp_kernels.models.layout import PromptImages
from clasp_kernels.models.masking import check_window, find_packed, masks_of_layers
from clasp_kernels.models.patching import Replacement
from clasp_kernels.models.prefill import (
    check_attention_mask,
    check_inputs,
    check_logits_to_keep,
    embedded,
    find_images,
    input_shape,
    prune_prompt,
)
from clasp_kernels.models.records import PrefillRecord
from clasp_kernels.models.selection import KeptTokens, TokenSelector
from clasp_kernels.models.staged import StagedPrefill
from clasp_kernels.models.static import StaticLengths
from clasp_kernels.models.stopwatch import Stopwatch
from clasp_kernels.rules.relevance import text_direction
from clasp_kernels.upload import upload

# Set by prepare_inputs_for_generation if forward only has to call the original.
_PREPARED = "clasp_prepared"

_Method = Callable[..., Any]

_LOST = (
    "A cache of a pruned prompt must be passed on as the object that the model returned, or as a "
    "copy.deepcopy of it: a cache built from its keys and values does not record what was dropped"
)


class ClaspRuntime:
    """The pruning of one model: its settings, its patched methods and the last prefill's record."""

    def __init__(
        self,
        model: Any,
        selector: TokenSelector,
        prompt_categories: PromptCategories,
        *,
        compact_positions: bool,
    ) -> None:
        """
        Raises:
            RuntimeError, TypeError: this model or its decoder is not supported.
        """
        self.last: PrefillRecord | None = None
        self._told_frozen = False
        self._generating: list[None] = []  # one for each generate that is running
        self.adapter = selector.adapter
        self._selector = selector
        self._prompt_categories = prompt_categories
        self._compact = compact_positions
        #: Patches of the decoder layers. None if nothing is dropped or added inside the decoder.
        self.seam = None
        if selector.stages or self.adapter.deeper_layers:
            self.seam = DecoderSeam(model, selector.stages)
        self._static_lengths = StaticLengths()
        self._named = tuple(method_signature(model, "forward").parameters)
        self._forward_signature = _with_our_keywords(method_signature(model, "forward"))
        self._generate_signature = method_signature(model, "generate")
        self._prepare_signature = prepare_signature(model)
        self._forward_cache = cache_name(model, "forward")
        self._prepare_cache = cache_name(model, "prepare_inputs_for_generation")

    @property
    def methods(self) -> dict[str, Replacement]:
        """The replaced methods by name. Each is called with the model and its original method."""
        return {
            "generate": self.generate,
            "forward": self.forward,
            "prepare_inputs_for_generation": self.prepare_inputs_for_generation,
        }

    @property
    def signatures(self) -> dict[str, inspect.Signature]:
        """The signatures that the patched methods show."""
        return {
            "generate": self._generate_signature,
            "forward": self._forward_signature,
            "prepare_inputs_for_generation": self._prepare_signature,
        }

    @property
    def selector(self) -> TokenSelector:
        return self._selector

    @contextmanager
    def selecting(self, **changes: Any) -> Iterator[None]:
        """Change fields of the selector within a block."""
        before, self._selector = self._selector, replace(self._selector, **changes)
        try:
            yield
        finally:
            self._selector = before

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_generating": []}  # no generate call runs on a copy

    def check_idle(self) -> None:
        """
        Raises:
            RuntimeError: ``generate`` is running.
        """
        if self._generating:
            raise RuntimeError(
                "generate() is running, in another thread or in this call stack, and would "
                "continue unpatched: wait until it has finished, then remove the handle"
            )

    def generate(self, model: Any, original: _Method, /, *args: Any, **kwargs: Any) -> Any:
        self._generating.append(None)
        try:
            return self._generate(model, original, *args, **kwargs)
        finally:
            self._generating.pop()

    def _generate(self, model: Any, original: _Method, /, *args: Any, **kwargs: Any) -> Any:
        arguments = canonical_cache(by_name(self._generate_signature, args, kwargs))
        drafts = getattr(arguments.get("generation_config"), "is_assistant", False)
        has_images = (
            self._has_pixels(arguments)
            or arguments.get(GENERATION) is not None
            or encoded_images(arguments)
        )
        if drafts and has_images:
            # An assistant's first forward is not marked as the first, and its prompt already holds
            # drafted tokens, so the assistant cannot tell when to prune.
            raise ValueError(
                "an assistant model cannot be pruned; remove() its handle (the model that it "
                "assists may be pruned)"
            )
        refuse_encoded_images(arguments)
        refuse_chunks(model, arguments, has_images)
        categories = arguments.pop("categories", None)
        visuals = self._visuals(arguments)
        for name in self.adapter.pixel_arguments:
            arguments.pop(name, None)
        if visuals or PrunedHistory.of(arguments.get("cache")):
            self._check_length(arguments)
        if self.adapter.position_axes:
            self._settle_positions(model, arguments, visuals)
        if visuals:
            self.adapter.groups(visuals)  # raises for invalid images
            check_generate(model, arguments)
            self.adapter.check_call(model, arguments)
            check_forward(model)
            _, columns = prompt_shape(arguments)
            settled = self._settle(arguments, categories)
            generation = Generation(visuals, settled, columns)
            arguments[GENERATION] = generation
            if arguments.get("assistant_model") is not None:
                arguments["assistant_model"] = ImageDrafter(
                    arguments["assistant_model"], generation
                )
        with own_static_length(model):
            answer = original(**native_cache(arguments, self._forward_cache))
        if arguments.get(GENERATION) is not None:
            arguments[GENERATION].check_reached()
        return answer

    def _settle_positions(
        self, model: Any, arguments: dict[str, Any], visuals: dict[str, Any]
    ) -> None:
        """Check, and adapt ``arguments``, so that image-dependent position ids come out right.

        Raises:
            ValueError: images and placeholders do not match, or images come in a later turn.
        """
        past = CachedPast.of(arguments.get("cache"))
        if not past.seen and visuals:
            prompt = {**arguments, **visuals, "input_ids": prompt_ids(arguments)}
            find_images(self.adapter, model.get_input_embeddings(), prompt, 1)
        if not past.history:
            return
        if visuals and arguments.get("position_ids") is None:
            raise ValueError(
                "position_ids must be given if a later turn has images, because their positions "
                "depend on all earlier images"
            )
        kinds = arguments.get("mm_token_type_ids")
        if kinds is not None and kinds.shape[1] > past.full_seen:
            # The cache is shorter than the conversation, so the model would take the token types of
            # images already in the cache for those of new images.
            kinds = kinds.clone()
            kinds[:, : past.full_seen] = 0
            arguments["mm_token_type_ids"] = kinds

    def _has_pixels(self, arguments: Mapping[str, Any]) -> bool:
        return any(arguments.get(name) is not None for name in self.adapter.pixel_arguments)

    def _visuals(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the image and video arguments; empty if there are no pixels."""
        if not self._has_pixels(arguments):
            return {}
        names = self.adapter.visual_arguments
        return {name: arguments[name] for name in names if arguments.get(name) is not None}

    def _check_length(self, arguments: Mapping[str, Any]) -> None:
        """Refuse a requested answer length that exceeds the sliding window, before anything runs.

        The limit in the model's own generation config does not count here, because it is often
        never reached. Decode steps check the actual length.
        """
        longest = given_setting(arguments, "max_length")
        new_tokens = given_setting(arguments, "max_new_tokens")
        if new_tokens is not None:
            longest = prompt_shape(arguments)[1] + new_tokens
        if longest is not None:
            check_window(self.adapter.text_config, longest)

    def _settle(
        self, arguments: Mapping[str, Any], categories: str | Sequence[str] | None
    ) -> tuple[str, ...]:
        """Return the category of every prompt that ``generate`` was given."""
        num_prompts, _ = prompt_shape(arguments)
        input_ids = prompt_ids(arguments)
        return self._prompt_categories.resolve(
            categories, num_prompts, input_ids, arguments.get("attention_mask")
        )

    def prepare_inputs_for_generation(
        self, model: Any, original: _Method, /, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        kwargs = canonical_cache(by_name(self._prepare_signature, args, kwargs))
        input_ids: torch.Tensor = kwargs.pop("input_ids")
        generation: Generation | None = kwargs.pop(GENERATION, None)
        has_images = generation is not None or self._has_pixels(kwargs)
        first = bool(kwargs.get("is_first_iteration", False))
        embeds = kwargs.get("inputs_embeds") if first else None
        length = input_ids.shape[1] if embeds is None else embeds.shape[1]
        cache = kwargs.get("cache")
        # A decode step must not synchronise to learn the cache length. Assisted generation has to.
        drafted = kwargs.get("next_sequence_length") not in (None, 1)
        past = CachedPast.of(cache) if first or drafted else CachedPast.of_running(cache)
        if past.history and drafted:
            # transformers computed it from the cache length, which does not count dropped columns.
            kwargs["next_sequence_length"] = length - past.full_seen

        # As in transformers: pixels are passed on in the prefill, or in every step without a cache.
        forwards_images = first or not kwargs.get("use_cache", True)
        if has_images and forwards_images:
            if generation is not None:
                generation.appended = length - generation.columns
            # For a static cache the original would expand the mask to 4D, over the unpruned
            # columns. The patched forward needs the 2D mask.
            attention_mask = kwargs.get("attention_mask")
            without_mask = {**kwargs, "attention_mask": None}
            model_inputs: dict[str, Any] = original(
                input_ids, **native_cache(without_mask, self._prepare_cache)
            )
            model_inputs["attention_mask"] = attention_mask
            model_inputs[GENERATION] = generation
            return model_inputs

        if generation is not None:
            generation.check_reached()
        if has_images and not past.history:
            raise ValueError(
                "the prompt was fed without its images: in chunks (prefill_chunk_size must be None "
                "where images are pruned), or by a loop that does not set is_first_iteration=True"
            )
        if first and past.seen and not past.history:
            self._check_placeholders(input_ids, past)
        full_mask = kwargs.get("attention_mask")
        if past.history:
            self._check_stages(past)
            kwargs.pop(MASKING_TYPES, None)  # they describe dropped columns; new columns are text
            position_ids = kwargs.get("position_ids")
            total = length if position_ids is None else position_ids.shape[-1]
            check_window(self.adapter.text_config, total)
            kwargs["attention_mask"] = past.mask(full_mask, total, input_ids.shape[0])
            if position_ids is not None:
                kwargs["position_ids"] = past.history.positions(position_ids)
        model_inputs = original(input_ids, **native_cache(kwargs, self._prepare_cache))
        if past.history.deeper:
            rows, new, device = input_shape(model_inputs)
            queries = torch.empty(rows, new, 0, dtype=model.dtype, device=device)
            model_inputs[MASKS] = masks_of_layers(model, past, full_mask, total, queries, cache)
        model_inputs[_PREPARED] = True
        return model_inputs

    def _check_stages(self, past: CachedPast) -> None:
        """
        Raises:
            ValueError: the layers of the cache differ in length, but the decoder is not patched.
        """
        if past.history.deeper and self.seam is None:
            raise ValueError(
                "past_key_values holds a prompt that was pruned inside the decoder, but the model "
                "prunes before it: go on with the schedule that the prompt was pruned with, or "
                "start from an empty cache"
            )

    def forward(self, model: Any, original: _Method, /, *args: Any, **kwargs: Any) -> Any:
        if kwargs.pop(_PREPARED, False):
            if torch.compiler.is_compiling():  # compiled decoding traces nothing else of ours
                return original(*args, **kwargs)
            with reading(PrunedHistory.of(kwargs.get(self._forward_cache))):
                return original(*args, **kwargs)
        generation: Generation | None = kwargs.pop(GENERATION, None)
        given = by_name(self._forward_signature, args, kwargs)
        if generation is None and not self._has_pixels(given) and has_foreign_cache(given):
            return original(*args, **kwargs)  # unchanged: its name differs between releases
        inputs = canonical_cache(given)
        refuse_encoded_images(inputs)
        categories = inputs.pop("categories", None)
        if generation is not None:
            generation.reached = True
            rows, length, device = input_shape(inputs)
            for name, value in generation.visuals.items():
                is_tensor = isinstance(value, torch.Tensor)
                inputs[name] = value.to(device) if is_tensor else value
            repeats = generation.repeats(rows)
            names = generation.categories
            appended = generation.appended
            seen = CachedPast.of(inputs.get("cache")).full_seen
            generated = int(self.adapter.sees_prompts_whole)
            inputs = with_types_of_columns(inputs, length, appended, seen, generated)
            return self._prune_and_forward(model, original, inputs, names, repeats, appended)
        if self._has_pixels(inputs):
            return self._prune_and_forward(model, original, inputs, categories)
        past = CachedPast.of(inputs.get("cache"))
        if past.history:
            self._continue_from(model, past, inputs)
        elif past.seen:
            self._check_unpruned(past, inputs)
        with reading(past.history):
            return original(**native_cache(inputs, self._forward_cache))

    def _continue_from(self, model: Any, past: CachedPast, inputs: dict[str, Any]) -> None:
        """Convert the caller's mask and position ids in ``inputs`` to those of the pruned cache."""
        rows, length, device = input_shape(inputs)
        total = past.full_seen + length
        self._check_stages(past)
        check_window(self.adapter.text_config, total)
        check_attention_mask(inputs.get("attention_mask"), rows, total)
        if past.history.deeper:
            queries = torch.empty(rows, length, 0, dtype=model.dtype, device=device)
            full_mask, cache = inputs.get("attention_mask"), inputs["cache"]
            inputs[MASKS] = masks_of_layers(model, past, full_mask, total, queries, cache)
        inputs["attention_mask"] = past.mask(inputs.get("attention_mask"), total, rows)
        inputs.pop(MASKING_TYPES, None)
        positions = inputs.get("position_ids")
        if positions is None:
            positions = self.adapter.later_positions(model, past.full_seen, length, rows).to(device)
        inputs["position_ids"] = past.history.positions(positions)

    def _warn_of_training(self, model: Any) -> None:
        """Warn once if a model in training has modules whose gradients pruning cuts off."""
        if self._told_frozen or not (model.training and torch.is_grad_enabled()):
            return
        self._told_frozen = True
        wanted = [
            name
            for name, module in self.adapter.untrained(model).items()
            if any(parameter.requires_grad for parameter in module.parameters())
        ]
        if wanted:
            warn_caller(
                f"parameters of {' and '.join(wanted)} require gradients, but none reach them "
                f"through pruning: they are not trained (DistributedDataParallel stops at them); "
                f"freeze them with requires_grad_(False)"
            )

    def _check_unpruned(self, past: CachedPast, inputs: Mapping[str, Any]) -> None:
        """Refuse a cache without history that looks like a copy of a pruned cache."""
        mask = inputs.get("attention_mask")
        _, length, _ = input_shape(inputs)
        columns = mask.shape[1] if isinstance(mask, torch.Tensor) and mask.ndim == 2 else 0
        # With a static cache, the mask may cover the whole allocated length.
        fixed = getattr(inputs["cache"], "is_compileable", False)
        if columns > past.seen + length and not fixed:
            raise ValueError(
                f"attention_mask has {columns} columns, but past_key_values holds {past.seen} and "
                f"{length} are new. {_LOST}"
            )
        if length > 1 and inputs.get("input_ids") is not None:
            self._check_placeholders(inputs["input_ids"], past)

    def _check_placeholders(self, input_ids: torch.Tensor, past: CachedPast) -> None:
        new = input_ids[:, past.seen :] if input_ids.shape[1] > past.seen else input_ids
        if any((new == token_id).any() for token_id in self.adapter.token_ids):
            raise ValueError(
                f"input_ids has image placeholders past the {past.seen} columns that "
                f"past_key_values holds, but there are no images. {_LOST}"
            )

    def _prune_and_forward(
        self,
        model: Any,
        original: _Method,
        inputs: dict[str, Any],
        categories: str | Sequence[str] | None,
        repeats: int | None = None,
        appended: int = 0,
    ) -> Any:
        """Prune a prompt and run the original forward on it.

        ``repeats`` and ``appended`` are given by ``generate``: each prompt has ``repeats`` rows,
        and the last ``appended`` columns were generated before (without a cache) or drafted.
        """
        generates = repeats is not None
        repeats = repeats or 1
        if torch.compiler.is_exporting() or torch.jit.is_tracing():  # type: ignore[attr-defined]
            raise RuntimeError(
                "a patched model cannot be traced or exported as a whole, because the remaining "
                "columns depend on the prompt; remove() the handle, or export the ops"
            )
        rows, length, _ = input_shape(inputs)
        past = CachedPast.of(inputs.get("cache"))
        self.adapter.check_call(model, inputs)
        check_inputs(inputs, self.adapter, past)
        check_weights(model)
        self._check_stages(past)
        if self.seam is not None:
            self.seam.check(model, inputs)
        if inputs.get("labels") is not None:
            self._warn_of_training(model)
        names = self._prompt_categories.resolve(
            categories, rows // repeats, inputs.get("input_ids"), inputs.get("attention_mask")
        )
        embed = model.get_input_embeddings()
        images = find_images(self.adapter, embed, inputs, repeats)
        text_config = self.adapter.text_config
        check_window(text_config, past.full_seen + length)
        packed = find_packed(
            model,
            text_config,
            inputs,
            rows=rows,
            compact=self._compact,
            staged=bool(self._selector.stages),
        )
        image_categories = [names[row] for row in images.rows]
        if not generates:  # generate only asks for the logits of the last column
            last = max(self._selector.schedule.layers)
            counts = self._selector.counts(last, image_categories, images.counts)
            check_logits_to_keep(inputs, images, counts)

        kept = self._select(model, inputs, images, image_categories, repeats, appended)
        positions = inputs.get("position_ids")
        if positions is None:
            positions = self.adapter.positions(model, inputs, past.full_seen)
        return_dict = inputs.pop("return_dict", None)
        prompt = prune_prompt(
            inputs,
            images,
            kept,
            past,
            embed=embed,
            positions=positions,
            visual_arguments=self.adapter.visual_arguments,
            text_config=text_config,
            packed=packed,
            repeats=repeats,
            compact=self._compact,
        )
        given = {**prompt.inputs, "return_dict": True}
        staged = None
        if self.seam is not None:
            staged = StagedPrefill(
                model,
                self._selector,
                seam=self.seam,
                images=images,
                categories=image_categories,
                kept=kept,
                layout=prompt.layout,
                history=prompt.history,
                past=past,
                attention_mask=inputs.get("attention_mask"),
                token_types=given_token_types(inputs),
                repeats=repeats,
                appended=appended,
                flash=uses_flash_attention(text_config),
            )
            given[PRUNING] = staged
        if self._selector.stages:
            # Which labels remain is known only after the decoder has run; with_loss adds the loss.
            for name in LABELS:
                given.pop(name, None)
        if generates and is_made_by_generate(inputs.get("cache")):
            keep_right = prompt.layout.keeps_right
            self._static_lengths.fit(
                inputs["cache"], self._selector.dropped(images, image_categories, keep_right)
            )
        device = given["inputs_embeds"].device
        with reading(past.history), Stopwatch(device) as prefill_stopwatch:
            try:
                outputs = original(**native_cache(given, self._forward_cache))
            except BaseException:
                if inputs.get("cache") is not None:
                    PrunedHistory(spoiled=True).attach(inputs["cache"])
                raise
        history, layout = prompt.history, prompt.layout
        stages = [] if kept.is_pivot is None else [kept.record(images, layout)]
        if staged is not None:
            history, layout = staged.history, staged.layout
            stages += staged.stages
        if self._selector.stages:
            others = {name: inputs[name] for name in inputs if name not in self._named}
            outputs = with_loss(model, outputs, inputs, layout.repeat(repeats), others)
        set_image_features(outputs, prompt.features)
        cache = output_cache(outputs)
        if cache is not None:
            history.attach(cache)
        self.last = PrefillRecord(
            categories=names,
            images_per_prompt=images.per_prompt,
            stages=tuple(stages),
            columns=layout.columns,
            prompt_length=length,
            pruned_length=layout.length,
            kv_cache_bytes_per_layer=cache_bytes(
                cache, lambda number: history.at(number).pruned_length
            ),
            kv_cache_bytes_unpruned=sum(cache_bytes(cache, lambda _: history.full_length)),
            vision_stopwatch=kept.vision_stopwatch,
            prefill_stopwatch=prefill_stopwatch,
        )
        return outputs.to_tuple() if return_dict is False else outputs

    def _select(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        images: PromptImages,
        image_categories: Sequence[str],
        repeats: int,
        appended: int,
    ) -> KeptTokens:
        """Encode the images and select the tokens that enter the decoder. The arguments are those
        of ``_prune_and_forward``."""
        embed = model.get_input_embeddings()

        def text() -> torch.Tensor:
            is_text = instruction_columns(images, appended)
            states = embedded(inputs, is_text, embed, repeats)
            directions = text_direction(states, is_text.to(states.device))
            return directions[upload(images.rows, states.device)]

        return self._selector.select(model, inputs, image_categories, text)

    @torch.no_grad()
    def encode(
        self, model: Any, inputs: dict[str, Any], categories: str | Sequence[str] | None
    ) -> list[EncodedImage]:
        """Encode and prune the images of prompts without running the decoder.

        Raises:
            ValueError: tokens are dropped or added inside the decoder, or there are no images.
        """
        if self.seam is not None:
            raise ValueError(
                "images cannot be encoded without the decoder, because this model drops or adds "
                "visual tokens inside it: use a schedule before the decoder, and a family without "
                "DeepStack"
            )
        if not self._has_pixels(inputs):
            raise ValueError(f"inputs must hold {' or '.join(self.adapter.pixel_arguments)}")
        self.adapter.check_call(model, inputs)
        check_inputs(inputs, self.adapter, CachedPast.of(None))
        check_weights(model)
        rows, _, _ = input_shape(inputs)
        names = self._prompt_categories.resolve(
            categories, rows, inputs.get("input_ids"), inputs.get("attention_mask")
        )
        images = find_images(self.adapter, model.get_input_embeddings(), inputs, 1)
        image_categories = [names[row] for row in images.rows]
        kept = self._select(model, inputs, images, image_categories, repeats=1, appended=0)
        return split_by_image(self.adapter.groups(inputs), kept, images.rows, image_categories)


def _with_our_keywords(signature: inspect.Signature) -> inspect.Signature:
    """Add our keywords to forward's signature: ``generate`` only accepts keywords found there."""
    parameters = list(signature.parameters.values())
    ours = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None)
        for name in ("categories", GENERATION)
        if name not in signature.parameters  # present if FSDP has subclassed a patched class
    ]
    has_var_keyword = parameters[-1].kind is inspect.Parameter.VAR_KEYWORD
    end = len(parameters) - has_var_keyword
    return signature.replace(parameters=[*parameters[:end], *ours, *parameters[end:]])
