"""LLaVA-OneVision, pruned."""

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
    tiny_llava_onevision,
)
from clasp_kernels.policy import Schedule

pytestmark = pytest.mark.filterwarnings("ignore:the router cannot read the prompts")

FAMILY = "llava_onevision"
INPUT = Schedule.input(0.25)
INSIDE = Schedule({0: 0.75, 1: 0.5, 2: 0.25, 3: 0.125})
WIDE, BIG = (16, 44), (48, 40)
PLACEHOLDERS = {WIDE: 36 + 4 * 13, BIG: 36 + 12 * 11}
STEPS = {
    "max_new_tokens": 4,
    "min_new_tokens": 4,
    "suppress_tokens": [IMAGE_TOKEN, VIDEO_TOKEN],
    "do_sample": False,
}


def padded(*prompts: list[int]) -> dict[str, torch.Tensor]:
    width = max(map(len, prompts))
    mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]
    return {
        "input_ids": torch.tensor([[0] * (width - len(ids)) + ids for ids in prompts]),
        "attention_mask": torch.tensor(mask),
    }


def with_image_and_video() -> dict[str, torch.Tensor]:
    """Return a prompt with an image and a video of three frames, and a text-only prompt."""
    generator = torch.Generator().manual_seed(2)
    first = [3, *[IMAGE_TOKEN] * PLACEHOLDERS[BIG], 7, *[VIDEO_TOKEN] * (3 * 9 + 1), 8, 12, 13]
    return {
        **padded(first, [3, 8, 21, 14]),
        "pixel_values": torch.randn(1, 5, 3, 24, 24, generator=generator),
        "image_sizes": torch.tensor([BIG]),
        "pixel_values_videos": torch.randn(1, 3, 3, 24, 24, generator=generator),
    }


@pytest.mark.parametrize("schedule", [INPUT, INSIDE], ids=["input", "inside"])
def test_an_image_and_a_video_of_one_prompt_are_pruned(schedule: Schedule) -> None:
    batch = with_image_and_video()
    prefill, generation, record = differences(FAMILY, batch, schedule)
    assert prefill < 1e-4
    assert generation < 1e-4
    assert record.images_per_prompt == (2, 0)
    assert record.stages[0].counts == ((39, 7) if schedule is INPUT else (117, 20))


def test_each_of_several_images_is_seen_as_a_whole() -> None:
    model = build(FAMILY)
    generator = torch.Generator().manual_seed(2)
    batch = {
        **padded([3, *[IMAGE_TOKEN] * 37, 7, *[IMAGE_TOKEN] * 37, 12, 13]),
        "pixel_values": torch.randn(2, 3, 3, 24, 24, generator=generator),
        "image_sizes": torch.tensor([WIDE, WIDE]),
        "batch_num_images": torch.tensor([2]),
    }
    before = model(**batch).logits
    with apply_clasp(model, budget=1.0, fuse_into="selection"):
        assert torch.equal(model(**batch).logits, before)
    prefill, generation, record = differences(FAMILY, batch, INPUT)
    assert max(prefill, generation) < 1e-4
    assert record.stages[0].counts == (9, 9)
    with (
        apply_clasp(model),
        pytest.raises(ValueError, match=r"must add up to the 2 images of image_sizes, got \[3\]"),
    ):
        model(**{**batch, "batch_num_images": torch.tensor([3])})


def test_an_image_of_many_tiles_is_shrunk_as_the_model_does() -> None:
    model = tiny_llava_onevision(vision_aspect_ratio="anyres_max_1")
    eager = tiny_llava_onevision(vision_aspect_ratio="anyres_max_1", attn_implementation="eager")
    batch = {
        "pixel_values": torch.randn(1, 5, 3, 24, 24, generator=torch.Generator().manual_seed(2)),
        "image_sizes": torch.tensor([BIG]),
    }
    [features] = model.get_image_features(**batch, return_dict=True).pooler_output
    is_end = (features == model.model.image_newline).all(-1)
    ratio = (12 * 10 / 36) ** 0.5
    rows, columns = int(12 // ratio), int(10 // ratio)
    assert len(features) == 36 + rows * (columns + 1)
    with apply_clasp(model) as handle:
        adapter = handle._runtime.adapter
        vision = adapter.encode(model, batch)
        [group] = adapter.groups(batch)
    torch.testing.assert_close(vision.features[0], features[~is_end])
    assert group.separators == (tuple(is_end.nonzero().flatten().tolist()),)
    assert group.counts == vision.counts == (36 + rows * columns,)

    tower = eager.model.vision_tower
    outputs = tower(batch["pixel_values"][0], output_hidden_states=True, output_attentions=True)

    def shrunk(of_patches: torch.Tensor) -> torch.Tensor:
        """Downsample [tiles, patches, width] to [tokens, width] in plain torch."""
        whole, tiles = of_patches[0], of_patches[1:].unflatten(1, (6, 6)).unflatten(0, (2, 2))
        image = torch.cat([torch.cat(list(row), 1) for row in tiles], 0)[:, 1:11]
        image = torch.nn.functional.interpolate(
            image.permute(2, 0, 1)[None], (rows, columns), mode="bilinear"
        )
        return torch.cat([whole, image[0].flatten(1).T])

    for layer, state in zip(vision.fused_layers, adapter.layers.states, strict=True):
        expected = shrunk(outputs.hidden_states[state])
        torch.testing.assert_close(layer[0], expected, atol=1e-4, rtol=1e-4)
    received = outputs.attentions[-1].mean((1, 2))[..., None]
    torch.testing.assert_close(vision.salience(), shrunk(received).T, atol=1e-6, rtol=1e-5)


def test_frames_of_a_video_are_one_pool() -> None:
    model, eager = build(FAMILY), tiny_llava_onevision(attn_implementation="eager")
    batch = {"pixel_values_videos": with_image_and_video()["pixel_values_videos"]}
    features = model.get_video_features(batch["pixel_values_videos"], return_dict=True)
    with apply_clasp(model) as handle:
        vision = handle._runtime.adapter.encode(model, batch)
    assert vision.counts == (27,)
    torch.testing.assert_close(vision.features[0], features.pooler_output[0, :27])
    tower = eager.model.vision_tower
    attentions = tower(batch["pixel_values_videos"][0], output_attentions=True).attentions
    received = attentions[-1].mean((1, 2)).view(3, 1, 6, 6)
    squares = torch.nn.functional.interpolate(received, (3, 3), mode="bilinear")
    torch.testing.assert_close(vision.salience(), squares.view(1, 27), atol=1e-6, rtol=1e-5)


def test_beams_and_steps_without_a_cache_find_the_same_images() -> None:
    model = build(FAMILY)
    batch = with_image_and_video()
    with apply_clasp(model, schedule=INSIDE) as handle:

        def answer(**others: Any) -> tuple[list[list[int]], tuple[int, ...]]:
            ids = model.generate(**batch, **STEPS, **others)
            assert handle.last is not None
            return ids.tolist(), handle.last.stages[0].counts

        greedy, counts = answer()
        assert counts == (117, 20)
        assert answer(use_cache=False) == (greedy, counts)
        _, beams = answer(num_beams=3)
        assert beams == counts


def test_a_budget_of_everything_changes_no_bit_and_nothing_stays_behind() -> None:
    model = build(FAMILY)
    batch = with_image_and_video()
    before = model(**batch).logits
    with apply_clasp(model, budget=1.0, fuse_into="selection"):
        assert torch.equal(model(**batch).logits, before)
    with apply_clasp(model, budget=0.25):
        assert model(**batch).logits.shape[1] < before.shape[1]
    assert torch.equal(model(**batch).logits, before)


def test_a_projector_that_should_be_trained_is_told() -> None:
    model = build(FAMILY)
    model.model.vision_tower.requires_grad_(False)
    batch = with_image_and_video()
    with (
        apply_clasp(model, budget=0.25),
        torch.enable_grad(),
        pytest.warns(UserWarning, match="parameters of the projector require gradients"),
    ):
        model.train()(**batch, labels=batch["input_ids"])


def test_what_does_not_fit_is_refused() -> None:
    model = build(FAMILY)
    with pytest.raises(ValueError, match="shrinks what it projected"):
        apply_clasp(model, fuse_into="projector")
    batch = with_image_and_video()
    with apply_clasp(model):
        with pytest.raises(TypeError, match=r"\[videos, frames, channels, height, width\]"):
            model(**{**batch, "pixel_values_videos": batch["pixel_values_videos"][0]})
        with pytest.raises(ValueError, match="vision_aspect_ratio is 'anyres_max_9'"):
            model(**batch, vision_aspect_ratio="anyres_max_4")
        with pytest.raises(ValueError, match="video placeholders"):
            frames = batch["pixel_values_videos"][:, :2]
            model(**{**batch, "pixel_values_videos": frames})
    model.config.vision_feature_select_strategy = "default"
    with pytest.raises(ValueError, match="has no CLS token to drop"):
        apply_clasp(model)


def test_the_specimen_has_images_of_several_sizes() -> None:
    images = SPECIMENS[FAMILY].images(build(FAMILY), 4, torch.Generator().manual_seed(1))
    assert len(set(map(tuple, images["image_sizes"].tolist()))) == 3


def test_what_the_decoder_saw_of_images_and_of_videos_is_told_apart() -> None:
    model = build(FAMILY)
    batch = with_image_and_video()
    with apply_clasp(model, budget=0.25) as handle:
        outputs = model(**batch)
        assert handle.last is not None
        counts = handle.last.stages[0].counts
    for kind, count in zip(("image", "video"), counts, strict=True):
        if hasattr(outputs, f"{kind}_outputs"):
            features = torch.cat(getattr(outputs, f"{kind}_outputs").pooler_output)
        else:
            features = getattr(outputs, f"{kind}_hidden_states")
        assert features.shape == (count, 32)
