"""Tiny models with random weights, one per family, built from the classes of transformers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

IMAGE_TOKEN = 60
VIDEO_TOKEN = 61
PAD_TOKEN = 0
VOCABULARY = 64


@dataclass(frozen=True)
class Specimen:
    """Builds a family's tiny model, and inputs for any model of the family."""

    build: Callable[..., Any]
    """Builds the model; ``attn_implementation=`` sets its attention implementation."""
    images: Callable[[Any, int, torch.Generator], dict[str, torch.Tensor]]
    """Makes forward's image arguments for a number of random images."""
    salience: Callable[[Any, dict[str, torch.Tensor], int], torch.Tensor] | None
    """Computes reference scores [images, N] from the attentions of an eager model. The last
    argument is 0 for the right layer, or the number of layers before it. None if the eager model
    returns no attentions."""
    around: Callable[[Any], tuple[list[int], list[int]]] = lambda config: ([], [])
    """Returns the tokens before and after the placeholders of an image."""
    columns: Callable[[Any, torch.Tensor], dict[str, torch.Tensor]] = lambda model, input_ids: {}
    """Returns forward's other arguments with an entry per column, such as token types."""
    positions: Callable[[Any, dict[str, torch.Tensor]], torch.Tensor] | None = None
    """Computes position ids, if they are not a plain count of the unmasked columns."""
    generated: Mapping[str, int] = field(default_factory=dict)
    """The value of ``columns`` for a generated token, by argument, if it differs from a word's."""


_TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "image_size": 24,
    "patch_size": 4,
}


def _text(decoder_layers: int) -> dict[str, Any]:
    """Config arguments of a decoder with 4 query heads and 2 KV heads."""
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": decoder_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 512,
        "pad_token_id": PAD_TOKEN,
        "bos_token_id": 1,
        "eos_token_id": None,
    }


def tiny_llava(
    *,
    vision_layers: int = 5,
    decoder_layers: int = 4,
    attn_implementation: str = "sdpa",
    text_config: Callable[..., Any] | None = None,
    **overrides: Any,
) -> Any:
    """Build a LLaVA with 36 patches and a CLS token. The weights are the same in every call.

    ``text_config`` makes the language model's config; the default is Llama.
    """
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    text = {**_text(decoder_layers), "attn_implementation": attn_implementation}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**{**_TOWER, "num_hidden_layers": vision_layers}),
        text_config=(text_config or LlamaConfig)(**text),
        **{"image_token_id": IMAGE_TOKEN, **overrides},
    )
    return _with_visible_weights(LlavaForConditionalGeneration, config, attn_implementation)


def _with_visible_weights(model_class: Any, config: Any, attn_implementation: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = model_class(config).eval().float()
        model.set_attn_implementation(attn_implementation)
        # With the default initialisation, attention is flat and all tokens look alike. Larger
        # weights make a wrongly masked or placed token change the logits.
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1:
                    scale = 1.0 if "embed" in name else 1.6 / parameter[0].numel() ** 0.5
                    parameter.normal_(0.0, scale)
    model.generation_config.pad_token_id = PAD_TOKEN
    return model


def _square_images(model: Any, count: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    vision = model.config.vision_config
    sides = vision.image_size
    height, width = (sides, sides) if isinstance(sides, int) else sides
    size = (count, vision.num_channels, height, width)
    return {"pixel_values": torch.randn(size, generator=generator, dtype=torch.float32)}


def _cls_attention(model: Any, images: dict[str, torch.Tensor], layers_before: int) -> torch.Tensor:
    tower = model.get_encoder(modality="image")
    [pixels] = images.values()
    attentions = tower(pixels, output_attentions=True).attentions
    layer: torch.Tensor = attentions[model.config.vision_feature_layer - layers_before]
    return layer.mean(1)[:, 0, 1:]


_PINPOINTS = [[24, 48], [48, 24], [48, 48]]
# (height, width) of images that do not fill their tiles, to the number of tiles.
_TILED_SIZES = {(16, 44): 3, (44, 16): 3, (48, 40): 5}


def tiny_llava_next(*, attn_implementation: str = "sdpa", decoder_layers: int = 4) -> Any:
    """Build a LLaVA-NeXT: up to 2 x 2 tiles plus one of the whole image, each of 6 x 6 patches and
    a CLS token."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
    )

    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**_TOWER),
        text_config=LlamaConfig(**_text(decoder_layers)),
        image_token_index=IMAGE_TOKEN,
        image_grid_pinpoints=_PINPOINTS,
    )
    return _with_visible_weights(LlavaNextForConditionalGeneration, config, attn_implementation)


def tiny_llava_onevision(
    *,
    attn_implementation: str = "sdpa",
    decoder_layers: int = 4,
    vision_aspect_ratio: str = "anyres_max_9",
) -> Any:
    """Build a LLaVA-OneVision: tiles of 6 x 6 patches, no CLS token, 9 tokens per video frame."""
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        Qwen2Config,
        SiglipVisionConfig,
    )

    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**_TOWER),
        text_config=Qwen2Config(**_text(decoder_layers)),
        image_token_index=IMAGE_TOKEN,
        video_token_index=VIDEO_TOKEN,
        image_grid_pinpoints=_PINPOINTS,
        vision_aspect_ratio=vision_aspect_ratio,
        tie_word_embeddings=False,
    )
    return _with_visible_weights(
        LlavaOnevisionForConditionalGeneration, config, attn_implementation
    )


def tiny_video_llava(*, attn_implementation: str = "sdpa", decoder_layers: int = 4) -> Any:
    """Build a Video-LLaVA: 36 tokens per image, 37 per video frame, two vision towers."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        VideoLlavaConfig,
        VideoLlavaForConditionalGeneration,
    )

    config = VideoLlavaConfig(
        vision_config=CLIPVisionConfig(**_TOWER),
        text_config=LlamaConfig(**_text(decoder_layers)),
        image_token_index=IMAGE_TOKEN,
        video_token_index=VIDEO_TOKEN,
    )
    return _with_visible_weights(VideoLlavaForConditionalGeneration, config, attn_implementation)


def _tiled_images(model: Any, count: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Make images of different shapes, each as its tiles plus one of the whole image."""
    vision = model.config.vision_config
    side, known = vision.image_size, list(_TILED_SIZES)
    size = (count, max(_TILED_SIZES.values()), vision.num_channels, side, side)
    return {
        "pixel_values": torch.randn(size, generator=generator, dtype=torch.float32),
        "image_sizes": torch.tensor([known[number % len(known)] for number in range(count)]),
    }


def _named_images(model: Any, count: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Make square images under the argument name of the installed transformers."""
    [pixels] = _square_images(model, count, generator).values()
    takes = inspect.signature(type(model).get_image_features).parameters
    return {"pixel_values" if "pixel_values" in takes else "pixel_values_images": pixels}


def _attention_by_tile(
    model: Any, images: dict[str, torch.Tensor], layers_before: int
) -> torch.Tensor:
    """Return the attention of the CLS token, or of all patches, in the model's token order."""
    tower = model.get_encoder(modality="image")
    attentions = tower(images["pixel_values"].flatten(0, 1), output_attentions=True).attentions
    layer = attentions[model.config.vision_feature_layer - layers_before].mean(1)
    has_cls = model.config.vision_feature_select_strategy == "default"
    of_patches = layer[:, 0, 1:] if has_cls else layer.mean(1)
    sizes = [(height, width) for height, width in images["image_sizes"].tolist()]
    by_image = of_patches.unflatten(0, (len(sizes), -1))[..., None]
    strategy = {"vision_feature_select_strategy": "default"} if has_cls else {}
    packed, _ = model.base_model.pack_image_features(
        [image[: _TILED_SIZES[size]] for image, size in zip(by_image, sizes, strict=True)],
        sizes,
        **strategy,
    )
    return torch.nn.utils.rnn.pad_sequence([image[:, 0] for image in packed], batch_first=True)


def tiny_internvl(*, attn_implementation: str = "sdpa", decoder_layers: int = 4) -> Any:
    """Build an InternVL: tiles of 6 x 6 patches and a CLS token, 9 visual tokens each."""
    from transformers import (
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLVisionConfig,
        Qwen2Config,
    )

    vision = InternVLVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=5,
        num_attention_heads=4,
        image_size=[24, 24],
        patch_size=[4, 4],
        layer_scale_init_value=1.0,  # with the default, layers would hardly differ
    )
    config = InternVLConfig(
        vision_config=vision,
        text_config=Qwen2Config(**_text(decoder_layers)),
        image_token_id=IMAGE_TOKEN,
        image_seq_length=9,
        tie_word_embeddings=False,
    )
    return _with_visible_weights(InternVLForConditionalGeneration, config, attn_implementation)


def _cls_attention_by_square(
    model: Any, images: dict[str, torch.Tensor], layers_before: int
) -> torch.Tensor:
    """Return the CLS token's attention, summed over the patches of each visual token."""
    of_patches = _cls_attention(model, images, layers_before)
    side, square = round(of_patches.shape[1] ** 0.5), int(1 / model.config.downsample_ratio)
    rows = of_patches.unflatten(1, (side // square, square, side // square, square))
    return rows.sum((2, 4)).flatten(1)


def tiny_mistral3(*, attn_implementation: str = "sdpa", decoder_layers: int = 4) -> Any:
    """Build a Mistral 3: patches of 4 pixels, merged 2 x 2."""
    from transformers import (
        Mistral3Config,
        Mistral3ForConditionalGeneration,
        MistralConfig,
        PixtralVisionConfig,
    )

    config = Mistral3Config(
        vision_config=PixtralVisionConfig(**{**_TOWER, "image_size": 64, "head_dim": 8}),
        text_config=MistralConfig(**_text(decoder_layers), head_dim=8, sliding_window=None),
        image_token_index=IMAGE_TOKEN,
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )
    return _with_visible_weights(Mistral3ForConditionalGeneration, config, attn_implementation)


def _padded_images(model: Any, count: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Make images of different sizes, padded to the largest."""
    vision = model.config.vision_config
    side = vision.patch_size * model.config.spatial_merge_size  # pixels per visual token
    sizes = [((3 + number % 2) * side, 4 * side) for number in range(count)]
    size = (count, vision.num_channels, 4 * side, 4 * side)
    return {
        "pixel_values": torch.randn(size, generator=generator, dtype=torch.float32),
        "image_sizes": torch.tensor(sizes),
    }


def _attention_by_image(
    model: Any, images: dict[str, torch.Tensor], layers_before: int
) -> torch.Tensor:
    """Return the attention that patches get within their image, summed over each visual token."""
    tower = model.get_encoder(modality="image")
    attentions = tower(**images, output_attentions=True).attentions
    received = attentions[model.config.vision_feature_layer - layers_before][0].mean(0).sum(0)
    scores, first = [], 0
    for height, width in images["image_sizes"].tolist():
        patch, side = model.config.vision_config.patch_size, model.config.spatial_merge_size
        rows, columns = height // patch, width // patch
        of_image = received[first : first + rows * columns] / (rows * columns)
        squares = of_image.view(rows // side, side, columns // side, side)
        scores.append(squares.sum((1, 3)).flatten())
        first += rows * columns
    return torch.nn.utils.rnn.pad_sequence(scores, batch_first=True)


def tiny_idefics3(*, attn_implementation: str = "sdpa", decoder_layers: int = 4) -> Any:
    """Build an Idefics 3: images of 6 x 6 patches, 9 visual tokens each."""
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration

    config = Idefics3Config(**_idefics3(decoder_layers))
    return _with_visible_weights(Idefics3ForConditionalGeneration, config, attn_implementation)


def tiny_smolvlm(*, attn_implementation: str = "sdpa", decoder_layers: int = 4) -> Any:
    """Build a SmolVLM: images of 6 x 6 patches, 9 visual tokens each."""
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    config = SmolVLMConfig(**_idefics3(decoder_layers))
    return _with_visible_weights(SmolVLMForConditionalGeneration, config, attn_implementation)


def _idefics3(decoder_layers: int) -> dict[str, Any]:
    # patch_size must divide 9: SmolVLM in transformers 5.20 splits an image's 9 tokens by it.
    return {
        "vision_config": {**_TOWER, "image_size": 18, "patch_size": 3},
        "text_config": {"model_type": "llama", **_text(decoder_layers)},
        "image_token_id": IMAGE_TOKEN,
        "scale_factor": 2,
        "pad_token_id": PAD_TOKEN,
        "tie_word_embeddings": False,
    }


def _images_of_prompts(
    model: Any, count: int, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Make square images, one per prompt."""
    [pixels] = _square_images(model, count, generator).values()
    return {"pixel_values": pixels[:, None]}


def _attention_by_shuffle(
    model: Any, images: dict[str, torch.Tensor], layers_before: int
) -> torch.Tensor:
    """Return the attention that patches get from all others, summed over each visual token."""
    tower = model.get_encoder(modality="image")
    attentions = tower(images["pixel_values"].flatten(0, 1), output_attentions=True).attentions
    of_patches: torch.Tensor = attentions[-1 - layers_before].mean((1, 2))
    side, square = round(of_patches.shape[1] ** 0.5), model.config.scale_factor
    rows = of_patches.unflatten(1, (side // square, square, side // square, square))
    return rows.sum((2, 4)).flatten(1)


def tiny_gemma3(
    *, attn_implementation: str = "sdpa", decoder_layers: int = 4, window: int = 512
) -> Any:
    """Build a Gemma 3: 36 patches pooled to 9 visual tokens, a sliding window in every other
    decoder layer."""
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3TextConfig,
        SiglipVisionConfig,
    )

    kinds = ("sliding_attention", "full_attention")
    text = Gemma3TextConfig(
        **_text(decoder_layers),
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=window,
        layer_types=[kinds[number % 2] for number in range(decoder_layers)],
    )
    config = Gemma3Config(
        vision_config=SiglipVisionConfig(**_TOWER),
        text_config=text,
        mm_tokens_per_image=9,
        image_token_index=IMAGE_TOKEN,
        boi_token_index=62,
        eoi_token_index=63,
        tie_word_embeddings=False,
    )
    return _with_visible_weights(Gemma3ForConditionalGeneration, config, attn_implementation)


def _attention_by_pool(
    model: Any, images: dict[str, torch.Tensor], layers_before: int
) -> torch.Tensor:
    """Return the attention that patches get from all others, summed over each pooled token."""
    tower = model.get_encoder(modality="image")
    attentions = tower(images["pixel_values"], output_attentions=True).attentions
    of_patches: torch.Tensor = attentions[-1 - layers_before].mean((1, 2))
    side = round(of_patches.shape[1] ** 0.5)
    tokens = round(model.config.mm_tokens_per_image**0.5)
    rows = of_patches.unflatten(1, (tokens, side // tokens, tokens, side // tokens))
    return rows.sum((2, 4)).flatten(1)


def tiny_paligemma(
    *,
    attn_implementation: str = "sdpa",
    decoder_layers: int = 4,
    text_config: Callable[..., Any] | None = None,
    **overrides: Any,
) -> Any:
    """36 patches, a visual token each. ``text_config`` makes the language model's config, a
    Gemma's by default."""
    from transformers import (
        GemmaConfig,
        PaliGemmaConfig,
        PaliGemmaForConditionalGeneration,
        SiglipVisionConfig,
    )

    text = {**_text(decoder_layers), "head_dim": 8}
    config = PaliGemmaConfig(
        vision_config=SiglipVisionConfig(**_TOWER, vision_use_head=False),
        text_config=(text_config or GemmaConfig)(**text),
        projection_dim=32,
        hidden_size=32,
        tie_word_embeddings=False,
        **{"image_token_index": IMAGE_TOKEN, **overrides},
    )
    return _with_visible_weights(PaliGemmaForConditionalGeneration, config, attn_implementation)


def _attention_by_patch(
    model: Any, images: dict[str, torch.Tensor], layers_before: int
) -> torch.Tensor:
    """The attention that patches get from all others."""
    tower = model.get_encoder(modality="image")
    attentions = tower(images["pixel_values"], output_attentions=True).attentions
    of_patches: torch.Tensor = attentions[-1 - layers_before].mean((1, 2))
    return of_patches


def _positions_from_one(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return batch["attention_mask"].cumsum(1).clamp_min(1)


_QWEN_VISION: dict[str, Any] = {
    "num_heads": 4,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
_QWEN_TOKENS: dict[str, Any] = {
    "image_token_id": IMAGE_TOKEN,
    "video_token_id": VIDEO_TOKEN,
    "vision_start_token_id": 62,
    "vision_end_token_id": 63,
}


def _qwen_text(decoder_layers: int) -> dict[str, Any]:
    return {
        **_text(decoder_layers),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [1, 1, 2],
        },
    }


def tiny_qwen2_5_vl(
    *, attn_implementation: str = "sdpa", decoder_layers: int = 4, head_dim: int = 8
) -> Any:
    """Build a Qwen2.5-VL: patches of 4 pixels, three vision blocks, of which the second attends
    within windows of 16 pixels. ``head_dim`` is the decoder's, a multiple of 8."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 64,
        "out_hidden_size": 4 * head_dim,
        "window_size": 16,
        "fullatt_block_indexes": [0, 2],
        **_QWEN_VISION,
    }
    text = {**_qwen_text(decoder_layers), "hidden_size": 4 * head_dim}
    section = [head_dim // 8, head_dim // 8, head_dim // 4]
    text["rope_parameters"] = {**text["rope_parameters"], "mrope_section": section}
    config = Qwen2_5_VLConfig(vision_config=vision, text_config=text, **_QWEN_TOKENS)
    return _with_visible_weights(Qwen2_5_VLForConditionalGeneration, config, attn_implementation)


def tiny_qwen2_vl(*, attn_implementation: str = "sdpa", decoder_layers: int = 4) -> Any:
    """Build a Qwen2-VL: patches of 4 pixels, three vision blocks."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    vision = {
        "depth": 3,
        "embed_dim": 32,
        "hidden_size": 32,
        "mlp_ratio": 2,
        **_QWEN_VISION,
    }
    config = Qwen2VLConfig(
        vision_config=vision, text_config=_qwen_text(decoder_layers), **_QWEN_TOKENS
    )
    return _with_visible_weights(Qwen2VLForConditionalGeneration, config, attn_implementation)


_QWEN3_VISION: dict[str, Any] = {
    "depth": 4,
    "hidden_size": 32,
    "intermediate_size": 64,
    "out_hidden_size": 32,
    "num_position_embeddings": 64,
    **_QWEN_VISION,
}
_QWEN3_DEEPSTACK = {**_QWEN3_VISION, "deepstack_visual_indexes": [0, 1, 2]}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def tiny_qwen3_vl(*, attn_implementation: str = "sdpa", decoder_layers: int = 4) -> Any:
    """Build a Qwen3-VL: patches of 4 pixels, DeepStack features from the first three of four
    vision blocks."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    text = {**_qwen_text(decoder_layers), "head_dim": 8}
    config = Qwen3VLConfig(vision_config=_QWEN3_DEEPSTACK, text_config=text, **_QWEN_TOKENS)
    return _with_visible_weights(Qwen3VLForConditionalGeneration, config, attn_implementation)


def tiny_qwen3_vl_moe(*, attn_implementation: str = "sdpa", decoder_layers: int = 4) -> Any:
    """Build a Qwen3-VL with four experts, two per token."""
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    text = {**_qwen_text(decoder_layers), **_EXPERTS, "head_dim": 8}
    config = Qwen3VLMoeConfig(vision_config=_QWEN3_DEEPSTACK, text_config=text, **_QWEN_TOKENS)
    return _with_visible_weights(Qwen3VLMoeForConditionalGeneration, config, attn_implementation)


def tiny_qwen3_5(*, attn_implementation: str = "sdpa", decoder_layers: int = 4) -> Any:
    """Build a Qwen3.5: patches of 4 pixels, every other decoder layer recurrent."""
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    config = Qwen3_5Config(
        vision_config=_QWEN3_VISION, text_config=_hybrid_text(decoder_layers), **_QWEN_TOKENS
    )
    return _with_visible_weights(Qwen3_5ForConditionalGeneration, config, attn_implementation)


def tiny_qwen3_5_moe(*, attn_implementation: str = "sdpa", decoder_layers: int = 4) -> Any:
    """Build a Qwen3.5 with four experts, two per token, and a shared expert."""
    from transformers import Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration

    text = {
        **_hybrid_text(decoder_layers),
        **_EXPERTS,
        "shared_expert_intermediate_size": 32,
    }
    config = Qwen3_5MoeConfig(vision_config=_QWEN3_VISION, text_config=text, **_QWEN_TOKENS)
    return _with_visible_weights(Qwen3_5MoeForConditionalGeneration, config, attn_implementation)


def _hybrid_text(decoder_layers: int) -> dict[str, Any]:
    kinds = ("linear_attention", "full_attention")
    return {
        **_qwen_text(decoder_layers),
        "head_dim": 8,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "layer_types": [kinds[number % 2] for number in range(decoder_layers)],
    }


def _patched_images(model: Any, count: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Make images of different sizes as packed rows of patches."""
    vision = model.config.vision_config
    sizes = [(1, 8 + 4 * (number % 2), 8) for number in range(count)]
    patches = sum(t * h * w for t, h, w in sizes)
    values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return {
        "pixel_values": torch.randn(patches, values, generator=generator, dtype=torch.float32),
        "image_grid_thw": torch.tensor(sizes),
    }


def _kinds_of_tokens(model: Any, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    is_image, is_video = (
        (input_ids == token_id).int()
        for token_id in (model.config.image_token_id, model.config.video_token_id)
    )
    return {"mm_token_type_ids": is_image + 2 * is_video}


def _spatial_positions(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the model's own M-RoPE position ids, [3, rows, columns]."""
    names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts", "mm_token_type_ids")
    given = {name: batch[name] for name in (*names, "attention_mask") if name in batch}
    inner = model.model
    deltas = inner.rope_deltas
    positions: torch.Tensor
    positions, _ = inner.get_rope_index(batch["input_ids"], **given)
    inner.rope_deltas = deltas
    return positions


def _qwen(build: Callable[..., Any]) -> Specimen:
    return Specimen(
        build,
        _patched_images,
        None,
        lambda config: ([config.vision_start_token_id], [config.vision_end_token_id]),
        _kinds_of_tokens,
        _spatial_positions,
    )


#: Specimens by ``config.model_type``, one for each type that ``apply_clasp`` supports.
SPECIMENS: dict[str, Specimen] = {
    "idefics3": Specimen(tiny_idefics3, _images_of_prompts, _attention_by_shuffle),
    "smolvlm": Specimen(tiny_smolvlm, _images_of_prompts, _attention_by_shuffle),
    "internvl": Specimen(tiny_internvl, _square_images, _cls_attention_by_square),
    "gemma3": Specimen(
        tiny_gemma3,
        _square_images,
        _attention_by_pool,
        lambda config: ([config.boi_token_index], [config.eoi_token_index]),
        lambda model, ids: {"token_type_ids": (ids == model.config.image_token_id).int()},
    ),
    "paligemma": Specimen(
        tiny_paligemma,
        _square_images,
        _attention_by_patch,
        columns=lambda model, ids: {"token_type_ids": torch.zeros_like(ids)},
        generated={"token_type_ids": 1},
        positions=_positions_from_one,
    ),
    "llava": Specimen(tiny_llava, _square_images, _cls_attention),
    "llava_next": Specimen(tiny_llava_next, _tiled_images, _attention_by_tile),
    "llava_onevision": Specimen(tiny_llava_onevision, _tiled_images, _attention_by_tile),
    "video_llava": Specimen(tiny_video_llava, _named_images, _cls_attention),
    "mistral3": Specimen(tiny_mistral3, _padded_images, _attention_by_image),
    "qwen2_5_vl": _qwen(tiny_qwen2_5_vl),
    "qwen2_vl": _qwen(tiny_qwen2_vl),
    "qwen3_vl": _qwen(tiny_qwen3_vl),
    "qwen3_vl_moe": _qwen(tiny_qwen3_vl_moe),
    "qwen3_5": _qwen(tiny_qwen3_5),
    "qwen3_5_moe": _qwen(tiny_qwen3_5_moe),
}
