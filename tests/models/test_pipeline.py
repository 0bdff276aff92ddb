"""The pipeline of transformers that asks about images, with a pruned model."""

from __future__ import annotations

from typing import Any

import pytest
from processors import PROCESSORS, processor_for
from test_processors import LARGE, asked, picture, skip_what_is_refused
from transformers import pipeline

from clasp_kernels.models import apply_clasp
from clasp_kernels.models.specimens import IMAGE_TOKEN, SPECIMENS, VOCABULARY
from clasp_kernels.policy import Schedule

QUESTION = "what is in the picture"
SCHEDULES = {"input": Schedule.input(0.25), "inside": Schedule({1: 0.5, 3: 0.25})}
#: Families that differ most in what a processor makes; the others are deep.
TELLING = ("llava", "qwen3_vl")


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize(
    "family",
    [
        family if family in TELLING else pytest.param(family, marks=pytest.mark.deep)
        for family in PROCESSORS
    ],
)
def test_a_pipeline_answers_as_generate_does(family: str, schedule: Schedule) -> None:
    skip_what_is_refused(family, schedule)
    model = SPECIMENS[family].build()
    model.generation_config.suppress_tokens = list(range(IMAGE_TOKEN, VOCABULARY))
    processor = processor_for(family, model)
    ask = pipeline("image-text-to-text", model=model, processor=processor, device="cpu")
    image = picture(LARGE)
    content = [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}]
    settings: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}

    def answer() -> str:
        [told] = ask(
            text=[{"role": "user", "content": content}],
            return_full_text=False,
            generate_kwargs=settings,
        )
        return told["generated_text"].strip()

    inputs = processor(images=image, text=asked(processor, 1, QUESTION), return_tensors="pt")
    columns = inputs["input_ids"].shape[1]

    def generated() -> str:
        ids = model.generate(**inputs, **settings)[0, columns:]
        return processor.decode(ids, skip_special_tokens=True).strip()

    whole = answer()
    assert whole == generated()
    with apply_clasp(model, schedule=schedule, processor=processor) as handle:
        pruned = answer()
        assert handle.last is not None
        assert handle.last.pruned_length < handle.last.prompt_length == columns
        assert pruned == generated()
    assert answer() == whole
