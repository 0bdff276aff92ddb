"""Mistral 3, pruned."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from packed_prompts import build, differences

from clasp_kernels.models import apply_clasp, verify
from clasp_kernels.models.specimens import IMAGE_TOKEN, tiny_mistral3
from clasp_kernels.policy import Schedule

pytestmark = pytest.mark.filterwarnings("ignore:the router cannot read the prompts")

FAMILY = "mistral3"
INPUT = Schedule.input(0.25)
INSIDE = Schedule({0: 0.75, 1: 0.5, 2: 0.25, 3: 0.125})
BREAK, END = 50, 51
SMALL, ODD, LARGE = (16, 24), (28, 32), (32, 32)  # pixels of 2 x 3, 3 x 4 and 4 x 4 tokens


def tokens(size: tuple[int, int]) -> tuple[int, int]:
    return size[0] // 8, size[1] // 8


def with_images(*rows: tuple[tuple[int, int], ...]) -> dict[str, torch.Tensor]:
    """Return left-padded prompts with images of the given sizes and their row-end tokens."""
    prompts = []
    for number, sizes in enumerate(rows):
        ids = [3 + number, 8]
        for size in sizes:
            down, across = tokens(size)
            ids += [*[*[IMAGE_TOKEN] * across, BREAK] * (down - 1), *[IMAGE_TOKEN] * across, END]
        prompts.append([*ids, 12, 13, 14])
    width = max(map(len, prompts))
    sizes = [size for row in rows for size in row]
    generator = torch.Generator().manual_seed(2)
    return {
        "input_ids": torch.tensor([[0] * (width - len(ids)) + ids for ids in prompts]),
        "attention_mask": torch.tensor(
            [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]
        ),
        "pixel_values": torch.randn(len(sizes), 3, 32, 32, generator=generator),
        "image_sizes": torch.tensor(sizes),
    }


@pytest.mark.parametrize("schedule", [INPUT, INSIDE], ids=["input", "inside"])
def test_images_of_any_size_are_pruned_and_row_ends_stay(schedule: Schedule) -> None:
    batch = with_images((SMALL, LARGE), (), (ODD,))
    prefill, generation, record = differences(FAMILY, batch, schedule)
    assert prefill < 1e-4
    assert generation < 1e-4
    assert record.images_per_prompt == (2, 0, 1)
    assert record.stages[0].counts == ((2, 4, 3) if schedule is INPUT else (5, 12, 9))
    last = record.stages[-1].columns
    ids = batch["input_ids"].gather(1, last.clamp_min(0)).masked_fill(last < 0, -1)
    assert (ids == BREAK).sum(1).tolist() == [1 + 3, 0, 2]
    assert (ids == END).sum(1).tolist() == [2, 0, 1]


def test_a_token_is_the_mean_of_its_patches_and_features_are_the_models() -> None:
    model = build(FAMILY)
    batch = with_images((SMALL, ODD), (LARGE,))
    images = {name: batch[name] for name in ("pixel_values", "image_sizes")}
    features = model.get_image_features(**images, return_dict=True).pooler_output
    states = model.model.vision_tower(**images, output_hidden_states=True).hidden_states
    with apply_clasp(model) as handle:
        adapter = handle._runtime.adapter
        vision = adapter.encode(model, batch)
    first = 0
    for image, size in enumerate((SMALL, ODD, LARGE)):
        (down, across), (rows, columns) = tokens(size), (size[0] // 4, size[1] // 4)
        count = down * across
        assert vision.counts[image] == count
        torch.testing.assert_close(vision.features[image, :count], features[image])
        for layer, state in zip(vision.fused_layers, adapter.layers.states, strict=True):
            patches = states[state][0, first : first + rows * columns]
            for token in range(count):
                row, column = 2 * (token // across), 2 * (token % across)
                corner = row * columns + column
                four = patches[[corner, corner + 1, corner + columns, corner + columns + 1]]
                torch.testing.assert_close(layer[image, token], four.mean(0))
        first += rows * columns


def test_salience_is_the_attention_within_an_image() -> None:
    model, eager = build(FAMILY), tiny_mistral3(attn_implementation="eager")
    batch = with_images((ODD, SMALL))
    with apply_clasp(model) as handle:
        found = handle._runtime.adapter.encode(model, batch).salience()

    def reference(layer: int) -> torch.Tensor:
        """Run each image by itself, so that no attention goes to another image."""
        scores = torch.zeros_like(found)
        for image, (height, width) in enumerate((ODD, SMALL)):
            pixels = batch["pixel_values"][image : image + 1, :, :height, :width]
            attentions = eager.model.vision_tower(pixels, output_attentions=True).attentions
            received = attentions[layer].mean((1, 2)).view(1, height // 4, width // 4)
            squares = torch.nn.functional.avg_pool2d(received[None], 2).flatten() * 4
            scores[image, : len(squares)] = squares
        return scores

    torch.testing.assert_close(found, reference(-1), atol=1e-6, rtol=1e-5)
    assert (found - reference(-2)).abs().max() > 1e-3


def test_beams_and_steps_without_a_cache_find_the_same_images() -> None:
    model = build(FAMILY)
    batch = with_images((SMALL, LARGE), (ODD,))
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "suppress_tokens": [IMAGE_TOKEN]}
    with apply_clasp(model, schedule=INSIDE) as handle:

        def answer(**others: Any) -> tuple[list[list[int]], tuple[int, ...]]:
            ids = model.generate(**batch, **settings, do_sample=False, **others)
            assert handle.last is not None
            return ids.tolist(), handle.last.stages[0].counts

        greedy, counts = answer()
        assert counts == (5, 12, 9)
        assert answer(use_cache=False) == (greedy, counts)
        _, beams = answer(num_beams=3)
        assert beams == counts


def test_a_budget_of_everything_changes_no_bit_and_nothing_stays_behind() -> None:
    model = build(FAMILY)
    batch = with_images((SMALL, LARGE), (), (ODD,))
    before = model(**batch).logits
    with apply_clasp(model, budget=1.0, fuse_into="selection"):
        assert torch.equal(model(**batch).logits, before)
    with apply_clasp(model, budget=0.25):
        assert model(**batch).logits.shape[1] < before.shape[1]
    assert torch.equal(model(**batch).logits, before)


@pytest.mark.parametrize(
    ("change", "error", "problem"),
    [
        ({"image_sizes": None}, TypeError, r"image_sizes must have .* \[images, 2\], got None"),
        ({"image_sizes": torch.ones(1, 3)}, TypeError, r"\[images, 2\], got \[1, 3\]"),
        ({"image_sizes": torch.tensor([[16, 4]])}, ValueError, "from 8, the side of a visual"),
        ({"image_sizes": torch.tensor([[40, 32]])}, ValueError, r"to those of .*\[32, 32\]"),
        ({"image_sizes": torch.tensor([SMALL, SMALL])}, ValueError, "1 images, but image_sizes 2"),
        ({"image_sizes": torch.tensor([LARGE])}, ValueError, "image placeholders"),
        ({"pixel_values": torch.zeros(3, 32, 32)}, TypeError, r"\[images, channels, height"),
        ({"vision_feature_layer": -2}, ValueError, "vision_feature_layer is -1"),
    ],
)
def test_a_call_that_does_not_fit_is_refused(
    change: dict[str, Any], error: type[Exception], problem: str
) -> None:
    model = build(FAMILY)
    batch = {**with_images((SMALL,)), **change}
    with apply_clasp(model), pytest.raises(error, match=problem):
        model(**batch)


def test_a_model_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="merges patches"):
        apply_clasp(build(FAMILY), fuse_into="projector")


def test_sizes_may_be_numbers_of_any_kind() -> None:
    model = build(FAMILY)
    batch = with_images((SMALL, LARGE))
    sizes = batch["image_sizes"]
    with apply_clasp(model, budget=0.25):
        expected = model(**batch).logits
        for given in (sizes.tolist(), [(16, 24), (32, 32)], sizes.numpy(), sizes.to(torch.int32)):
            assert torch.equal(model(**{**batch, "image_sizes": given}).logits, expected)


def test_a_released_models_patches_can_be_verified() -> None:
    """Released models have patches of 14 pixels, merged 2 x 2."""
    model = tiny_mistral3()
    config = copy.deepcopy(model.config)
    config.vision_config.patch_size = 14
    config.vision_config.image_size = 224
    torch.manual_seed(0)
    report = verify(type(model)(config).eval())
    assert not [check for check in report.checks if "Error" in check.problem]
