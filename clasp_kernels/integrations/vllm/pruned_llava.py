"""vLLM's LLaVA 1.5 with pruned images: the processor counts, and the model selects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vllm.model_executor.models.llava import (
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.parse import ImageEmbeddingItems, ImageProcessorItems
from vllm.multimodal.processing import PromptReplacement

from clasp_kernels.integrations.vllm.hooks import check_overrides
from clasp_kernels.integrations.vllm.pruned_processing import (
    CATEGORY,
    OVERRIDDEN,
    PrunedProcessor,
    category_names,
    no_text,
    selector_for,
)


class PrunedLlavaProcessor(PrunedProcessor, LlavaMultiModalProcessor):
    """Makes room for as many tokens as the category of the prompt keeps."""

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        [image_token_id] = self.selector.adapter.token_ids
        kept = self.kept(hf_processor_mm_kwargs[CATEGORY], self.most_tokens())

        def replacement(number: int) -> list[int]:
            images = mm_items.get_items("image", (ImageEmbeddingItems, ImageProcessorItems))
            encoded = isinstance(images, ImageEmbeddingItems)
            return [image_token_id] * (images.get_feature_size(number) if encoded else kept)

        return [
            PromptReplacement(modality="image", target=[image_token_id], replacement=replacement)
        ]


check_overrides(PrunedLlavaProcessor, LlavaMultiModalProcessor, OVERRIDDEN)


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
        self._selector = selector_for(self, vllm_config)

    def embed_multimodal(self, **kwargs: Any) -> Any:
        encoded = kwargs.get("image_embeds")
        if encoded is not None:
            return list(encoded)
        pixels, numbers = kwargs.get("pixel_values"), kwargs.get(CATEGORY)
        if pixels is None:
            return []
        categories = category_names(self._selector, numbers)
        kept = self._selector.select(self, {"pixel_values": pixels}, categories, no_text)
        return [
            features[:count] for features, count in zip(kept.features, kept.counts, strict=True)
        ]
