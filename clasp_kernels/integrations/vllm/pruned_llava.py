"""vLLM's LLaVA 1.5 with pruned images: its processor, which counts, and its model, which selects.

The number of kept tokens follows from the category of the prompt. The processor needs it in the
front end, before anything is encoded, and the model needs the category in the engine. So the
category is an argument of the multimodal processor, which vLLM hashes with the image: neither the
cache of processed images, nor that of encoded ones, nor that of prefixes gives a prompt the tokens
that were kept for another category.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from vllm.model_executor.models.llava import (
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import ImageEmbeddingItems, ImageProcessorItems
from vllm.multimodal.processing import PromptReplacement

from clasp_kernels.integrations.vllm.hooks import check_overrides
from clasp_kernels.integrations.vllm.settings import BUDGET, Settings
from clasp_kernels.integrations.vllm.tower import TowerAdapter
from clasp_kernels.models.categories import PromptCategories
from clasp_kernels.models.selection import TokenSelector
from clasp_kernels.policy import Router

CATEGORY = "clasp_category"
"""The argument of the multimodal processor that a request may give: the category of its prompt. It
is also the name of the field that tells the model, [images] int64."""
_SETTINGS = "clasp_settings"
_logger = logging.getLogger(f"vllm.{__name__}")  # which vLLM shows


class PrunedLlavaProcessor(LlavaMultiModalProcessor):
    """Routes the prompt, and makes room for as many tokens as its category keeps."""

    def __init__(self, info: Any, dummy_inputs: Any) -> None:
        super().__init__(info, dummy_inputs)
        settings, self._selector = selector_of(info.get_hf_config(), info.model_id)
        profile = self._selector.profile
        self._fingerprint = settings.fingerprint(profile)
        self._categories = PromptCategories(
            profile, Router(), info.get_tokenizer(), self._selector.adapter.token_ids
        )

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        arguments = dict(inputs.hf_processor_mm_kwargs)
        named = arguments.get(CATEGORY)
        if named is not None and not isinstance(named, str):
            raise ValueError(f"{CATEGORY} must be the name of a category, got {named!r}")
        [category] = self._categories.resolve(named, 1, torch.tensor([inputs.prompt]), None)
        arguments |= {CATEGORY: category, _SETTINGS: self._fingerprint}
        return super().apply(replace(inputs, hf_processor_mm_kwargs=arguments), timing_ctx)

    def get_dummy_inputs(self, *args: Any, **kwargs: Any) -> Any:
        """Return the inputs with which vLLM measures its memory: those that keep most tokens."""
        largest = max(self._selector.profile.category_names, key=self._kept)
        return replace(
            super().get_dummy_inputs(*args, **kwargs), hf_processor_mm_kwargs={CATEGORY: largest}
        )

    def _kept(self, category: str) -> int:
        tokens = self._selector.adapter.tokens_per_image()
        assert tokens is not None
        return self._selector.counts(0, [category], [tokens])[0]

    def _get_hf_mm_inputs(self, mm_items: Any, hf_kwargs: Mapping[str, Any]) -> Any:
        arguments = dict(hf_kwargs)
        category = arguments.pop(CATEGORY)
        arguments.pop(_SETTINGS, None)
        given = super()._get_hf_mm_inputs(mm_items, arguments)
        if not given.hf_data:  # encoded outside
            return given
        number = self._selector.profile.category_id(category)
        count = mm_items.get_count("image", strict=False)
        passed_on = {**given.passthrough_data, CATEGORY: torch.full((count,), number)}
        return given._replace(passthrough_data=passed_on)

    def _get_mm_fields_config(
        self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, Any]:
        fields = super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)
        return {**fields, CATEGORY: MultiModalFieldConfig.batched("image", keep_on_cpu=True)}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        [image_token_id] = self._selector.adapter.token_ids
        kept = self._kept(hf_processor_mm_kwargs[CATEGORY])

        def replacement(number: int) -> list[int]:
            images = mm_items.get_items("image", (ImageEmbeddingItems, ImageProcessorItems))
            encoded = isinstance(images, ImageEmbeddingItems)
            return [image_token_id] * (images.get_feature_size(number) if encoded else kept)

        return [
            PromptReplacement(modality="image", target=[image_token_id], replacement=replacement)
        ]


check_overrides(
    PrunedLlavaProcessor,
    LlavaMultiModalProcessor,
    ["apply", "_get_hf_mm_inputs", "_get_mm_fields_config", "_get_prompt_updates"],
)


@MULTIMODAL_REGISTRY.register_processor(
    PrunedLlavaProcessor, info=LlavaProcessingInfo, dummy_inputs=LlavaDummyInputsBuilder
)
class PrunedLlavaForConditionalGeneration(LlavaForConditionalGeneration):
    """Keeps the budget's tokens of each image. Images that were encoded outside may have any
    number of tokens, also in one batch."""

    # The tower encodes more tokens than the decoder gets, which LoRA for towers does not expect.
    supports_tower_connector_lora = False
    # Each device may have the whole tower: ``CLIPAttention`` in vLLM is then not split.
    supports_encoder_tp_data = True

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        model = vllm_config.model_config
        settings, self._selector = selector_of(self.config, model.model)
        _logger.info(
            "Images are pruned to a budget of %s visual tokens by rule %s, profile %s.",
            *(settings.budget, settings.rule or "clasp", self._selector.profile.name),
        )
        if model.get_multimodal_config().get_limit_per_prompt("image") > 0:
            adapter = self._selector.adapter
            assert isinstance(adapter, TowerAdapter)
            adapter.check_tower(self)

    def embed_multimodal(self, **kwargs: Any) -> Any:
        encoded = kwargs.get("image_embeds")
        if encoded is not None:
            return list(encoded)
        pixels, numbers = kwargs.get("pixel_values"), kwargs.get(CATEGORY)
        if pixels is None:
            return []
        names = self._selector.profile.category_names
        categories = [names[number] for number in torch.as_tensor(numbers).flatten().tolist()]
        kept = self._selector.select(self, {"pixel_values": pixels}, categories, _no_text)
        return [
            features[:count] for features, count in zip(kept.features, kept.counts, strict=True)
        ]


def selector_of(config: Any, name: str) -> tuple[Settings, TokenSelector]:
    """Return the settings of this process, and the selector of the served model.

    Raises:
        ValueError: the plugin is off in this process, or settings and model do not fit.
    """
    settings = Settings.read()
    if settings is None:
        raise ValueError(
            f"{BUDGET} is not set in this process, but was where the model was registered: every "
            f"process of the server needs the same settings"
        )
    return settings, settings.selector(config, name)


def _no_text() -> torch.Tensor:
    raise AssertionError("no rule with relevance passes Settings.selector")
