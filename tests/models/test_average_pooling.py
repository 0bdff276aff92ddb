"""With the rule "pool" the LLM receives means of neighbouring tokens, in every family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from families.packed_prompts import build, with_video
from PIL import Image
from processors import PROCESSORS
from test_processors import batch_of
from test_views import inputs_of
from tiny_llava import IMAGE_TOKEN, images, prompts, tiny_llava, tiny_profile
from torch import Tensor
from torch.nn.functional import avg_pool2d
from transformers import AutoProcessor, LlavaForConditionalGeneration

from clasp_kernels import Selection, rules
from clasp_kernels.bundled import tiny_vlm_path
from clasp_kernels.cli.loading import LoadedModel
from clasp_kernels.cli.picture import as_seen
from clasp_kernels.models import apply_clasp
from clasp_kernels.models.adapter import VisualGroup
from clasp_kernels.models.families._views import grid_view
from clasp_kernels.models.places import token_places
from clasp_kernels.models.selection import Choice
from clasp_kernels.models.selection_checks import check_selection
from clasp_kernels.models.specimens import SPECIMENS, VIDEO_TOKEN
from clasp_kernels.policy import Schedule
from clasp_kernels.rules import PooledSelection

pytestmark = pytest.mark.filterwarnings("ignore:the router cannot read the prompts")

BATCH = {**prompts([1, 5, "image", 7, 8], [1, "image", 3, 2, 9, 4]), "pixel_values": images(2)}
Inputs = dict[str, Tensor]


def received(model: Any, inputs: Inputs, **settings: Any) -> tuple[Tensor, list[Choice]]:
    """Run ``generate`` on a patched model: the embeddings that its decoder is given, [rows,
    columns, width], and what was chosen."""
    seen: list[Tensor] = []
    choices: list[Choice] = []
    hook = model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with apply_clasp(model, rule="pool", **settings) as handle, handle.watched(choices.append):
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
    hook.remove()
    return seen[0], choices


def assert_has(row: Tensor, expected: Tensor) -> None:
    """Check that the rows of ``expected`` are in ``row`` [columns, width], in turn."""
    column = 0
    for wanted in expected:
        distance = (row[column:] - wanted).abs().amax(1)
        found = (distance < 1e-4).nonzero()[:, 0]
        assert len(found), f"not received: the nearest differs by {float(distance.min()):.2g}"
        column += int(found[0]) + 1


def squares(features: Tensor, side: int, by: int) -> Tensor:
    """Average [images, side * side, width] by squares."""
    return avg_pool2d(features.mT.unflatten(2, (side, side)), by).flatten(2).mT


def tower_features(model: Any, pixels: Tensor) -> Tensor:
    states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    return states[model.config.vision_feature_layer][:, 1:]


@pytest.mark.parametrize("by", [2, 3, 4])
def test_the_bundled_model_receives_pooled_features(by: int) -> None:
    model = LlavaForConditionalGeneration.from_pretrained(tiny_vlm_path())
    processor = AutoProcessor.from_pretrained(tiny_vlm_path())
    colors = torch.randint(256, (96, 96, 3), generator=torch.Generator().manual_seed(0)).byte()
    inputs = dict(
        processor(
            images=Image.fromarray(colors.numpy()),
            text="USER: <image>\nHow many circles are there? ASSISTANT:",
            return_tensors="pt",
        )
    )
    budget = 144 // by**2
    embeds, _ = received(model, inputs, budget=budget, fuse_into="selection")
    with torch.no_grad():
        features = tower_features(model, inputs["pixel_values"])
        expected = model.model.multi_modal_projector(squares(features, 12, by))[0]
        text = model.get_input_embeddings()(inputs["input_ids"][0])
    is_image = inputs["input_ids"][0] == model.config.image_token_id
    start = int(is_image.nonzero()[0])
    whole = torch.cat([text[:start], expected, text[start + 144 :]])
    torch.testing.assert_close(embeds[0], whole, atol=1e-5, rtol=1e-4)


def test_fused_features_are_pooled_before_they_are_projected() -> None:
    model = tiny_llava()
    seen, [choice] = received(model, BATCH, budget=9, profile=tiny_profile())
    for row, fused in zip(seen, choice.features, strict=True):
        expected = model.model.multi_modal_projector(squares(fused[None], 6, 2))[0]
        assert_has(row, expected.detach())


def test_a_mean_has_the_position_of_its_nearest_token() -> None:
    model = tiny_llava()
    with apply_clasp(model, budget=9, profile=tiny_profile(), rule="pool") as handle:
        model.generate(**BATCH, max_new_tokens=1, do_sample=False)
        record = handle.last
    assert record is not None
    [stage] = record.stages
    corners = [row * 12 + column * 2 for row in range(3) for column in range(3)]
    assert stage.indices.tolist() == [corners] * 2
    assert not stage.is_pivot.any()
    for row, columns in enumerate(record.columns.tolist()):
        start = int((BATCH["input_ids"][row] == IMAGE_TOKEN).nonzero()[0])
        expected = [start + corner for corner in corners]
        assert [c for c in columns if start <= c < start + 36] == expected


def assert_receives_means(
    model: Any, inputs: Inputs, images_of: Sequence[int], **more: Any
) -> None:
    """Check that row r of the prompts receives the means of ``images_of[r]`` images, by groups that
    are near each other."""
    embeds, [choice] = received(model, {**inputs, **more}, budget=0.3, fuse_into="selection")
    selection = choice.selection
    assert isinstance(selection, PooledSelection)
    with apply_clasp(model, fuse_into="selection") as handle, torch.no_grad():
        adapter = handle.adapter
        vision = adapter.encode(model, inputs)
        image = 0
        for row, count in enumerate(images_of):
            for _ in range(count):
                groups = selection.groups[image]
                assert ((groups >= 0) == (torch.arange(len(groups)) < vision.counts[image])).all()
                means = torch.stack(
                    [
                        vision.features[image, groups == group].mean(0)
                        for group in range(int(selection.counts[image]))
                    ]
                )
                repeats = len(embeds) // len(images_of)
                for beam in range(repeats):
                    assert_has(embeds[row * repeats + beam], adapter.project(model, means[None])[0])
                image += 1
    assert image == len(selection.groups)


IMAGES = {"idefics3": (5, 3, 0), "smolvlm": (5, 3, 0)}


@pytest.mark.parametrize("family", PROCESSORS)
def test_every_family_receives_means(family: str) -> None:
    model = SPECIMENS[family].build()
    assert_receives_means(model, batch_of(family), IMAGES.get(family, (1, 1, 0)))


@pytest.mark.parametrize("family", ["idefics3", "internvl"])
def test_views_that_are_read_off_the_prompt_do_not_depend_on_beams(family: str) -> None:
    model = SPECIMENS[family].build()
    assert_receives_means(model, batch_of(family), IMAGES.get(family, (1, 1, 0)), num_beams=3)


@pytest.mark.parametrize("family", PROCESSORS)
def test_places_are_the_same_in_every_view_of_an_image(family: str) -> None:
    """In the images green encodes the row and red the column, so colours tell the place."""
    model = SPECIMENS[family].build()
    processor, inputs = inputs_of(family, model)
    with apply_clasp(model) as handle:
        groups, views = handle.adapter.groups(inputs), handle.adapter.views(inputs)
    places = token_places(groups, views)
    counts = [count for group in groups for count in group.counts]
    assert places.shape == (len(counts), max(counts), 3) and places.dtype == torch.float32
    colors = torch.zeros(sum(counts), 3)
    for view in views:
        seen = as_seen(LoadedModel(model, processor, "it"), view.pixels)
        pixels = torch.from_numpy(np.asarray(seen).copy()).float()
        for token, (left, top, right, bottom) in zip(view.tokens, view.boxes, strict=True):
            colors[token] = pixels[top:bottom, left:right].mean((0, 1))
    for image, (own, count) in enumerate(zip(colors.split(counts), counts, strict=True)):
        frame, y, x = places[image, :count].T
        assert not frame.any() and not places[image, count:].any()
        assert float(y.min()) > 0 and float(x.min()) > 0
        assert float(torch.stack([y.min() + y.max(), x.min() + x.max()]).max()) == pytest.approx(1)
        picture = own[:, 2] > 250  # padding is not blue
        for place, color in ((y, own[:, 1]), (x, own[:, 0])):
            line = torch.stack([place, torch.ones_like(place)], 1)[picture]
            fit = torch.linalg.lstsq(line, color[picture, None]).solution
            assert float(fit[0]) > 40
            assert float((line @ fit - color[picture, None]).abs().max()) < 12


def test_the_view_with_the_most_tokens_has_the_shape_of_the_image() -> None:
    # The whole image, squeezed to a square, and its tiles; and two images in one view.
    whole = grid_view(torch.zeros(3, 8, 8), 2, 2, first_token=0)
    tiles = grid_view(torch.zeros(3, 8, 16), 2, 4, first_token=4)
    both = grid_view(torch.zeros(3, 8, 8), 2, 2, first_token=12)
    group = VisualGroup("image", "pixel_values", IMAGE_TOKEN, (12, 2, 2))
    first, upper, lower = token_places([group], [whole, tiles, both]).tolist()
    columns = [0.125, 0.375, 0.625, 0.875]
    assert first[:4] == [[0, y, x] for y in (0.125, 0.375) for x in (0.25, 0.75)]
    assert first[4:] == [[0, y, x] for y in (0.125, 0.375) for x in columns]
    assert upper[:2] == lower[:2] == [[0, 0.25, 0.25], [0, 0.25, 0.75]]


@pytest.mark.parametrize("family", ["llava_next", "llava_onevision", "internvl"])
def test_the_whole_and_the_tiles_are_pooled_together(family: str) -> None:
    model = SPECIMENS[family].build()
    _, inputs = inputs_of(family, model)
    with apply_clasp(model) as handle:
        views = handle.adapter.views(inputs)
    assert len(views) > 2
    _, [choice] = received(model, inputs, budget=4)
    assert isinstance(choice.selection, PooledSelection)
    numbers = torch.zeros(choice.selection.groups.shape, dtype=torch.long)
    view_of = {token: number for number, view in enumerate(views) for token in view.tokens}
    first = 0
    for image, count in enumerate((choice.selection.groups >= 0).sum(1).tolist()):
        numbers[image, :count] = torch.tensor([view_of[first + n] for n in range(count)])
        for group in range(4):
            of_group = numbers[image][choice.selection.groups[image] == group]
            assert len(of_group.unique()) == len(numbers[image, :count].unique()) > 1
        first += count


def test_deepstack_features_are_pooled_too() -> None:
    """Against the language model alone, which is given the means of all features."""
    model = build("qwen3_vl")
    inputs = with_video(model, (1, 1))
    inputs = {name: value[:1] if len(value) == 2 else value for name, value in inputs.items()}
    choices: list[Choice] = []
    with (
        apply_clasp(model, budget=4, rule="pool") as handle,
        handle.watched(choices.append),
        torch.no_grad(),
    ):
        pruned = model(**inputs).logits
        record, vision = handle.last, handle.adapter.encode(model, inputs)
    assert record is not None and len(vision.deeper) == 3
    selection = choices[0].selection
    assert isinstance(selection, PooledSelection)
    assert selection.counts.tolist() == [4, 4]

    def means(features: Tensor) -> Tensor:
        return torch.cat(
            [
                torch.stack([tokens[own == group].mean(0) for group in range(4)])
                for tokens, own in zip(features, selection.groups, strict=True)
            ]
        )

    columns = record.columns[0]
    ids = inputs["input_ids"][:, columns]
    is_visual = inputs["mm_token_type_ids"][:, columns] > 0
    with torch.no_grad():
        embeds = model.get_input_embeddings()(ids)
        embeds[is_visual] = means(vision.features)
        positions, _ = model.model.get_rope_index(
            inputs["input_ids"],
            image_grid_thw=inputs["image_grid_thw"],
            video_grid_thw=inputs["video_grid_thw"],
            mm_token_type_ids=inputs["mm_token_type_ids"],
        )
        hidden = model.model.language_model(
            inputs_embeds=embeds,
            position_ids=positions[..., columns],
            visual_pos_masks=is_visual,
            deepstack_visual_embeds=[means(features) for features in vision.deeper],
        )[0]
        torch.testing.assert_close(pruned, model.lm_head(hidden), atol=1e-4, rtol=0)


def test_a_video_is_pooled_within_its_frames() -> None:
    model = build("qwen3_vl")
    inputs = with_video(model, (1, 1))
    _, [choice] = received(model, inputs, budget=4)
    assert isinstance(choice.selection, PooledSelection)
    _, video = choice.selection.groups.tolist()
    # Two frames of 2 x 4 tokens, of which each is pooled to 1 x 2.
    assert video == [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]


def test_a_class_token_that_is_a_visual_token_is_refused_before_the_tower_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_llava(vision_feature_select_strategy="full")
    inputs = {
        **prompts([1, 5, *[IMAGE_TOKEN] * 37, 7]),
        "pixel_values": images(1),
    }

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the tower has run")

    monkeypatch.setattr("clasp_kernels.models.families.llava.LlavaAdapter.encode", fail)
    with (
        apply_clasp(model, budget=9, profile=tiny_profile(), rule="pool"),
        pytest.raises(ValueError, match=r"rule 'pool' uses where tokens lie .* but 1 of .* llava"),
    ):
        model(**inputs)


def test_the_class_tokens_of_a_video_are_refused() -> None:
    model = build("video_llava")
    video, image = [VIDEO_TOKEN] * (4 * 37), [IMAGE_TOKEN] * 36
    with apply_clasp(model, budget=9, rule="pool"):
        with pytest.raises(ValueError, match=r"but 4 of the tokens that video_llava makes"):
            model(
                input_ids=torch.tensor([[3, *video, 7, *image, 8]]),
                pixel_values_videos=images(4)[None],
                pixel_values_images=images(1),
            )
        model(input_ids=torch.tensor([[3, *image, 8]]), pixel_values_images=images(1))


def test_places_cost_other_rules_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("places were computed")

    monkeypatch.setattr("clasp_kernels.models.families.llava.LlavaAdapter.views", fail)
    model = tiny_llava()
    for rule in rules.rule_names():
        with apply_clasp(model, budget=9, profile=tiny_profile(), rule=rule):
            if rule == "pool":
                with pytest.raises(AssertionError, match="places were computed"):
                    model(**BATCH)
            else:
                model(**BATCH)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"schedule": Schedule({0: 9, 2: 4})},
            r"schedule must prune only before the decoder, as Schedule\(\{0: 64\}\) does, with "
            r"rule='pool', which averages tokens, .* got Schedule\(\{0: 9, 2: 4\}\)",
        ),
        ({"merge": True}, r"merge must be False with rule='pool', which averages tokens itself"),
    ],
)
def test_what_pooling_cannot_be_combined_with_is_refused(
    settings: dict[str, Any], message: str
) -> None:
    model = tiny_llava()
    with pytest.raises(ValueError, match=message):
        apply_clasp(model, profile=tiny_profile(), rule="pool", **settings)
    apply_clasp(model, profile=tiny_profile(), rule="pool", schedule=Schedule({0: 9})).remove()


@pytest.mark.usefixtures("own_rules")
def test_a_rule_that_only_uses_places_is_refused_inside_the_decoder() -> None:
    given: list[Tensor] = []

    @rules.register_rule("left half", uses_salience=False, uses_places=True)
    def left_half(
        features: Tensor,
        salience: Tensor,
        budget: Sequence[int],
        *,
        places: Tensor,
        valid: Tensor | None = None,
    ) -> Selection:
        given.append(places)
        return rules.attention(features, -places[..., 2], budget, valid=valid)

    model = tiny_llava()
    message = "rule='left half', which uses the places of tokens, which it is only given before"
    with pytest.raises(ValueError, match=message):
        apply_clasp(model, profile=tiny_profile(), rule="left half", schedule=Schedule({2: 9}))
    # But its tokens may be merged.
    with apply_clasp(
        model, profile=tiny_profile(), rule="left half", budget=18, merge=True
    ) as handle:
        model(**BATCH)
    assert handle.last is not None
    half = [6 * row + column for row in range(6) for column in range(3)]
    assert handle.last.stages[0].indices.tolist() == [half] * 2
    assert given[0][0, 7].tolist() == [0, 0.25, 0.25]


def spoiled(groups: Tensor) -> PooledSelection:
    indices = torch.tensor([[0, 2]])
    return PooledSelection(indices, indices < 0, torch.tensor([2]), groups)


@pytest.mark.usefixtures("own_rules")
@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (
            Selection(torch.tensor([[0, 2]]), torch.zeros(1, 2).bool(), torch.tensor([2])),
            TypeError,
            "must return a PooledSelection, got Selection",
        ),
        (
            spoiled(torch.tensor([[0, 0, 1]])),
            ValueError,
            r"must return groups of shape \[1, 36\] and torch.int64, got \[1, 3\]",
        ),
        (
            spoiled(torch.tensor([[0.0, 0, 1, *[-1] * 33]])),
            ValueError,
            r"must return groups .* got \[1, 36\] and torch.float32",
        ),
        (
            spoiled(torch.tensor([[0, 0, 1, 2, *[-1] * 32]])),
            ValueError,
            r"must return groups from -1, for none, to 1, .* got \[-1, 0, 1, 2\]",
        ),
        (
            spoiled(torch.tensor([[0, 0, 1, -2, *[-1] * 32]])),
            ValueError,
            "must return groups from -1",
        ),
        (
            spoiled(torch.tensor([[1, 0, 0, *[-1] * 33]])),
            ValueError,
            r"must put each kept token in the group of its place, 0..1 in turn, got \[1, 0\]",
        ),
        (
            spoiled(torch.tensor([[0, 0, *[-1] * 34]])),
            ValueError,
            r"must put each kept token in the group of its place, .* got \[0, -1\]",
        ),
    ],
)
def test_what_a_pooling_rule_returns_is_checked(
    returned: Any, error: type[Exception], message: str
) -> None:
    @rules.register_rule("spoiled", pools=True)
    def rule(
        features: Tensor, salience: Tensor, budget: Sequence[int], *, valid: Tensor | None = None
    ) -> Any:
        return returned

    model = tiny_llava()
    inputs = {**prompts([1, "image", 7]), "pixel_values": images(1)}
    with (
        apply_clasp(model, budget=2, profile=tiny_profile(), rule="spoiled"),
        pytest.raises(error, match=f"rule 'spoiled' {message}"),
    ):
        model(**inputs)


def test_padding_may_not_be_averaged() -> None:
    valid = torch.tensor([[True, True, False]])
    selection = PooledSelection(
        torch.tensor([[0]]), torch.tensor([[False]]), torch.tensor([1]), torch.tensor([[0, 0, 0]])
    )
    message = r"rule 'pool' must put only valid tokens in groups, got \[2\]"
    with pytest.raises(ValueError, match=message):
        check_selection(rules.find_rule("pool"), selection, [1], 3, valid)
