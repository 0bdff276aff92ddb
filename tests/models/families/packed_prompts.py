"""Prompts for the Qwen-VL families' tiny models, and references for their pruned outputs."""

from __future__ import annotations

import sys
from typing import Any

import torch

from clasp_kernels.models import PrefillRecord, apply_clasp, oracle
from clasp_kernels.models.specimens import IMAGE_TOKEN, SPECIMENS, VIDEO_TOKEN
from clasp_kernels.policy import Profile, Schedule

START, END = 62, 63


def build(family: str) -> Any:
    return SPECIMENS[family].build()


def with_video(model: Any, frames: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Return a prompt with an image and a video, and a text-only prompt, padded on the left.

    ``frames`` are the lengths of the video's runs of frames: (2,) is one run, (1, 1) two runs with
    text between them.
    """
    image, video = (1, 8, 4), (sum(frames), 4, 8)  # 8 tokens, and 8 tokens per frame
    first = [5, START, *[IMAGE_TOKEN] * 8, END, 12, 13, 14, 15]
    for count in frames:
        first += [START, *[VIDEO_TOKEN] * (8 * count), END, 7, 11]
    first += [9, 12, 13]
    second = [3, 8, 21, 14]
    padding = len(first) - len(second)
    ids = torch.tensor([first, [0] * padding + second])
    mask = torch.tensor([[1] * len(first), [0] * padding + [1] * len(second)])
    generator = torch.Generator().manual_seed(2)
    vision = model.config.vision_config
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2

    def pixels(size: tuple[int, ...]) -> torch.Tensor:
        return torch.randn(size[0] * size[1] * size[2], width, generator=generator)

    return {
        "input_ids": ids,
        "attention_mask": mask,
        "mm_token_type_ids": (ids == IMAGE_TOKEN).int() + 2 * (ids == VIDEO_TOKEN).int(),
        "pixel_values": pixels(image),
        "image_grid_thw": torch.tensor([image]),
        "pixel_values_videos": pixels(video),
        "video_grid_thw": torch.tensor([video]),
    }


def differences(
    family: str, batch: dict[str, torch.Tensor], schedule: Schedule
) -> tuple[float, float, PrefillRecord]:
    """Return the differences of prefill and generation from the masking oracle, and the record."""
    model, profile = build(family), Profile.for_model_type(family)
    answers = []
    with apply_clasp(model, schedule=schedule, profile=profile) as handle:
        for run in (oracle._prefill, oracle._generate):
            answers.append(run(model, handle, batch))
            record = handle.last
    assert record is not None
    kept = oracle._kept(record, batch)
    prefill, generation = (
        oracle._largest_difference(answer, oracle._oracle(model, batch, answer.ids, kept))
        for answer in answers
    )
    return prefill, generation, record


def reference_salience(model: Any, batch: dict[str, torch.Tensor], layer: int) -> torch.Tensor:
    """Compute the attention that each visual token of image and video gets within its frame, in
    plain torch, from the block's own projection."""
    attention = model.model.visual.blocks[layer].attn
    library: Any = sys.modules[type(attention).__module__]
    seen: list[tuple[Any, dict[str, Any]]] = []
    hook = attention.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args, kwargs)), with_kwargs=True
    )
    model.get_image_features(batch["pixel_values"], batch["image_grid_thw"])
    model.get_video_features(batch["pixel_values_videos"], batch["video_grid_thw"])
    hook.remove()
    scores = []
    for args, kwargs in seen:
        hidden = args[0] if args else kwargs["hidden_states"]
        projected = attention.qkv(hidden).reshape(len(hidden), 3, attention.num_heads, -1)
        query, key, _ = projected.unbind(1)
        cos, sin = kwargs["position_embeddings"]
        query, key = library.apply_rotary_pos_emb_vision(query, key, cos, sin)
        lengths = kwargs["cu_seqlens"].diff().tolist()
        for of_frame, keys in zip(query.split(lengths), key.split(lengths), strict=True):
            logits = torch.einsum("thd,shd->hts", of_frame, keys) * attention.scaling
            scores.append(logits.softmax(-1).mean((0, 1)))
    return torch.cat(scores).unflatten(0, (-1, 4)).sum(1)
