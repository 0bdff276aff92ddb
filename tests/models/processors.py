"""The families' own processors for the tiny models, built in code without files or network.

``processor_for`` builds a processor for a model. ``save_checkpoint`` writes both into a folder that
``clasp --model FOLDER`` and transformers' ``from_pretrained`` can load. A new family needs a line
in ``PROCESSORS``, and a build function if no existing one fits.

These processors do not take videos: transformers' video processors need torchvision, which the
tests do not use.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from clasp_kernels.cli.processor import is_stand_in, with_pil_images, without_videos
from clasp_kernels.models.specimens import PAD_TOKEN, SPECIMENS, VOCABULARY

WORDS = "what is in the picture how many circles are there where on it and of this sign say why"
_START, _END = 62, 63
# Families whose processor is like Idefics 3's, and how its classes begin.
_IDEFICS3 = {"idefics3": "Idefics3", "smolvlm": "SmolVLM"}


@dataclass(frozen=True)
class ProcessorKind:
    """Builds a family's processor."""

    build: Callable[[Any, Any], Any]
    """Builds the processor from a model's config and a tokenizer."""
    tokens: Mapping[str, tuple[str, int | str]]
    """Named tokens of the tokenizer: text, and id or the name of the id in the config."""
    prompt: str
    """The text that the chat template writes for an image."""
    videos: str | None = None
    """The class of the video processor, or None if there is none."""


def processor_for(family: str, model: Any) -> Any:
    """Return a processor whose images and placeholders fit a model."""
    kind = PROCESSORS[family]
    processor = kind.build(model.config, _tokenizer(kind, model.config))
    processor.chat_template = _template(kind.prompt)
    return processor


def save_checkpoint(family: str, folder: Path, model: Any = None) -> None:
    """Write a model, by default the family's tiny one, and its processor."""
    model = SPECIMENS[family].build() if model is None else model
    model.save_pretrained(folder)
    processor = processor_for(family, model)
    processor.tokenizer.save_pretrained(folder)
    described = {
        name: getattr(processor, name)
        for name in (*_SETTINGS, "image_processor")
        if hasattr(processor, name)
    }
    described["image_processor"] = described["image_processor"].to_dict()
    described["processor_class"] = type(processor).__name__
    text = json.dumps(described, default=str, indent=2)
    (folder / "processor_config.json").write_text(text, encoding="utf-8")
    if PROCESSORS[family].videos is not None:  # only read if torchvision is installed
        videos = json.dumps({"video_processor_type": PROCESSORS[family].videos})
        (folder / "video_preprocessor_config.json").write_text(videos, encoding="utf-8")
    (folder / "chat_template.jinja").write_text(processor.chat_template, encoding="utf-8")


def skip_what_is_not_loaded(family: str) -> None:
    """Skip a test of a folder from which this release loads no processor without torchvision."""
    kind: Any = getattr(transformers, f"{_IDEFICS3.get(family)}ImageProcessorPil", None)
    if is_stand_in(kind):
        pytest.skip(f"transformers {transformers.__version__} loads {family}'s with torchvision")


_SETTINGS = (
    "patch_size",
    "spatial_merge_size",
    "num_additional_image_tokens",
    "vision_feature_select_strategy",
    "num_image_tokens",
    "vision_aspect_ratio",
    "image_seq_length",
    "image_seq_len",
)


def _template(placeholder: str) -> str:
    return (
        "{% for message in messages %}user "
        "{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}" + placeholder + " "
        "{% else %}{{ part['text'] }} {% endif %}"
        "{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}answer{% endif %}"
    )


def _tokenizer(kind: ProcessorKind, config: Any) -> Any:
    vocabulary = {"<pad>": PAD_TOKEN, "<s>": 1, "<unk>": 2}
    vocabulary |= {
        word: number for number, word in enumerate([*WORDS.split(), "user", "answer"], start=3)
    }
    named = {}
    for name, (token, where) in kind.tokens.items():
        named[name] = token
        vocabulary[token] = getattr(config, where) if isinstance(where, str) else where
    taken = set(vocabulary.values())
    vocabulary |= {f"word{n}": n for n in range(VOCABULARY) if n not in taken}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        unk_token="<unk>",
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        extra_special_tokens=named,
    )


def _square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def _llava(config: Any, tokenizer: Any) -> Any:
    vision = config.vision_config
    images = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": vision.image_size}, crop_size=_square(vision.image_size)
    )
    return transformers.LlavaProcessor(images, tokenizer, **_patches(config))


def _patches(config: Any) -> dict[str, Any]:
    return {
        "patch_size": config.vision_config.patch_size,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "num_additional_image_tokens": 1,
    }


def _llava_next(config: Any, tokenizer: Any) -> Any:
    vision = config.vision_config
    images = transformers.LlavaNextImageProcessorPil(
        size={"shortest_edge": vision.image_size},
        crop_size=_square(vision.image_size),
        image_grid_pinpoints=config.image_grid_pinpoints,
    )
    return transformers.LlavaNextProcessor(images, tokenizer, **_patches(config))


def _llava_onevision(config: Any, tokenizer: Any) -> Any:
    vision = config.vision_config
    images = transformers.LlavaOnevisionImageProcessorPil(
        size=_square(vision.image_size), image_grid_pinpoints=config.image_grid_pinpoints
    )
    return without_videos(transformers.LlavaOnevisionProcessor)(
        images,
        tokenizer,
        num_image_tokens=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        vision_aspect_ratio=config.vision_aspect_ratio,
    )


def _video_llava(config: Any, tokenizer: Any) -> Any:
    side = config.vision_config.image_size
    images = transformers.VideoLlavaImageProcessor(
        size={"shortest_edge": side}, crop_size=_square(side)
    )
    return without_videos(transformers.VideoLlavaProcessor)(
        images, None, tokenizer, **_patches(config)
    )


def _internvl(config: Any, tokenizer: Any) -> Any:
    height, width = config.vision_config.image_size
    images = transformers.GotOcr2ImageProcessorPil(
        size={"height": height, "width": width}, crop_to_patches=True, min_patches=1, max_patches=6
    )
    return without_videos(transformers.InternVLProcessor)(
        images, tokenizer, image_seq_length=config.image_seq_length
    )


def _gemma3(config: Any, tokenizer: Any) -> Any:
    images = transformers.Gemma3ImageProcessorPil(size=_square(config.vision_config.image_size))
    return transformers.Gemma3Processor(
        images, tokenizer, image_seq_length=config.mm_tokens_per_image
    )


def _paligemma(config: Any, tokenizer: Any) -> Any:
    vision = config.vision_config
    images = transformers.SiglipImageProcessorPil(
        size=_square(vision.image_size),
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
    )
    return transformers.PaliGemmaProcessor(images, tokenizer)


def _mistral3(config: Any, tokenizer: Any) -> Any:
    vision, merged = config.vision_config, config.spatial_merge_size
    images = transformers.PixtralImageProcessorPil(
        size={"longest_edge": vision.image_size}, patch_size=_square(vision.patch_size)
    )
    kind: Any = transformers.PixtralProcessor
    if is_stand_in(kind):
        kind = with_pil_images(kind)
    return kind(images, tokenizer, patch_size=vision.patch_size, spatial_merge_size=merged)


def _idefics3(name: str) -> Callable[[Any, Any], Any]:
    def build(config: Any, tokenizer: Any) -> Any:
        vision = config.vision_config
        # At its top, the oldest release says that this needs torchvision, which it does not.
        file = f"transformers.models.{name.lower()}.image_processing_pil_{name.lower()}"
        images = getattr(import_module(file), f"{name}ImageProcessorPil")(
            size={"longest_edge": 2 * vision.image_size},
            max_image_size={"longest_edge": vision.image_size},
        )
        side = vision.image_size // vision.patch_size // config.scale_factor
        kind = getattr(transformers, f"{name}Processor")
        parts = [images, tokenizer]
        if "video_processor" in kind.get_attributes():
            kind = without_videos(kind)
            parts.append(None)
        return kind(*parts, image_seq_len=side**2)

    return build


def _qwen(name: str, videos: str) -> ProcessorKind:
    def build(config: Any, tokenizer: Any) -> Any:
        vision = config.vision_config
        images = transformers.Qwen2VLImageProcessorPil(
            patch_size=vision.patch_size,
            merge_size=vision.spatial_merge_size,
            temporal_patch_size=vision.temporal_patch_size,
            size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64},
        )
        return without_videos(getattr(transformers, name))(images, tokenizer)

    prompt = "<|vision_start|><|image_pad|><|vision_end|>"
    return ProcessorKind(build, _QWEN_TOKENS, prompt, videos)


_LLAVA_TOKENS = {"image_token": ("<image>", "image_token_id")}
_VIDEO_TOKENS = {**_LLAVA_TOKENS, "video_token": ("<video>", "video_token_id")}
_IDEFICS3_TOKENS = {
    **_LLAVA_TOKENS,
    "video_token": ("<video>", 61),
    "fake_image_token": ("<fake_token_around_image>", 62),
    "end_of_utterance_token": ("<end_of_utterance>", 63),
    "global_image_token": ("<global-img>", 59),
    "newline_token": ("\n", 58),
    **{
        f"row_{row}_col_{column}": (f"<row_{row}_col_{column}>", 50 + 2 * row + column)
        for row in (1, 2)
        for column in (1, 2)
    },
}
_QWEN_TOKENS = {
    "image_token": ("<|image_pad|>", "image_token_id"),
    "video_token": ("<|video_pad|>", "video_token_id"),
    "vision_start_token": ("<|vision_start|>", "vision_start_token_id"),
    "vision_end_token": ("<|vision_end|>", "vision_end_token_id"),
}
#: Processor kinds by ``config.model_type``, one for each family.
PROCESSORS: dict[str, ProcessorKind] = {
    "llava": ProcessorKind(_llava, _LLAVA_TOKENS, "<image>"),
    "llava_next": ProcessorKind(_llava_next, _LLAVA_TOKENS, "<image>"),
    "llava_onevision": ProcessorKind(
        _llava_onevision, _VIDEO_TOKENS, "<image>", "LlavaOnevisionVideoProcessor"
    ),
    "video_llava": ProcessorKind(
        _video_llava, _VIDEO_TOKENS, "<image>", "VideoLlavaVideoProcessor"
    ),
    "qwen2_vl": _qwen("Qwen2VLProcessor", "Qwen2VLVideoProcessor"),
    "qwen2_5_vl": _qwen("Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor"),
    **{
        family: _qwen("Qwen3VLProcessor", "Qwen3VLVideoProcessor")
        for family in ("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
    },
    "internvl": ProcessorKind(
        _internvl,
        {
            "context_image_token": ("<IMG_CONTEXT>", "image_token_id"),
            "video_token": ("<video>", 61),
            "start_image_token": ("<img>", _START),
            "end_image_token": ("</img>", _END),
        },
        "<IMG_CONTEXT>",
        "InternVLVideoProcessor",
    ),
    "idefics3": ProcessorKind(_idefics3("Idefics3"), _IDEFICS3_TOKENS, "<image>"),
    "smolvlm": ProcessorKind(
        _idefics3("SmolVLM"), _IDEFICS3_TOKENS, "<image>", "SmolVLMVideoProcessor"
    ),
    "mistral3": ProcessorKind(
        _mistral3,
        {
            "image_token": ("[IMG]", "image_token_index"),
            "image_break_token": ("[IMG_BREAK]", 61),
            "image_end_token": ("[IMG_END]", 62),
        },
        "[IMG]",
    ),
    "paligemma": ProcessorKind(_paligemma, _LLAVA_TOKENS, "<image>"),
    "gemma3": ProcessorKind(
        _gemma3,
        {
            "image_token": ("<image_soft_token>", "image_token_id"),
            "boi_token": ("<start_of_image>", "boi_token_index"),
            "eoi_token": ("<end_of_image>", "eoi_token_index"),
        },
        "<start_of_image>",
    ),
}
