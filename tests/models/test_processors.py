"""Prune prompts that each family's own processor makes from pictures and questions.

Video pixels are not processed: transformers' video processors need torchvision (without it, even
``transformers.BaseVideoProcessor`` cannot be created in any tested release). The tests pass the
processor the tensors that a video processor would return; the family's own processor then writes
the placeholders.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families.packed_prompts import differences
from PIL import Image
from processors import (
    PROCESSORS,
    processor_for,
    save_checkpoint,
    skip_what_is_not_loaded,
)
from transformers.video_utils import VideoMetadata

from clasp_kernels.cli.processor import load_processor
from clasp_kernels.models import apply_clasp, supported_model_types
from clasp_kernels.models.decoder import refusal
from clasp_kernels.models.specimens import SPECIMENS
from clasp_kernels.policy import Schedule

pytestmark = pytest.mark.filterwarnings("ignore:the router cannot read the prompts")

SMALL, LARGE = (20, 26), (400, 150)
#: Images of each prompt of ``batch_of``, where the tiles that an image is cut into are one each.
IMAGES = {"idefics3": (5, 3, 0), "smolvlm": (5, 3, 0)}
SCHEDULES = {"input": Schedule.input(0.25), "inside": Schedule({0: 0.75, 1: 0.5, 3: 0.25})}


def picture(size: tuple[int, int]) -> Image.Image:
    """Return a picture whose colours differ from place to place."""
    colors = torch.randint(256, (8, 8, 3), generator=torch.Generator().manual_seed(3))
    small = Image.fromarray(colors.byte().numpy())
    return small.resize(size, Image.Resampling.BICUBIC)


def asked(processor: Any, images: int, question: str) -> str:
    content = [{"type": "image"}] * images + [{"type": "text", "text": question}]
    prompt: str = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    return prompt


def batch_of(family: str) -> dict[str, torch.Tensor]:
    """Return prompts with a small image, a large image and no image, and different questions."""
    processor = processor_for(family, SPECIMENS[family].build())
    prompts = [
        asked(processor, 1, "what is in the picture"),
        asked(processor, 1, "how many circles are there"),
        asked(processor, 0, "say why"),
    ]
    images = [[picture(SMALL)], [picture(LARGE)], []]
    batch = dict(processor(images=images, text=prompts, return_tensors="pt", padding=True))
    batch.pop("labels", None)  # PaliGemma's are those of no answer
    return batch


def skip_what_is_refused(family: str, schedule: Schedule) -> None:
    problem = refusal(SPECIMENS[family].build().config.get_text_config())
    if problem and any(schedule.layers):
        pytest.skip(problem)


def test_every_family_has_a_processor_here() -> None:
    assert set(PROCESSORS) == set(supported_model_types())


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("family", PROCESSORS)
def test_what_a_processor_makes_is_pruned_as_the_oracle_masks(
    family: str, schedule: Schedule
) -> None:
    skip_what_is_refused(family, schedule)
    batch = batch_of(family)
    prefill, generation, record = differences(family, batch, schedule)
    assert prefill < 1e-4
    assert generation < 1e-4
    assert record.images_per_prompt == IMAGES.get(family, (1, 1, 0))
    before = [stage.tokens_before for stage in record.stages]
    assert record.pruned_length < record.prompt_length
    assert all(count < before[0] for count in record.stages[-1].counts)


class GivenVideo:
    """Replaces a video processor, and returns the same given tensors for every video."""

    merge_size = 2
    temporal_patch_size = 2
    model_input_names = ("pixel_values_videos", "video_grid_thw")

    def __init__(self, made: Mapping[str, Any]) -> None:
        self.made = made

    def __call__(self, videos: Any, **_: Any) -> dict[str, Any]:
        return dict(self.made)


def video_of(family: str) -> tuple[int, dict[str, Any]]:
    """Return the number of frames of a video, and the tensors that a video processor makes."""
    generator = torch.Generator().manual_seed(1)
    if not family.startswith("qwen"):
        return 3, {"pixel_values_videos": torch.randn(1, 3, 3, 24, 24, generator=generator)}
    metadata = VideoMetadata(total_num_frames=4, fps=1.0, frames_indices=[0, 1, 2, 3])
    return 4, {
        "pixel_values_videos": torch.randn(48, 96, generator=generator),
        "video_grid_thw": torch.tensor([[2, 4, 6]]),
        "video_metadata": [metadata],
    }


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize(
    "family",  # of SmolVLM, a video's frames are images, and take the place of any image
    [name for name, kind in PROCESSORS.items() if kind.videos and name != "smolvlm"],
)
def test_a_video_beside_an_image_is_pruned_as_the_oracle_masks(
    family: str, schedule: Schedule
) -> None:
    skip_what_is_refused(family, schedule)
    processor = processor_for(family, SPECIMENS[family].build())
    frames, made = video_of(family)
    processor.video_processor = GivenVideo(made)
    prompts = [asked(processor, 1, "what is it"), asked(processor, 0, "say why")]
    mark = processor.video_token
    if family.startswith("qwen"):
        mark = f"<|vision_start|>{mark}<|vision_end|>"
    batch = processor(
        images=[[picture(LARGE)], []],
        videos=[np.zeros((frames, 24, 24, 3), np.uint8)],
        text=[prompts[0].replace("what", f"{mark} what"), prompts[1]],
        return_tensors="pt",
        padding=True,
    )
    prefill, generation, record = differences(family, dict(batch), schedule)
    assert prefill < 1e-4
    assert generation < 1e-4
    # In InternVL, each frame counts as an image.
    assert record.images_per_prompt == (4 if family == "internvl" else 2, 0)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_frames_that_are_images_are_pruned_as_the_oracle_masks(schedule: Schedule) -> None:
    processor = processor_for("smolvlm", SPECIMENS["smolvlm"].build())
    pixels = torch.randn(1, 3, 3, 18, 18, generator=torch.Generator().manual_seed(1))
    metadata = VideoMetadata(total_num_frames=3, fps=1.0, frames_indices=[0, 1, 2])
    processor.video_processor = GivenVideo({"pixel_values": pixels, "video_metadata": [metadata]})
    batch = processor(
        videos=[[np.zeros((3, 18, 18, 3), np.uint8)]],
        text=asked(processor, 0, f"{processor.video_token} what is it"),
        return_tensors="pt",
    )
    prefill, generation, record = differences("smolvlm", dict(batch), schedule)
    assert prefill < 1e-4
    assert generation < 1e-4
    assert record.images_per_prompt == (3,)


@pytest.mark.parametrize("family", PROCESSORS)
def test_a_budget_of_everything_changes_nothing(family: str) -> None:
    model, batch = SPECIMENS[family].build(), batch_of(family)
    options = {"max_new_tokens": 3, "do_sample": False}
    before = model.generate(**batch, **options)
    with apply_clasp(model, budget=1.0, fuse_into="selection") as handle:
        assert torch.equal(model.generate(**batch, **options), before)
    assert handle.last is not None
    assert handle.last.pruned_length == batch["input_ids"].shape[1]


@pytest.mark.parametrize("family", PROCESSORS)
def test_a_processor_comes_back_from_its_folder(family: str, tmp_path: Path) -> None:
    if family.startswith("qwen3_5"):
        pytest.skip(
            "transformers gives any tokenizer of Qwen3.5 that family's own way to cut words"
        )
    skip_what_is_not_loaded(family)
    save_checkpoint(family, tmp_path)
    made = processor_for(family, SPECIMENS[family].build())
    loaded = load_processor(str(tmp_path))
    assert type(loaded).__name__ == type(made).__name__
    prompt = asked(made, 1, "what is it")
    assert asked(loaded, 1, "what is it") == prompt
    expected, got = (
        each(images=picture(LARGE), text=prompt, return_tensors="pt") for each in (made, loaded)
    )
    assert set(got) == set(expected)
    for name, value in expected.items():
        # Processors that use torchvision resize pixels slightly differently.
        torch.testing.assert_close(got[name], value, atol=0.3, rtol=0.0)
