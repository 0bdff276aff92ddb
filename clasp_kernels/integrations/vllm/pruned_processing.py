"""The multimodal processor of models with pruned images: it routes the prompt and counts.

The number of kept tokens follows from the category of the prompt. The processor needs it in the
front end, before anything is encoded, and the model needs the category in the engine. So the
category is an argument of the multimodal processor, which vLLM hashes with the image: neither the
cache of processed images, nor that of encoded ones, nor that of prefixes gives a prompt the tokens
that were kept for another category.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import BaseMultiModalProcessor

from clasp_kernels.integrations.vllm.packed_tower import PackedTowerAdapter
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
#: The methods of vLLM's processor that :class:`PrunedProcessor` or its subclasses override.
OVERRIDDEN = ["apply", "_get_hf_mm_inputs", "_get_mm_fields_config", "_get_prompt_updates"]


class PrunedProcessor(BaseMultiModalProcessor):
    """Goes before vLLM's processor of a model in the bases of a class. Routes the prompt, and tells
    the model its category."""

    def __init__(self, info: Any, dummy_inputs: Any) -> None:
        super().__init__(info, dummy_inputs)
        settings, self.selector = selector_of(info.get_hf_config(), info.model_id)
        profile = self.selector.profile
        self._fingerprint = settings.fingerprint(profile)
        self._categories = PromptCategories(
            profile, Router(), info.get_tokenizer(), self.selector.adapter.token_ids
        )

    def most_tokens(self) -> int:
        """Return the visual tokens of the image that has most."""
        tokens = self.selector.adapter.tokens_per_image()
        return self.info.get_max_image_tokens() if tokens is None else tokens

    def kept(self, category: str, tokens: int) -> int:
        """Return how many visual tokens are kept of an image with ``tokens``."""
        return self.selector.counts(0, [category], [tokens])[0]

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
        most = self.most_tokens()
        largest = max(
            self.selector.profile.category_names, key=lambda category: self.kept(category, most)
        )
        return replace(
            super().get_dummy_inputs(*args, **kwargs), hf_processor_mm_kwargs={CATEGORY: largest}
        )

    def _get_hf_mm_inputs(self, mm_items: Any, hf_kwargs: Mapping[str, Any]) -> Any:
        arguments = dict(hf_kwargs)
        category = arguments.pop(CATEGORY)
        arguments.pop(_SETTINGS, None)
        given = super()._get_hf_mm_inputs(mm_items, arguments)
        if not given.hf_data:  # encoded outside
            return given
        number = self.selector.profile.category_id(category)
        count = mm_items.get_count("image", strict=False)
        passed_on = {**given.passthrough_data, CATEGORY: torch.full((count,), number)}
        return given._replace(passthrough_data=passed_on)

    def _get_mm_fields_config(
        self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, Any]:
        fields = super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)
        return {**fields, CATEGORY: MultiModalFieldConfig.batched("image", keep_on_cpu=True)}


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


def selector_for(served: Any, vllm_config: Any) -> TokenSelector:
    """Return the selector of a model of vLLM, and say in the server's log what is kept.

    Raises:
        ValueError: as ``selector_of``, or the vision tower is not what the selection reads.
    """
    model = vllm_config.model_config
    settings, selector = selector_of(served.config, model.model)
    _logger.info(
        "Images are pruned to a budget of %s visual tokens by rule %s, profile %s.",
        *(settings.budget, settings.rule or "clasp", selector.profile.name),
    )
    if model.get_multimodal_config().get_limit_per_prompt("image") > 0:
        adapter = selector.adapter
        assert isinstance(adapter, (TowerAdapter, PackedTowerAdapter))
        adapter.check_tower(served)
    return selector


def category_names(selector: TokenSelector, numbers: Any) -> list[str]:
    """Return the categories that the processor has told the model, one for each image."""
    names = selector.profile.category_names
    return [names[number] for number in torch.as_tensor(numbers).flatten().tolist()]


def no_text() -> torch.Tensor:
    raise AssertionError("no rule with relevance passes Settings.selector")
