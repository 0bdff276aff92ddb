"""Video-LLaVA, pruned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from packed_prompts import build, differences

from clasp_kernels.models import apply_clasp
from clasp_kernels.models.specimens import (
    IMAGE_TOKEN,
    SPECIMENS,
    VIDEO_TOKEN,
    tiny_video_llava,
)
from clasp_kernels.policy import Schedule

pytestmark = pytest.mark.filterwarnings("ignore:the router cannot read the prompts")

FAMILY = "video_llava"
INPUT = Schedule.input(0.25)
INSIDE = Schedule({0: 0.75, 1: 0.5, 2: 0.25, 3: 0.125})
FRAMES, PATCHES = 4, 36
STEPS = {
    "max_new_tokens": 4,
    "min_new_tokens": 4,
    "suppress_tokens": [IMAGE_TOKEN, VIDEO_TOKEN],
    "do_sample": False,
}


def with_image_and_video(model: Any) -> dict[str, torch.Tensor]:
    """Return a prompt with an image and a video, and a text-only prompt."""
    generator = torch.Generator().manual_seed(2)
    video = [VIDEO_TOKEN] * (FRAMES * (PATCHES + 1))
    first = [3, *video, 7, *[IMAGE_TOKEN] * PATCHES, 8, 12, 13]
    padding = len(first) - 4
    ids = torch.tensor([first, [0] * padding + [3, 8, 21, 14]])
    return {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        **SPECIMENS[FAMILY].images(model, 1, generator),
        "pixel_values_videos": torch.randn(1, FRAMES, 3, 24, 24, generator=generator),
    }


@pytest.mark.parametrize("schedule", [INPUT, INSIDE], ids=["input", "inside"])
def test_an_image_and_a_video_of_one_prompt_are_pruned(schedule: Schedule) -> None:
    batch = with_image_and_video(build(FAMILY))
    prefill, generation, record = differences(FAMILY, batch, schedule)
    assert prefill < 1e-4
    assert generation < 1e-4
    assert record.images_per_prompt == (2, 0)
    assert record.stages[0].counts == ((9, 37) if schedule is INPUT else (27, 111))


def test_frames_that_repeat_each_other_compete() -> None:
    model = build(FAMILY)
    batch = with_image_and_video(model)
    video = batch["pixel_values_videos"]
    video[:, 1] = video[:, 0]  # two frames are equal
    with apply_clasp(model, budget=0.5) as handle:
        model(**batch, categories="scene")
        assert handle.last is not None
        kept = handle.last.stages[0].indices[1]
    twins = {token % 37 for token in kept.tolist() if 0 <= token < 37}
    both = [token for token in kept.tolist() if 37 <= token < 74 and token - 37 in twins]
    others = [token for token in kept.tolist() if token >= 74]
    assert len(both) < len(others) / 2


def test_features_and_salience_are_those_of_each_tower() -> None:
    model, eager = build(FAMILY), tiny_video_llava(attn_implementation="eager")
    batch = with_image_and_video(model)
    pixels = batch[next(name for name in batch if name in ("pixel_values", "pixel_values_images"))]
    video = batch["pixel_values_videos"]
    with apply_clasp(model) as handle:
        adapter = handle._runtime.adapter
        vision = adapter.encode(model, batch)
        projected = adapter.project(model, vision.features)
    of_image = model.model.get_image_features(pixels, return_dict=True).pooler_output
    of_video = model.model.get_video_features(video, return_dict=True).pooler_output
    assert vision.counts == (PATCHES, FRAMES * (PATCHES + 1))
    torch.testing.assert_close(projected[0, :PATCHES], of_image[0])
    torch.testing.assert_close(projected[1], of_video.flatten(0, 1))

    def reference(layer: int) -> torch.Tensor:
        images = eager.model.image_tower(pixels, output_attentions=True).attentions
        videos = eager.model.video_tower(video[0], output_attentions=True).attentions
        scores = torch.zeros(2, FRAMES * (PATCHES + 1))
        scores[0, :PATCHES] = images[layer].mean(1)[0, 0, 1:]
        scores[1] = videos[layer].mean(1)[:, 0].flatten()  # includes the CLS token's own score
        return scores

    found = vision.salience()
    torch.testing.assert_close(found, reference(-2), atol=1e-6, rtol=1e-5)
    assert (found - reference(-1)).abs().max() > 1e-3


def test_beams_and_steps_without_a_cache_find_the_same_images() -> None:
    model = build(FAMILY)
    batch = with_image_and_video(model)
    with apply_clasp(model, schedule=INSIDE) as handle:

        def answer(**others: Any) -> tuple[list[list[int]], tuple[int, ...]]:
            ids = model.generate(**batch, **STEPS, **others)
            assert handle.last is not None
            return ids.tolist(), handle.last.stages[0].counts

        greedy, counts = answer()
        assert counts == (27, 111)
        assert answer(use_cache=False) == (greedy, counts)
        _, beams = answer(num_beams=3)
        assert beams == counts


def test_images_are_taken_under_each_of_their_names() -> None:
    model = build(FAMILY)
    batch = with_image_and_video(model)
    name = next(name for name in batch if name in ("pixel_values", "pixel_values_images"))
    other = {"pixel_values": "pixel_values_images", "pixel_values_images": "pixel_values"}[name]
    renamed = {other if key == name else key: value for key, value in batch.items()}
    with apply_clasp(model, budget=0.25):
        expected = model.generate(**batch, **STEPS)
        assert torch.equal(model.generate(**renamed, **STEPS), expected)
        with pytest.raises(ValueError, match="are names of one argument; pass one"):
            model(**batch, **{other: batch[name]})


def test_a_budget_of_everything_changes_no_bit_and_nothing_stays_behind() -> None:
    model = build(FAMILY)
    batch = with_image_and_video(model)
    before = model(**batch).logits
    with apply_clasp(model, budget=1.0, fuse_into="selection"):
        assert torch.equal(model(**batch).logits, before)
    with apply_clasp(model, budget=0.25):
        assert model(**batch).logits.shape[1] < before.shape[1]
    assert torch.equal(model(**batch).logits, before)


def test_each_tower_that_should_be_trained_is_told() -> None:
    model = build(FAMILY)
    batch = with_image_and_video(model)
    with (
        apply_clasp(model, budget=0.25),
        torch.enable_grad(),
        pytest.warns(UserWarning, match="parameters of the image tower and the video tower"),
    ):
        model.train()(**batch, labels=batch["input_ids"])


def test_what_does_not_fit_is_refused() -> None:
    model = build(FAMILY)
    batch = with_image_and_video(model)
    video = batch["pixel_values_videos"]
    with apply_clasp(model):
        with pytest.raises(TypeError, match=r"\[videos, frames, channels, height, width\]"):
            model(**{**batch, "pixel_values_videos": video[0]})
        with pytest.raises(ValueError, match="video placeholders"):
            model(**{**batch, "pixel_values_videos": video[:, :3]})
        model.config.video_token_id = 59
        with pytest.raises(ValueError, match="video_token_id is 59"):
            model(**batch)
