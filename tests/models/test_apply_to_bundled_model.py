"""``apply_clasp`` on the bundled model, with its own processor."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from clasp_kernels.bundled import tiny_vlm_path
from clasp_kernels.models import apply_clasp
from clasp_kernels.policy import Profile


@pytest.mark.parametrize("as_tokenizer", [False, True])
def test_questions_reach_the_router(as_tokenizer: bool) -> None:
    model = LlavaForConditionalGeneration.from_pretrained(tiny_vlm_path())
    processor = AutoProcessor.from_pretrained(tiny_vlm_path())
    questions = ["How many red circles are there?", "What is left of the square?"]
    inputs = processor(
        images=[Image.new("RGB", (96, 96), colour) for colour in ("red", "white")],
        text=[f"USER: <image>\n{question} ASSISTANT:" for question in questions],
        return_tensors="pt",
        padding=True,
    )
    reader = processor.tokenizer if as_tokenizer else processor
    with apply_clasp(model, budget=16, processor=reader) as handle, torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=3)
    assert handle.profile == Profile.load(tiny_vlm_path() / "clasp_profile.json")
    assert ids[:, : inputs["input_ids"].shape[1]].equal(inputs["input_ids"])
    assert handle.last is not None
    assert handle.last.categories == ("counting", "spatial")
    assert handle.last.prompt_length - handle.last.pruned_length == 144 - 16
