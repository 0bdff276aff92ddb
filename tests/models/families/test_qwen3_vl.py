"""Qwen3-VL, pruned: DeepStack features are added to the kept tokens inside the decoder."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from packed_prompts import build, differences, reference_salience, with_video

from clasp_kernels.models import apply_clasp, verify
from clasp_kernels.models.families.qwen3_vl import Qwen3VLAdapter
from clasp_kernels.models.specimens import IMAGE_TOKEN, VIDEO_TOKEN
from clasp_kernels.policy import Schedule

pytestmark = pytest.mark.filterwarnings("ignore:the router cannot read the prompts")

FAMILY = "qwen3_vl"
INPUT = Schedule.input(0.25)
INSIDE = Schedule({0: 0.75, 1: 0.5, 2: 0.25, 3: 0.125})


def test_salience_is_the_attention_that_patches_get_in_their_frame() -> None:
    model = build(FAMILY)
    batch = with_video(model, (1, 1))
    expected = reference_salience(model, batch, -1)
    with apply_clasp(model) as handle:
        scores = handle._runtime.adapter.encode(model, batch).salience()
    found = torch.cat([scores[0, :8], scores[1, :16]])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    other = reference_salience(model, batch, -2)
    assert (found - other).abs().max() > 1e-3


@pytest.mark.parametrize("schedule", [INPUT, INSIDE], ids=["input", "inside"])
def test_an_image_and_a_video_beside_a_row_of_text(schedule: Schedule) -> None:
    batch = with_video(build(FAMILY), (1, 1))
    prefill, generation, record = differences(FAMILY, batch, schedule)
    assert prefill < 1e-4
    assert generation < 1e-4
    assert record.images_per_prompt == (2, 0)
    assert record.stages[0].counts == ((2, 4) if schedule is INPUT else (6, 12))


def test_a_video_alone_is_one_pool_of_tokens() -> None:
    batch = with_video(build(FAMILY), (1, 1))
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
    batch = with_video(model, (1, 1))
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
    batch = with_video(model, (1, 1))
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
    batch = with_video(model, (1, 1))
    with apply_clasp(model), pytest.raises(ValueError, match=problem):
        model(**{**batch, "image_grid_thw": torch.tensor(grid)})


def test_what_does_not_fit_is_refused_before_anything_is_changed() -> None:
    model = build(FAMILY)
    with pytest.raises(ValueError, match="merges 2 x 2 patches"):
        apply_clasp(model, fuse_into="projector")
    with pytest.raises(ValueError, match="positions must be 'original'"):
        apply_clasp(model, positions="compact")
    batch = with_video(model, (1, 1))
    with apply_clasp(model), pytest.raises(TypeError, match=r"tensor \[images, 3\]"):
        model(**{**batch, "video_grid_thw": None})
    ids = batch["input_ids"].clone()
    ids[0, 3] = 4  # one placeholder is missing
    with apply_clasp(model), pytest.raises(ValueError, match="placeholders"):
        model(**{**batch, "input_ids": ids})


def test_the_check_fails_if_deeper_features_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Qwen3VLAdapter, "deeper", lambda self, outputs: ())
    for schedule in (INPUT, INSIDE):
        batch = with_video(build(FAMILY), (1, 1))
        prefill, generation, _ = differences(FAMILY, batch, schedule)
        assert prefill > 0.1
        assert generation > 0.1
    assert not any(check.passed for check in verify(families=[FAMILY]).checks if check.control)


def test_the_check_fails_if_deeper_features_go_to_other_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deeper = Qwen3VLAdapter.deeper
    monkeypatch.setattr(
        Qwen3VLAdapter,
        "deeper",
        lambda self, outputs: [layer.flip(0) for layer in deeper(self, outputs)],
    )
    prefill, _, _ = differences(FAMILY, with_video(build(FAMILY), (1, 1)), INSIDE)
    assert prefill > 0.1


def test_a_layer_that_cannot_add_features_is_refused() -> None:
    model = build(FAMILY)
    batch = with_video(model, (1, 1))
    layer = model.model.language_model.layers[1]
    own = type(layer).forward
    with apply_clasp(model):
        layer.forward = lambda *args, **kwargs: own(layer, *args, **kwargs)
        with pytest.raises(RuntimeError, match="a decoder layer, or its forward, was replaced"):
            model(**batch)
        del layer.forward


def test_a_tower_without_deeper_features_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(FAMILY)
    batch = with_video(model, (1, 1))
    with apply_clasp(model):
        model.model.visual.deepstack_visual_indexes = [0, 1]
        with pytest.raises(RuntimeError, match="did not return the features of 3 layers"):
            model(**batch)


def test_merged_tokens_have_the_mean_of_deeper_features_too() -> None:
    model = build(FAMILY)
    batch = with_video(model, (1, 1))
    with apply_clasp(model, budget=1.0):
        everything = model(**batch).logits
    with apply_clasp(model, budget=1.0, merge=True):
        torch.testing.assert_close(model(**batch).logits, everything, atol=1e-4, rtol=0)
    with apply_clasp(model, budget=0.5, merge=True):
        assert model(**batch).logits.isfinite().all()


@pytest.mark.filterwarnings("ignore:parameters of the vision tower require gradients")
def test_gradient_checkpointing_adds_features_to_the_same_columns() -> None:
    model = build(FAMILY)
    batch = with_video(model, (1, 1))
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    weight = model.model.language_model.layers[0].self_attn.q_proj.weight
    gradients = []
    model.train()
    for checkpoints in (False, True):
        if checkpoints:
            model.gradient_checkpointing_enable()
        with torch.enable_grad(), apply_clasp(model, schedule=INSIDE):
            model.zero_grad()
            model(**batch, use_cache=False).loss.backward()
        gradients.append(weight.grad.clone())
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() > 0
