"""vLLM's Qwen2.5-VL with pruned images: the processor counts, and the model selects.

Kept tokens keep their places. vLLM numbers a prompt before its images are encoded, when nobody
knows which tokens are kept. Upstream's seam for pruned videos asks the model for positions again
after that (``SupportsMultiModalPruning``): ``places.py`` says what travels there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.parse import ImageProcessorItems
from vllm.multimodal.processing import PromptReplacement
from vllm.platforms import current_platform

from clasp_kernels.integrations.vllm.hooks import check_overrides
from clasp_kernels.integrations.vllm.places import (
    ImageSpan,
    delta_of,
    placed,
    prompt_positions,
    with_places,
    without_places,
)
from clasp_kernels.integrations.vllm.pruned_processing import (
    CATEGORY,
    OVERRIDDEN,
    PrunedProcessor,
    category_names,
    no_text,
    selector_for,
)
from clasp_kernels.integrations.vllm.settings import BUDGET

_NO_VIDEOS = (
    "the plugin of clasp_kernels prunes images of Qwen2.5-VL, but no videos: send images only, or "
    f"unset {BUDGET} to serve the model as it is"
)
_CPU_WORKER = f"{__package__}.cpu_worker.PruningCPUWorker"


class ImagesOnly(Qwen2_5_VLProcessingInfo):
    """Takes no videos."""

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": None}

    def get_mm_max_tokens_per_item(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> Mapping[str, int]:
        """Return what the tower encodes, not what is kept: vLLM measures memory by it."""
        return {"image": self.get_max_image_tokens()}

    def validate_num_items(self, modality: str, num_items: int) -> None:
        if modality == "video" and num_items > 0:
            raise ValueError(_NO_VIDEOS)
        super().validate_num_items(modality, num_items)

    def parse_mm_data(self, mm_data: Mapping[str, Any], *, validate: bool = True) -> Any:
        videos = mm_data.get("video")
        if videos is not None and len(videos) > 0:
            raise ValueError(_NO_VIDEOS)
        return super().parse_mm_data(mm_data, validate=validate)


class PrunedQwen2_5_VLProcessor(PrunedProcessor, Qwen2_5_VLMultiModalProcessor):
    """Makes room for as many tokens as the category of the prompt keeps of each image."""

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        images = inputs.mm_data_items.get("image")
        if images is not None and not isinstance(images, ImageProcessorItems):
            raise ValueError(
                "images of Qwen2.5-VL must be pictures while the plugin of clasp_kernels is on, "
                "since it does not know which tokens embeddings are of"
            )
        processed = super().apply(inputs, timing_ctx)
        if processed["prompt_token_ids"][-1:] == [self._image_token]:
            raise ValueError(
                "a prompt must not end with an image while the plugin of clasp_kernels is on: end "
                "it with <|vision_end|>, as the chat template does"
            )
        return processed

    def get_dummy_inputs(self, *args: Any, **kwargs: Any) -> Any:
        inputs = super().get_dummy_inputs(*args, **kwargs)
        inputs.prompt = [*inputs.prompt, self.info.get_hf_config().vision_end_token_id]
        return inputs

    @property
    def _image_token(self) -> int:
        token: int = self.selector.adapter.token_ids[0]
        return token

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        category = hf_processor_mm_kwargs[CATEGORY]
        merged = self.info.get_hf_config().vision_config.spatial_merge_size ** 2

        def replacement(number: int) -> list[int]:
            patches = int(out_mm_kwargs["image"][number]["image_grid_thw"].data.prod())
            return [self._image_token] * self.kept(category, patches // merged)

        return [
            PromptReplacement(modality="image", target=[self._image_token], replacement=replacement)
        ]


check_overrides(PrunedQwen2_5_VLProcessor, Qwen2_5_VLMultiModalProcessor, OVERRIDDEN)
check_overrides(
    ImagesOnly,
    Qwen2_5_VLProcessingInfo,
    [
        "get_supported_mm_limits",
        "get_mm_max_tokens_per_item",
        "validate_num_items",
        "parse_mm_data",
    ],
)


@MULTIMODAL_REGISTRY.register_processor(
    PrunedQwen2_5_VLProcessor, info=ImagesOnly, dummy_inputs=Qwen2_5_VLDummyInputsBuilder
)
class PrunedQwen2_5_VLForConditionalGeneration(Qwen2_5_VLForConditionalGeneration):
    """Keeps the budget's tokens of each image, where they were."""

    # The tower encodes more tokens than the decoder gets, which LoRA for towers does not expect.
    supports_tower_connector_lora = False

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        check_server(vllm_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self._selector = selector_for(self, vllm_config)

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: list[Any]
    ) -> tuple[torch.Tensor, int]:
        return prompt_positions(
            len(input_tokens),
            [
                ImageSpan(
                    start=feature.mm_position.offset,
                    length=feature.mm_position.length,
                    side=max(self._size(feature.data["image_grid_thw"].data)),
                )
                for feature in sorted(mm_features, key=lambda each: each.mm_position.offset)
            ],
        )

    def recompute_mrope_positions(
        self,
        input_ids: list[int] | torch.Tensor,
        multimodal_embeddings: Sequence[torch.Tensor],
        mrope_positions: torch.Tensor,
        num_computed_tokens: int,
    ) -> tuple[Sequence[torch.Tensor], torch.Tensor, int]:
        delta = delta_of(mrope_positions)
        if not multimodal_embeddings:  # in most steps
            return [], mrope_positions, delta
        features, places = zip(*map(without_places, multimodal_embeddings), strict=True)
        device = mrope_positions.device
        placeholders = torch.as_tensor(input_ids, device=device) == self.config.image_token_id
        positions = placed(
            mrope_positions,
            placeholders,
            num_computed_tokens,
            torch.cat(places, dim=1).to(device),
        )
        return features, positions, delta

    def embed_multimodal(self, **kwargs: Any) -> Any:
        if kwargs.get("pixel_values") is None:
            return []
        pixels, grids = kwargs["pixel_values"], kwargs["image_grid_thw"]
        categories = category_names(self._selector, kwargs[CATEGORY])
        images = pixels.split(grids.prod(1).tolist())
        # One at a time: the scheduler counts kept tokens, so many images may come at once.
        return [
            self._kept(image, grid, category)
            for image, grid, category in zip(images, grids, categories, strict=True)
        ]

    def _kept(self, pixels: torch.Tensor, grid: torch.Tensor, category: str) -> torch.Tensor:
        given = {"pixel_values": pixels, "image_grid_thw": grid[None]}
        kept = self._selector.select(self, given, [category], no_text)
        [count] = kept.counts
        _, width = self._size(grid)
        return with_places(kept.features[0, :count], kept.indices[0, :count], width)

    def _size(self, grid: torch.Tensor) -> tuple[int, int]:
        """Return the rows and columns of an image's visual tokens."""
        _, height, width = grid.tolist()
        side = self.config.vision_config.spatial_merge_size
        return height // side, width // side


check_overrides(
    PrunedQwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLForConditionalGeneration,
    ["get_mrope_input_positions", "recompute_mrope_positions", "embed_multimodal"],
)


def check_server(vllm_config: Any) -> None:
    """
    Raises:
        ValueError: the server was started with options under which positions would be wrong.
    """
    options = vllm_config.model_config.get_multimodal_config()
    if not options.is_multimodal_pruning_enabled():
        raise ValueError(
            "start the server with --video-pruning-rate 0.5, or any rate above 0: only then does "
            "vLLM ask Qwen2.5-VL for the positions of kept tokens. No video is pruned by it, as "
            "the plugin of clasp_kernels refuses videos"
        )
    parallel = vllm_config.parallel_config
    if parallel.pipeline_parallel_size > 1:
        raise ValueError(
            f"the plugin of clasp_kernels needs --pipeline-parallel-size 1 for Qwen2.5-VL, got "
            f"{parallel.pipeline_parallel_size}: vLLM tells the positions of kept tokens to the "
            f"first part only"
        )
    if vllm_config.speculative_config is not None:
        raise ValueError(
            "the plugin of clasp_kernels does not work with speculative decoding for Qwen2.5-VL"
        )
    if vllm_config.model_config.enable_prompt_embeds:
        raise ValueError(
            "the plugin of clasp_kernels does not work with --enable-prompt-embeds for Qwen2.5-VL: "
            "it finds images by their token ids"
        )
    if vllm_config.compilation_config.compile_mm_encoder:
        raise ValueError(
            "the plugin of clasp_kernels needs compile_mm_encoder=False for Qwen2.5-VL: it reads "
            "the states of the vision tower while the tower runs"
        )
    if current_platform.is_cpu() and parallel.worker_cls != _CPU_WORKER:
        raise ValueError(
            f"start the server with --worker-cls {_CPU_WORKER} on a CPU, where vLLM does not ask "
            f"for the positions of kept tokens otherwise"
        )
