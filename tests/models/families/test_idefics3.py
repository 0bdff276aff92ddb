"""Idefics 3 and SmolVLM, pruned."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from packed_prompts import build, differences
from processors import processor_for
from test_processors import asked, picture

from clasp_kernels.models import apply_clasp
from clasp_kernels.models.specimens import IMAGE_TOKEN, SPECIMENS
from clasp_kernels.policy import Schedule

pytestmark = pytest.mark.filterwarnings("ignore:the router cannot read the prompts")

FAMILIES = ("idefics3", "smolvlm")
INPUT = Schedule.input(0.25)
INSIDE = Schedule({0: 0.75, 1: 0.5, 2: 0.25, 3: 0.125})
TOKENS, SIDE = 9, 6
PIXELS = 18


def with_images(*rows: int) -> dict[str, torch.Tensor]:
    """Return left-padded prompts with the given numbers of images and text between them."""
    prompts = [
        [3 + row, 8, *[50, *[IMAGE_TOKEN] * TOKENS, 51, 7] * count, 12, 13, 14]
        for row, count in enumerate(rows)
    ]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    generator = torch.Generator().manual_seed(2)
    pixels = torch.zeros(len(rows), max(rows), 3, PIXELS, PIXELS)
    for row, count in enumerate(rows):
        pixels[row, :count] = torch.randn(count, 3, PIXELS, PIXELS, generator=generator)
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "pixel_values": pixels}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("schedule", [INPUT, INSIDE], ids=["input", "inside"])
def test_prompts_with_fewer_images_are_filled_up(schedule: Schedule, family: str) -> None:
    batch = with_images(2, 0, 1)
    prefill, generation, record = differences(family, batch, schedule)
    assert prefill < 1e-4
    assert generation < 1e-4
    assert record.images_per_prompt == (2, 0, 1)
    assert record.stages[0].counts == ((2, 2, 2) if schedule is INPUT else (7, 7, 7))


@pytest.mark.parametrize("family", FAMILIES)
def test_tiles_are_one_view_where_the_prompt_says_which_they_are(family: str) -> None:
    model = build(family)
    processor = processor_for(family, model)
    images = [picture((40, 20)), picture((20, 20)), picture((20, 40))]
    prompts = [asked(processor, 2, "what is it"), asked(processor, 1, "say why")]
    batch = dict(
        processor(images=[images[:2], images[2:]], text=prompts, return_tensors="pt", padding=True)
    )
    with apply_clasp(model) as handle:
        views = handle.adapter.views(batch)
        del batch["input_ids"]
        alone = handle.adapter.views(batch)
    sizes = [tuple(view.pixels.shape[1:]) for view in views]
    assert sizes == [(18, 36), (18, 18), (36, 36), (18, 18), (36, 18), (18, 18)]
    assert sorted(token for view in views for token in view.tokens) == list(range(11 * TOKENS))
    assert views[0].tokens[:6] == (0, 1, 2, 9, 10, 11)
    assert [view.tokens for view in alone] == [
        tuple(range(first, first + TOKENS)) for first in range(0, 11 * TOKENS, TOKENS)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_salience_is_the_attention_that_merged_patches_get(family: str) -> None:
    model, eager = build(family), SPECIMENS[family].build(attn_implementation="eager")
    batch = with_images(2, 1)
    mask = torch.ones(2, 2, PIXELS, PIXELS, dtype=torch.bool)
    mask[0, 1, 12:] = False  # in the second image, the last two rows of patches are padding
    with apply_clasp(model) as handle:
        adapter = handle._runtime.adapter
        whole = adapter.encode(model, batch).salience()
        partly = adapter.encode(model, {**batch, "pixel_attention_mask": mask}).salience()

    def reference(layer: int, seen: torch.Tensor) -> torch.Tensor:
        real = [(0, 0), (0, 1), (1, 0)]
        pixels = torch.stack([batch["pixel_values"][place] for place in real])
        patches = torch.stack([seen[place][::3, ::3] for place in real])
        tower = eager.model.vision_model
        attentions = tower(pixels, patch_attention_mask=patches, output_attentions=True).attentions
        weights = patches.flatten(1).float()
        of_rows = attentions[layer].mean(1) * weights[:, :, None] / weights.sum(1)[:, None, None]
        received = of_rows.sum(1).view(3, SIDE, SIDE)
        return (torch.nn.functional.avg_pool2d(received[:, None], 2) * 4).flatten(1)

    everything = torch.ones_like(mask)
    torch.testing.assert_close(whole, reference(-1, everything), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(partly, reference(-1, mask), atol=1e-6, rtol=1e-5)
    assert not partly[1, 6:].any()
    assert (whole - reference(-2, everything)).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_token_is_the_mean_of_its_patches_and_features_are_the_models(family: str) -> None:
    model = build(family)
    batch = with_images(2, 1)
    outputs = model.model.get_image_features(
        batch["pixel_values"], output_hidden_states=True, return_dict=True
    )
    features = outputs.pooler_output
    if not isinstance(features, torch.Tensor):
        features = torch.cat(list(features))
    with apply_clasp(model) as handle:
        adapter = handle._runtime.adapter
        vision = adapter.encode(model, batch)
    assert vision.counts == (TOKENS,) * 3
    assert torch.equal(vision.features, features.reshape(3, TOKENS, -1))
    for layer, state in zip(vision.fused_layers, adapter.layers.states, strict=True):
        patches = outputs.hidden_states[state].unflatten(1, (3, 2, 3, 2))
        torch.testing.assert_close(layer, patches.mean((2, 4)).flatten(1, 2))


@pytest.mark.parametrize("family", FAMILIES)
def test_beams_and_steps_without_a_cache_find_the_same_images(family: str) -> None:
    model = build(family)
    batch = with_images(2, 1)
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "suppress_tokens": [IMAGE_TOKEN]}
    with apply_clasp(model, schedule=INSIDE) as handle:

        def answer(**others: Any) -> tuple[list[list[int]], tuple[int, ...]]:
            ids = model.generate(**batch, **settings, do_sample=False, **others)
            assert handle.last is not None
            return ids.tolist(), handle.last.stages[0].counts

        greedy, counts = answer()
        assert counts == (7, 7, 7)
        assert answer(use_cache=False) == (greedy, counts)
        _, beams = answer(num_beams=3)
        assert beams == counts


@pytest.mark.parametrize("family", FAMILIES)
def test_a_budget_of_everything_changes_no_bit_and_nothing_stays_behind(family: str) -> None:
    model = build(family)
    batch = with_images(2, 0, 1)
    before = model(**batch).logits
    with apply_clasp(model, budget=1.0, fuse_into="selection"):
        assert torch.equal(model(**batch).logits, before)
    with apply_clasp(model, budget=0.25):
        assert model(**batch).logits.shape[1] < before.shape[1]
    assert torch.equal(model(**batch).logits, before)


@pytest.mark.parametrize(
    ("change", "error", "problem"),
    [
        ({"pixel_values": torch.ones(1, 3, 18, 18)}, TypeError, r"\[prompts, images, channels"),
        ({"pixel_values": torch.ones(1, 1, 3, 18, 12)}, ValueError, "which are 6 x 4 patches"),
        ({"pixel_values": torch.ones(1, 1, 3, 15, 15)}, ValueError, "multiple of 2 patches"),
        ({"pixel_values": torch.zeros(1, 1, 3, 18, 18)}, ValueError, "holds no image"),
        ({"pixel_values": torch.ones(1, 2, 3, 18, 18)}, ValueError, "pixel_values holds 2 images"),
        (
            {"pixel_attention_mask": torch.ones(1, 18, 18)},
            ValueError,
            r"pixel_attention_mask must be .* \[1, 1, 18, 18\], got \[1, 18, 18\]",
        ),
    ],
)
def test_a_call_that_does_not_fit_is_refused(
    change: dict[str, Any], error: type[Exception], problem: str
) -> None:
    model = build("idefics3")
    batch = {**with_images(1), **change}
    with apply_clasp(model), pytest.raises(error, match=problem):
        model(**batch)


def test_a_model_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="merges patches"):
        apply_clasp(build("smolvlm"), fuse_into="projector")
    model = build("smolvlm")
    with apply_clasp(model), pytest.raises(ValueError, match="scale_factor is 3"):
        model.config.scale_factor = 3
        model(**with_images(1))


@pytest.mark.parametrize("family", FAMILIES)
def test_images_that_are_encoded_already_are_refused(family: str) -> None:
    model = build(family)
    batch = with_images(1)
    pixels = batch.pop("pixel_values")
    outputs = model.model.get_image_features(pixels, return_dict=True)
    takes = inspect.signature(type(model).forward).parameters
    name = "mm_encoder_outputs" if "mm_encoder_outputs" in takes else "image_hidden_states"
    with apply_clasp(model):
        for given in (outputs.pooler_output, {"image": outputs}):
            with pytest.raises(ValueError, match="encoded already, too late to prune"):
                model(**batch, **{name: given})
