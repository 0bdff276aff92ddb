"""The bundled model for vLLM, questions about drawn pictures, and the answers of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from evaluate import heldout_examples
from model import PROMPT
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from clasp_kernels.bundled import tiny_vlm_path
from clasp_kernels.integrations.vllm import save_for_vllm
from clasp_kernels.models import apply_clasp
from clasp_kernels.policy import Profile

NEW_TOKENS = 5


@dataclass(frozen=True)
class Asked:
    """A question as the model reads it, and its picture."""

    prompt: str
    image: Image.Image


@dataclass(frozen=True)
class Answer:
    text: str
    logprob: float
    """Of the first token."""
    indices: list[int]
    """The kept tokens."""


def save_bundled(folder: Path, **changes: dict[str, Any]) -> None:
    """Save the bundled model with the names that vLLM knows, and its profile with ``changes`` of
    its categories' settings."""
    bundled = tiny_vlm_path()
    model = LlavaForConditionalGeneration.from_pretrained(bundled)
    save_for_vllm(model, AutoProcessor.from_pretrained(bundled), folder)
    profile = Profile.load(bundled / "clasp_profile.json").to_dict()
    for category, settings in changes.items():
        profile["categories"][category] |= settings
    Profile.from_dict(profile).save(folder / "clasp_profile.json")


def questions(per_category: int) -> list[Asked]:
    """Return held-out questions of every category."""
    return [
        Asked(PROMPT.format(question=question.text), picture.render())
        for picture, question in heldout_examples(per_category, kinds=["objects"])
    ]


def answers_of_transformers(
    checkpoint: str, asked: Sequence[Asked], **settings: Any
) -> list[Answer]:
    """Ask the model of a folder, patched by ``apply_clasp(**settings)``, each question alone."""
    model = LlavaForConditionalGeneration.from_pretrained(checkpoint)
    processor = AutoProcessor.from_pretrained(checkpoint)
    found = []
    with torch.no_grad(), apply_clasp(model, **settings) as handle:
        for each in asked:
            given = processor(images=each.image, text=each.prompt, return_tensors="pt")
            output = model.generate(
                **given,
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=True,
            )
            new = output.sequences[0, given["input_ids"].shape[1] :]
            assert handle.last is not None
            found.append(
                Answer(
                    text=processor.decode(new, skip_special_tokens=True),
                    logprob=output.logits[0][0].log_softmax(-1)[new[0]].item(),
                    indices=handle.last.stages[0].indices[0].tolist(),
                )
            )
    return found
