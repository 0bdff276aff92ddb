"""Qwen2-VL, pruned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from packed_prompts import build, differences, reference_salience, with_video

from clasp_kernels.models import apply_clasp
from clasp_kernels.models.specimens import IMAGE_TOKEN, VIDEO_TOKEN
from clasp_kernels.policy import Schedule

pytestmark = pytest.mark.filterwarnings("ignore:the router cannot read the prompts")

FAMILY = "qwen2_vl"
INPUT = Schedule.input(0.25)
INSIDE = Schedule({0: 0.75, 1: 0.5, 2: 0.25, 3: 0.125})


def test_salience_is_the_attention_that_patches_get_in_their_frame() -> None:
    model = build(FAMILY)
    batch = with_video(model, (2,))
    expected = reference_salience(model, batch, -1)
    with apply_clasp(model) as handle:
        scores = handle._runtime.adapter.encode(model, batch).salience()
    found = torch.cat([scores[0, :8], scores[1, :16]])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    other = reference_salience(model, batch, -2)
    assert (found - other).abs().max() > 1e-3


@pytest.mark.parametrize("schedule", [INPUT, INSIDE], ids=["input", "inside"])
def test_an_image_and_a_video_beside_a_row_of_text(schedule: Schedule) -> None:
    batch = with_video(build(FAMILY), (2,))
    prefill, generation, record = differences(FAMILY, batch, schedule)
    assert prefill < 1e-4
    assert generation < 1e-4
    assert record.images_per_prompt == (2, 0)
    assert record.stages[0].counts == ((2, 4) if schedule is INPUT else (6, 12))


def test_a_video_alone_is_one_pool_of_tokens() -> None:
    batch = with_video(build(FAMILY), (2,))
    ids = batch["input_ids"][:1, 13:]
    alone = {name: batch[name] for name in ("pixel_values_videos", "video_grid_thw")}
    kinds = {"mm_token_type_ids": batch["mm_token_type_ids"][:1, 13:]}
    model = build(FAMILY)
    with apply_clasp(model, budget=5) as handle:
        model(input_ids=ids, **kinds, **alone)
        assert handle.last is not None
        assert handle.last.stages[0].counts == (5,)


@pytest.mark.parametrize("schedule", [INPUT, INSIDE], ids=["input", "inside"])
def test_drafted_tokens_and_steps_without_a_cache_change_no_answer(schedule: Schedule) -> None:
    model = build(FAMILY)
    batch = with_video(model, (2,))
    by_row = ("input_ids", "attention_mask", "mm_token_type_ids")
    batch = {name: value[:1] if name in by_row else value for name, value in batch.items()}
    with apply_clasp(model, schedule=schedule):

        def answer(**settings: Any) -> list[int]:
            steps = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
            suppressed = [IMAGE_TOKEN, VIDEO_TOKEN]
            ids = model.generate(**batch, **steps, suppress_tokens=suppressed, **settings)
            return ids[0].tolist()

        assert answer(prompt_lookup_num_tokens=2) == answer() == answer(use_cache=False)


def test_a_budget_of_everything_changes_no_bit_and_nothing_stays_behind() -> None:
    model = build(FAMILY)
    batch = with_video(model, (2,))
    before = model(**batch).logits
    with apply_clasp(model, budget=1.0, fuse_into="selection"):
        assert torch.equal(model(**batch).logits, before)
    with apply_clasp(model, budget=0.25):
        assert model(**batch).logits.shape[1] < before.shape[1]
    assert torch.equal(model(**batch).logits, before)


@pytest.mark.parametrize(
    ("grid", "problem"),
    [
        ([[1, 8, 6]], "32 patches, but image_grid_thw says 48"),
        ([[1, 32, 1]], "multiples of 2"),
        ([[-1, 8, -4]], "multiples of 2"),
        ([[1, 4, 4], [1, 4, 4], [0, 2, 2]], "multiples of 2"),
    ],
)
def test_a_grid_that_does_not_fit_is_refused(grid: list[list[int]], problem: str) -> None:
    model = build(FAMILY)
    batch = with_video(model, (2,))
    with apply_clasp(model), pytest.raises(ValueError, match=problem):
        model(**{**batch, "image_grid_thw": torch.tensor(grid)})


def test_what_does_not_fit_is_refused_before_anything_is_changed() -> None:
    model = build(FAMILY)
    with pytest.raises(ValueError, match="merges 2 x 2 patches"):
        apply_clasp(model, fuse_into="projector")
    with pytest.raises(ValueError, match="positions must be 'original'"):
        apply_clasp(model, positions="compact")
    batch = with_video(model, (2,))
    with apply_clasp(model), pytest.raises(TypeError, match=r"tensor \[images, 3\]"):
        model(**{**batch, "video_grid_thw": None})
    ids = batch["input_ids"].clone()
    ids[0, 3] = 4  # one placeholder is missing
    with apply_clasp(model), pytest.raises(ValueError, match="placeholders"):
        model(**{**batch, "input_ids": ids})
