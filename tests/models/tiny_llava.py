"""A tiny LLaVA for tests, with a profile, images and prompts."""

from __future__ import annotations

import io
from typing import Any

import torch

from clasp_kernels.models.specimens import IMAGE_TOKEN, PAD_TOKEN, tiny_llava
from clasp_kernels.policy import CategoryPolicy, Profile

__all__ = [
    "IMAGE_TOKEN",
    "TOKENS_PER_IMAGE",
    "image_features",
    "images",
    "prompts",
    "saved_and_loaded",
    "tiny_llava",
    "tiny_profile",
]

TOKENS_PER_IMAGE = 36


def tiny_profile(**overrides: object) -> Profile:
    fields: dict[str, object] = {
        "name": "tiny",
        "model_type": "llava",
        "layers": (-4, -3, -2),
        "source": "a test",
        "categories": {
            "general": CategoryPolicy((0.2, 0.3, 0.5), 0.5),
            "ocr": CategoryPolicy((0.6, 0.4, 0.0), 0.75),
            "counting": CategoryPolicy((0.0, 0.5, 0.5), 0.25),
            "spatial": CategoryPolicy((0.1, 0.1, 0.8), 0.5, budget_scale=0.5),
        },
    }
    return Profile(**{**fields, **overrides})


def images(count: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, 24, 24, generator=torch.Generator().manual_seed(seed))


def prompts(*rows: list[int | str], padding_side: str = "left") -> dict[str, torch.Tensor]:
    """Return ``input_ids`` and ``attention_mask`` of rows of token ids; "image" is an image."""
    ids = [
        [
            t
            for item in row
            for t in ([IMAGE_TOKEN] * TOKENS_PER_IMAGE if item == "image" else [item])
        ]
        for row in rows
    ]
    width = max(map(len, ids))
    padded, mask = [], []
    for row in ids:
        pad = [PAD_TOKEN] * (width - len(row))
        padded.append(pad + row if padding_side == "left" else row + pad)
        ones, zeros = [1] * len(row), [0] * len(pad)
        mask.append(zeros + ones if padding_side == "left" else ones + zeros)
    return {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask)}


def image_features(outputs: Any) -> torch.Tensor:
    """Return a forward's image features [tokens, width], from the field of this transformers."""
    if hasattr(outputs, "image_outputs"):
        return torch.cat(outputs.image_outputs.pooler_output)
    return outputs.image_hidden_states


def saved_and_loaded(value: Any) -> Any:
    """Save with ``torch.save`` and load again."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)
