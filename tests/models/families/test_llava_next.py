"""LLaVA-NeXT, pruned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from packed_prompts import build, differences

from clasp_kernels.models import apply_clasp
from clasp_kernels.models.specimens import IMAGE_TOKEN, tiny_llava_next
from clasp_kernels.policy import CategoryPolicy, Profile, Schedule

pytestmark = pytest.mark.filterwarnings("ignore:the router cannot read the prompts")

FAMILY = "llava_next"
INPUT = Schedule.input(0.25)
INSIDE = Schedule({0: 0.75, 1: 0.5, 2: 0.25, 3: 0.125})
SIDE = 6  # patches per side of a tile
# (height, width) of an image, to its grid of tiles and the rows and columns of patches that are not
# padding.
WIDE, TALL, BIG = (16, 44), (44, 16), (48, 40)
ARRANGED = {
    WIDE: ((1, 2), range(1, 5), range(12)),
    TALL: ((2, 1), range(12), range(1, 5)),
    BIG: ((2, 2), range(12), range(1, 11)),
}


def order(size: tuple[int, int]) -> list[int]:
    """Return the patch of each placeholder of an image, computed by hand; -1 for newlines.

    Patches are numbered tile after tile, the whole image first.
    """
    (_, across), rows, columns = ARRANGED[size]
    found = list(range(SIDE * SIDE))
    for row in rows:
        for column in columns:
            tile = 1 + row // SIDE * across + column // SIDE
            found.append(tile * SIDE * SIDE + row % SIDE * SIDE + column % SIDE)
        found.append(-1)
    return found


def with_images(*rows: tuple[tuple[int, int], ...]) -> dict[str, torch.Tensor]:
    """Return left-padded prompts with images of the given sizes."""
    prompts = []
    for number, sizes in enumerate(rows):
        ids = [3 + number, 8]
        for size in sizes:
            ids += [*[IMAGE_TOKEN] * len(order(size)), 7]
        prompts.append([*ids, 12, 13, 14])
    width = max(map(len, prompts))
    sizes = [size for row in rows for size in row]
    generator = torch.Generator().manual_seed(2)
    return {
        "input_ids": torch.tensor([[0] * (width - len(ids)) + ids for ids in prompts]),
        "attention_mask": torch.tensor(
            [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]
        ),
        "pixel_values": torch.randn(len(sizes), 5, 3, 24, 24, generator=generator),
        "image_sizes": torch.tensor(sizes),
    }


def encode(handle: Any, model: Any, batch: dict[str, torch.Tensor]) -> Any:
    return handle._runtime.adapter.encode(model, batch)


@pytest.mark.parametrize("schedule", [INPUT, INSIDE], ids=["input", "inside"])
def test_a_view_and_its_tiles_are_one_pool_and_line_ends_stay(schedule: Schedule) -> None:
    batch = with_images((WIDE, BIG), (), (TALL,))
    prefill, generation, record = differences(FAMILY, batch, schedule)
    assert prefill < 1e-4
    assert generation < 1e-4
    assert record.images_per_prompt == (2, 0, 1)
    tokens = [36 + 48, 36 + 120, 36 + 48]
    share = 0.25 if schedule is INPUT else 0.75
    assert record.stages[0].counts == tuple(int(share * count + 0.5) for count in tokens)
    # All newlines of each image are left.
    last = record.stages[-1]
    ids = batch["input_ids"].gather(1, last.columns.clamp_min(0))
    placeholders = ((ids == IMAGE_TOKEN) & (last.columns >= 0)).sum(1).tolist()
    assert placeholders == [sum(last.counts[:2]) + 4 + 12, 0, last.counts[2] + 12]


def test_line_ends_are_the_models_own() -> None:
    model = build(FAMILY)
    batch = with_images((WIDE,))
    seen: list[torch.Tensor] = []
    layer = model.model.language_model.layers[0]
    hook = layer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )
    with apply_clasp(model, budget=1) as handle:
        model(**batch)
        assert handle.last is not None
        [columns] = handle.last.columns
    hook.remove()
    newline = model.model.image_newline
    is_end = (seen[0][0] == newline).all(-1)
    first = 2 + SIDE * SIDE
    assert columns[is_end].tolist() == [first + 12 + 13 * row for row in range(4)]


def test_patches_are_arranged_as_the_image_had_them() -> None:
    model = build(FAMILY)
    tower = model.model.vision_tower
    batch = with_images((WIDE, TALL), (BIG,))

    def numbered(module: Any, args: Any, outputs: Any) -> Any:
        """Replace every hidden state by the number of its patch among all patches."""
        outputs.hidden_states = tuple(
            torch.nn.functional.pad(
                torch.arange(state.shape[0] * SIDE * SIDE).view(-1, SIDE * SIDE), (1, 0)
            )[..., None].expand_as(state)
            for state in outputs.hidden_states
        )
        return outputs

    hook = tower.register_forward_hook(numbered)
    with apply_clasp(model) as handle:
        vision = encode(handle, model, batch)
    hook.remove()
    first = 0
    for image, (size, tiles) in enumerate(((WIDE, 3), (TALL, 3), (BIG, 5))):
        expected = [first + patch for patch in order(size) if patch >= 0]
        assert vision.counts[image] == len(expected)
        for layer in (vision.features, *vision.fused_layers):
            assert layer[image, : len(expected), 0].tolist() == expected
            assert not layer[image, len(expected) :].any()
        first += tiles * SIDE * SIDE


def test_salience_is_the_attention_of_each_tiles_cls_token() -> None:
    model, eager = build(FAMILY), tiny_llava_next(attn_implementation="eager")
    batch = with_images((TALL,), (BIG,))
    with apply_clasp(model) as handle:
        found = encode(handle, model, batch).salience()

    def reference(layer: int) -> torch.Tensor:
        scores = torch.zeros_like(found)
        for image, (size, tiles) in enumerate(((TALL, 3), (BIG, 5))):
            pixels = batch["pixel_values"][image, :tiles]
            attentions = eager.model.vision_tower(pixels, output_attentions=True).attentions
            of_patches = attentions[layer].mean(1)[:, 0, 1:].flatten()
            patches = [patch for patch in order(size) if patch >= 0]
            scores[image, : len(patches)] = of_patches[patches]
        return scores

    torch.testing.assert_close(found, reference(-2), atol=1e-6, rtol=1e-5)
    assert (found - reference(-1)).abs().max() > 1e-3


def test_beams_and_steps_without_a_cache_find_the_same_images() -> None:
    model = build(FAMILY)
    batch = with_images((WIDE, BIG), (TALL,))
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "suppress_tokens": [IMAGE_TOKEN]}
    with apply_clasp(model, schedule=INSIDE) as handle:

        def answer(**others: Any) -> tuple[list[list[int]], tuple[int, ...]]:
            ids = model.generate(**batch, **settings, do_sample=False, **others)
            assert handle.last is not None
            return ids.tolist(), handle.last.stages[0].counts

        greedy, counts = answer()
        assert counts == (63, 117, 63)
        assert answer(use_cache=False) == (greedy, counts)
        _, beams = answer(num_beams=3)
        assert beams == counts


def test_a_prompt_may_come_as_embeddings() -> None:
    model = build(FAMILY)
    batch = with_images((WIDE,))
    embeds = model.get_input_embeddings()(batch["input_ids"])
    with apply_clasp(model, budget=0.25):
        expected = model(**batch, categories="general").logits
        found = model(**{**batch, "input_ids": None}, inputs_embeds=embeds, categories="general")
    assert torch.equal(found.logits, expected)


def test_layers_can_be_fused_into_what_the_projector_gets() -> None:
    model = build(FAMILY)
    own_layer = Profile(
        name="last but one",
        model_type=FAMILY,
        layers=(0.5, 0.8),  # 0.8 is hidden state 4 of 5 layers
        source="a test",
        categories={"general": CategoryPolicy((0.0, 1.0), 0.5)},
    )
    batch = with_images((WIDE,), (BIG,))
    logits = []
    for fuse_into in ("selection", "projector"):
        with apply_clasp(model, budget=0.5, profile=own_layer, fuse_into=fuse_into):
            logits.append(model(**batch).logits)
    torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)


def test_the_line_end_can_be_trained() -> None:
    model = build(FAMILY)
    model.model.vision_tower.requires_grad_(False)
    batch = with_images((WIDE,))
    with apply_clasp(model, budget=0.25), torch.enable_grad():
        model.train()(**batch, labels=batch["input_ids"]).loss.backward()
    assert model.model.image_newline.grad.abs().max() > 0
    assert model.model.multi_modal_projector.linear_1.weight.grad.abs().max() > 0


def test_a_budget_of_everything_changes_no_bit_and_nothing_stays_behind() -> None:
    model = build(FAMILY)
    batch = with_images((WIDE, BIG), (), (TALL,))
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
        ({"image_sizes": torch.tensor([[0, 44]])}, ValueError, "heights and widths of 1 or more"),
        ({"image_sizes": torch.tensor([WIDE, WIDE])}, ValueError, "1 images, but image_sizes 2"),
        ({"image_sizes": torch.tensor([BIG])}, ValueError, "placeholders, which is not a multiple"),
        ({"pixel_values": torch.zeros(1, 2, 3, 24, 24)}, ValueError, "has 2 tiles, .* need 3"),
        ({"pixel_values": torch.zeros(4, 3, 24, 24)}, ValueError, "has 4 tiles, .* need 3"),
        ({"pixel_values": torch.zeros(3, 24, 24)}, TypeError, r"\[images, tiles, channels"),
        ({"vision_feature_layer": -1}, ValueError, "vision_feature_layer is -2"),
    ],
)
def test_a_call_that_does_not_fit_is_refused(
    change: dict[str, Any], error: type[Exception], problem: str
) -> None:
    model = build(FAMILY)
    batch = {**with_images((WIDE,)), **change}
    with apply_clasp(model), pytest.raises(error, match=problem):
        model(**batch)


def test_tiles_may_come_in_one_row() -> None:
    model = build(FAMILY)
    batch = with_images((WIDE,), (BIG,))
    pixels = batch["pixel_values"]
    in_a_row = {**batch, "pixel_values": torch.cat([pixels[0, :3], pixels[1]])}
    with apply_clasp(model, budget=0.25):
        assert torch.equal(model(**in_a_row).logits, model(**batch).logits)


def test_a_model_that_does_not_fit_is_refused() -> None:
    model = build(FAMILY)
    model.config.vision_feature_select_strategy = "full"
    with pytest.raises(ValueError, match="must be 'default', as a CLS token has no place"):
        apply_clasp(model)
    model = build(FAMILY)
    with apply_clasp(model), pytest.raises(ValueError, match="image_grid_pinpoints is"):
        model.config.image_grid_pinpoints = [[48, 48]]
        model(**with_images((WIDE,)))
