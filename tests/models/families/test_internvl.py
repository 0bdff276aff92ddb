"""InternVL, pruned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from packed_prompts import build, differences

from clasp_kernels.models import apply_clasp
from clasp_kernels.models.families._items import placeholder_runs
from clasp_kernels.models.specimens import IMAGE_TOKEN, SPECIMENS, tiny_internvl
from clasp_kernels.policy import CategoryPolicy, Profile, Schedule

pytestmark = pytest.mark.filterwarnings("ignore:the router cannot read the prompts")

FAMILY = "internvl"
INPUT = Schedule.input(0.25)
INSIDE = Schedule({0: 0.75, 1: 0.5, 2: 0.25, 3: 0.125})
TOKENS = 9  # per tile


def with_tiles(model: Any, *rows: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Return left-padded prompts with images of the given numbers of tiles."""
    prompts = []
    for number, tiles in enumerate(rows):
        ids = [3 + number, 8]
        for count in tiles:
            ids += [50, *[IMAGE_TOKEN] * (TOKENS * count), 51, 7]
        prompts.append([*ids, 12, 13, 14])
    width = max(map(len, prompts))
    generator = torch.Generator().manual_seed(2)
    return {
        "input_ids": torch.tensor([[0] * (width - len(ids)) + ids for ids in prompts]),
        "attention_mask": torch.tensor(
            [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]
        ),
        **SPECIMENS[FAMILY].images(model, sum(map(sum, rows)), generator),
    }


def encode(handle: Any, model: Any, batch: dict[str, torch.Tensor]) -> Any:
    return handle._runtime.adapter.encode(model, batch)


@pytest.mark.parametrize("schedule", [INPUT, INSIDE], ids=["input", "inside"])
def test_tiles_that_stand_together_are_one_image(schedule: Schedule) -> None:
    batch = with_tiles(build(FAMILY), (3, 1), (), (2,))
    prefill, generation, record = differences(FAMILY, batch, schedule)
    assert prefill < 1e-4
    assert generation < 1e-4
    assert record.images_per_prompt == (2, 0, 1)
    expected = (7, 2, 5) if schedule is INPUT else (20, 7, 14)
    assert record.stages[0].counts == expected


def test_a_pool_gives_each_tile_what_its_tokens_earn() -> None:
    model = build(FAMILY)
    batch = with_tiles(model, (3,))
    with apply_clasp(model, budget=4) as handle:
        model(**batch)
        assert handle.last is not None
        assert handle.last.stages[0].counts == (4,)


def test_salience_is_the_attention_of_each_tiles_cls_token() -> None:
    model, eager = build(FAMILY), tiny_internvl(attn_implementation="eager")
    batch = with_tiles(model, (2, 1))
    with apply_clasp(model) as handle:
        scores = encode(handle, model, batch).salience()
    found = torch.cat([scores[0], scores[1, :TOKENS]])
    assert not scores[1, TOKENS:].any()

    def reference(layer: int) -> torch.Tensor:
        tower = eager.model.vision_tower
        attentions = tower(batch["pixel_values"], output_attentions=True).attentions
        of_patches = attentions[layer].mean(1)[:, 0, 1:].unflatten(1, (6, 6))
        squares = torch.nn.functional.avg_pool2d(of_patches[:, None], 2) * 4
        return squares.flatten()

    torch.testing.assert_close(found, reference(-1), atol=1e-6, rtol=1e-5)
    assert (found - reference(-2)).abs().max() > 1e-3


def test_a_token_has_the_patches_of_its_square() -> None:
    model = build(FAMILY)
    tower = model.model.vision_tower
    for layer in tower.encoder.layer:  # make every layer the identity
        layer.lambda_1.zero_()
        layer.lambda_2.zero_()
    tower.embeddings.patch_embeddings.projection.weight.zero_()
    tower.embeddings.patch_embeddings.projection.bias.zero_()
    # The hidden state of each patch is its number.
    numbers = torch.arange(-1, 36)[:, None].expand(37, 32)
    tower.embeddings.position_embeddings.copy_(numbers)
    batch = with_tiles(model, (2,))
    with apply_clasp(model) as handle:
        vision = encode(handle, model, batch)
    for layer in (vision.features, *vision.fused_layers):
        assert layer.shape == (1, 2 * TOKENS, 4 * 32)
        patches = layer[0].unflatten(-1, (4, 32))[..., 0].long().sort().values
        for number, of_token in enumerate(patches.tolist()):
            row, column = divmod(number % TOKENS, 3)
            first = 12 * row + 2 * column
            assert of_token == [first, first + 1, first + 6, first + 7]


def test_features_are_what_the_projector_gets() -> None:
    model = build(FAMILY)
    batch = with_tiles(model, (2, 1))
    features = model.get_image_features(batch["pixel_values"], return_dict=True).pooler_output
    with apply_clasp(model) as handle:
        vision = encode(handle, model, batch)
        projected = handle._runtime.adapter.project(model, vision.features)
    torch.testing.assert_close(projected[0], features[:2].flatten(0, 1))
    torch.testing.assert_close(projected[1, :TOKENS], features[2])
    assert vision.counts == (2 * TOKENS, TOKENS)


def test_beams_and_steps_without_a_cache_find_the_same_images() -> None:
    model = build(FAMILY)
    batch = with_tiles(model, (2, 1), (1,))
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "suppress_tokens": [IMAGE_TOKEN]}
    with apply_clasp(model, schedule=INSIDE) as handle:

        def answer(**others: Any) -> tuple[list[list[int]], tuple[int, ...]]:
            ids = model.generate(**batch, **settings, do_sample=False, **others)
            assert handle.last is not None
            return ids.tolist(), handle.last.stages[0].counts

        greedy, counts = answer()
        assert counts == (14, 7, 7)
        assert answer(use_cache=False) == (greedy, counts)
        _, beams = answer(num_beams=3)
        assert beams == counts


def test_layers_can_be_fused_into_what_the_projector_gets() -> None:
    last_alone = Profile(
        name="last",
        model_type=FAMILY,
        layers=(0.5, 1.0),
        source="a test",
        categories={"general": CategoryPolicy((0.0, 1.0), 0.5)},
    )
    model = build(FAMILY)
    batch = with_tiles(model, (2, 1))
    logits = []
    for fuse_into in ("selection", "projector"):
        with apply_clasp(model, budget=0.5, profile=last_alone, fuse_into=fuse_into):
            logits.append(model(**batch).logits)
    torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)


def test_a_budget_of_everything_changes_no_bit_and_nothing_stays_behind() -> None:
    model = build(FAMILY)
    batch = with_tiles(model, (3, 1), (), (2,))
    before = model(**batch).logits
    with apply_clasp(model, budget=1.0, fuse_into="selection"):
        assert torch.equal(model(**batch).logits, before)
    with apply_clasp(model, budget=0.25):
        assert model(**batch).logits.shape[1] < before.shape[1]
    assert torch.equal(model(**batch).logits, before)


def test_runs_of_placeholders_end_with_their_row() -> None:
    ids = torch.tensor([[9, 9, 7, 9], [9, 7, 7, 7], [7, 7, 7, 7]])
    assert placeholder_runs(ids, 9) == [[2, 1], [1], []]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"pixel_values": torch.zeros(2, 3, 24, 32)}, "which are 6 x 8 patches"),
        ({"pixel_values": torch.zeros(2, 3, 20, 20)}, "multiple of 2 patches"),
        ({"pixel_values": torch.zeros(0, 3, 24, 24)}, "one or more square tiles"),
        ({"pixel_values": torch.zeros(3, 3, 24, 24)}, "pixel_values holds 3 images"),
        ({"vision_feature_layer": -2}, "vision_feature_layer is -1"),
        ({"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy is 'default'"),
    ],
)
def test_a_call_that_does_not_fit_is_refused(change: dict[str, Any], problem: str) -> None:
    model = build(FAMILY)
    batch = with_tiles(model, (2,))
    with apply_clasp(model):
        with pytest.raises(ValueError, match=problem):
            model(**{**batch, **change})
        with pytest.raises(TypeError, match=r"tensor \[tiles, channels, height, width\]"):
            model(**{**batch, "pixel_values": batch["pixel_values"][None]})


def test_prompts_that_do_not_tell_their_images_are_refused() -> None:
    model = build(FAMILY)
    batch = with_tiles(model, (2,))
    ids = batch["input_ids"]
    torn, cut = ids.clone(), ids.clone()
    torn[0, [2, 7]] = torch.tensor([IMAGE_TOKEN, 50])  # same number, in runs of 5 and 13
    cut[0, 3] = 4
    embeds = model.get_input_embeddings()(ids)
    with apply_clasp(model):
        with pytest.raises(ValueError, match="5 image placeholders in a run"):
            model(**{**batch, "input_ids": torn})
        with pytest.raises(ValueError, match="17 image placeholders"):
            model(**{**batch, "input_ids": cut})
        with pytest.raises(ValueError, match="must be given as input_ids"):
            model(**{**batch, "input_ids": None}, inputs_embeds=embeds, categories="general")


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("vision_feature_select_strategy", "full", "must be 'default'"),
        ("vision_feature_layer", [-2, -1], "must be one layer"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(field: str, value: Any, problem: str) -> None:
    model = build(FAMILY)
    setattr(model.config, field, value)
    with pytest.raises(ValueError, match=problem):
        apply_clasp(model)


def test_layers_are_not_fused_for_a_projector_that_expects_them_normalised() -> None:
    model = build(FAMILY)
    model.config.vision_config.use_mean_pooling = False
    with pytest.raises(ValueError, match="normalises what its last layer returns"):
        apply_clasp(model, fuse_into="projector")
    with apply_clasp(model), pytest.raises(ValueError, match="image_token_id is 60"):
        model.config.image_token_id = 59
        model(**with_tiles(model, (1,)))
