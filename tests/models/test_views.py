"""The views and boxes of visual tokens, tested through processor and vision tower.

Two tests together show that a token's box is right. Images whose colours encode positions show that
each view is a complete picture. And changing the pixels in a token's box changes that token and no
other: the input of the first vision layer is compared, where a patch only depends on its own
pixels. Half of the boxes change at a time, as many ways as tell all tokens apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from processors import PROCESSORS, processor_for
from test_processors import asked
from transformers import LlavaOnevisionForConditionalGeneration

from clasp_kernels.cli.loading import LoadedModel
from clasp_kernels.cli.picture import as_seen
from clasp_kernels.models import ClaspHandle, apply_clasp
from clasp_kernels.models.adapter import Adapter
from clasp_kernels.models.families.internvl import _grid_of_tiles
from clasp_kernels.models.specimens import SPECIMENS, tiny_llava, tiny_llava_onevision
from clasp_kernels.policy import CategoryPolicy, Profile

WIDE, TALL = (96, 40), (30, 72)
Inputs = dict[str, torch.Tensor]


def placed_colors(size: tuple[int, int]) -> Image.Image:
    """Return an image in which red encodes the column and green the row; blue is constant."""
    width, height = size
    red = (torch.arange(width) + 0.5).mul(255 / width).expand(height, width)
    green = (torch.arange(height) + 0.5).mul(255 / height)[:, None].expand(height, width)
    colors = torch.stack([red, green, torch.full((height, width), 255.0)], -1)
    return Image.fromarray(colors.round().byte().numpy())


def inputs_of(family: str, model: Any) -> tuple[Any, Inputs]:
    """Return the processor, and the inputs for a wide and a tall image in one batch."""
    processor = processor_for(family, model)
    prompts = [asked(processor, 1, "what is it")] * 2
    images = [[placed_colors(WIDE)], [placed_colors(TALL)]]
    return processor, dict(
        processor(images=images, text=prompts, return_tensors="pt", padding=True)
    )


def first_layer(model: Any) -> ClaspHandle:
    """Apply CLASP with the input of the first vision layer as the only fused state."""
    profile = Profile(
        name="first",
        model_type=model.config.model_type,
        layers=(0.0,),
        source="a test",
        categories={"general": CategoryPolicy((1.0,), 0.5)},
    )
    return apply_clasp(model, profile=profile, fuse_into="selection")


def tokens_of(model: Any, adapter: Adapter, inputs: Mapping[str, Any]) -> torch.Tensor:
    """Return the fused state of all visual tokens of all items, [tokens, width]."""
    vision = adapter.encode(model, inputs)
    [layer] = vision.fused_layers
    return torch.cat([item[:count] for item, count in zip(layer, vision.counts, strict=True)])


def changes(
    model: Any, adapter: Adapter, inputs: Inputs, groups: Iterable[Set[int]]
) -> Iterator[tuple[Set[int], torch.Tensor]]:
    """Yield each group of tokens, and the change of all tokens if the boxes of these change."""
    names = [name for name in adapter.pixel_arguments if inputs.get(name) is not None]
    before = tokens_of(model, adapter, inputs)
    with torch.enable_grad():
        pixels = {name: inputs[name].clone().requires_grad_() for name in names}
        views = adapter.views({**inputs, **pixels})
        for group in groups:
            # The gradient is 1 at the input pixels inside the boxes.
            shown = [
                view.pixels[:, top:bottom, left:right].sum()
                for view in views
                for token, (left, top, right, bottom) in zip(view.tokens, view.boxes, strict=True)
                if token in group
            ]
            inside = torch.autograd.grad(
                torch.stack(shown).sum(),
                [pixels[name] for name in names],
                retain_graph=True,
                allow_unused=True,
            )
            changed = dict(inputs)
            for name, mask in zip(names, inside, strict=True):
                if mask is not None:
                    changed[name] = inputs[name] + mask
            yield group, (tokens_of(model, adapter, changed) - before).abs().amax(1)


def with_boxes(adapter: Adapter, inputs: Inputs) -> list[int]:
    return [token for view in adapter.views(inputs) for token in view.tokens]


def by_bits(tokens: Sequence[int]) -> list[Set[int]]:
    """For each bit, the tokens whose number has it, and those whose number has not.

    If a token changes in exactly the groups that it is in, then it depends on its own box alone.
    """
    groups = [
        {token for token in tokens if (token >> bit & 1) == value}
        for bit in range(max(tokens).bit_length())
        for value in (0, 1)
    ]
    return [group for group in groups if group]


def check_cover(adapter: Adapter, inputs: Inputs, without: Set[int]) -> None:
    """Check that the boxes cover each view once, and all tokens but ``without`` have a box."""
    views = adapter.views(inputs)
    placed = [token for view in views for token in view.tokens]
    assert len(placed) == len(set(placed))
    num_tokens = sum(count for group in adapter.groups(inputs) for count in group.counts)
    assert set(placed) == set(range(num_tokens)) - without
    for view in views:
        covered = torch.zeros(view.pixels.shape[1:], dtype=torch.int)
        for left, top, right, bottom in view.boxes:
            covered[top:bottom, left:right] += 1
        assert (covered == 1).all()


def check_boxes(model: Any, inputs: Inputs, without: Set[int] = frozenset()) -> None:
    with first_layer(model) as handle:
        check_cover(handle.adapter, inputs, without)
        groups = by_bits(with_boxes(handle.adapter, inputs))
        for group, change in changes(model, handle.adapter, inputs, groups):
            assert set((change > 1e-4).nonzero().flatten().tolist()) == group


@pytest.mark.parametrize("family", PROCESSORS)
def test_a_token_is_what_its_box_shows(family: str) -> None:
    model = SPECIMENS[family].build()
    check_boxes(model, inputs_of(family, model)[1])


@pytest.mark.parametrize("family", PROCESSORS)
def test_a_view_is_a_picture_of_the_image(family: str) -> None:
    model = SPECIMENS[family].build()
    processor, inputs = inputs_of(family, model)
    with apply_clasp(model) as handle:
        views = handle.adapter.views(inputs)
    for view in views:
        seen = np.asarray(as_seen(LoadedModel(model, processor, "it"), view.pixels)).astype(float)
        rows, columns = np.nonzero(seen[..., 2] > 250)  # padding is not blue
        assert len(rows) > 0.7 * seen[..., 2].size
        places = np.stack([columns, rows, np.ones(len(rows))], 1)
        for axis, channel in ((0, 0), (1, 1)):
            colors = seen[rows, columns, channel]
            slopes, *_ = np.linalg.lstsq(places, colors, rcond=None)
            assert slopes[axis] * seen.shape[1 - axis] > 80
            assert abs(slopes[1 - axis]) < 0.02
            assert np.abs(places @ slopes - colors).max() < 8


def frames(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


def test_a_class_token_has_no_place() -> None:
    model = tiny_llava(vision_feature_select_strategy="full")
    check_boxes(model, {"pixel_values": frames(2, 3, 24, 24)}, without={0, 37})


def test_each_frame_of_a_video_is_a_view() -> None:
    model = SPECIMENS["video_llava"].build()
    inputs = {
        "pixel_values_images": frames(1, 3, 24, 24),
        "pixel_values_videos": frames(1, 2, 3, 24, 24),
    }
    check_boxes(model, inputs, without={36, 73})


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_frames_and_images_of_any_size_follow_each_other(family: str) -> None:
    inputs = {
        "pixel_values": frames(32, 96),
        "image_grid_thw": torch.tensor([[1, 8, 4]]),
        "pixel_values_videos": frames(48, 96),
        "video_grid_thw": torch.tensor([[2, 4, 6]]),
    }
    check_boxes(SPECIMENS[family].build(), inputs)


def test_pixels_that_no_patch_reaches_are_left_out() -> None:
    config = tiny_llava_onevision().config
    config.vision_config.image_size = 26  # 6 patches of 4 pixels, and 2 pixels left over
    config.image_grid_pinpoints = [[26, 52]]
    model = LlavaOnevisionForConditionalGeneration(config).eval()
    inputs = {"pixel_values": frames(1, 3, 3, 26, 26), "image_sizes": torch.tensor([[20, 50]])}
    check_boxes(model, inputs)
    with apply_clasp(model) as handle:
        whole, tiles = handle.adapter.views(inputs)
    assert torch.equal(whole.pixels, inputs["pixel_values"][0, 0, :, :24, :24])
    assert torch.equal(tiles.pixels[:, :, 24:], inputs["pixel_values"][0, 2, :, 4:20, :24])


@pytest.mark.parametrize("given", ["image of many tiles", "video"])
def test_where_tokens_are_shrunk_a_box_is_most_of_its_token(given: str) -> None:
    model = tiny_llava_onevision(vision_aspect_ratio="anyres_max_1")
    inputs = {"pixel_values_videos": frames(1, 2, 3, 24, 24)}
    if given != "video":
        inputs = {"pixel_values": frames(1, 5, 3, 24, 24), "image_sizes": torch.tensor([[48, 40]])}
    with first_layer(model) as handle:
        check_cover(handle.adapter, inputs, frozenset())
        alone = [{token} for token in with_boxes(handle.adapter, inputs)]
        for token, change in changes(model, handle.adapter, inputs, alone):
            assert {int(change.argmax())} == token


@pytest.mark.parametrize("grid", [(1, 6), (6, 1), (2, 3), (3, 2)])
def test_tiles_are_arranged_as_they_look_like_the_whole(grid: tuple[int, int]) -> None:
    rows, columns = grid
    image = torch.nn.functional.interpolate(frames(1, 3, 5, 5), (24 * rows, 24 * columns))
    whole = torch.nn.functional.interpolate(image, (24, 24), mode="area")[0]
    tiles = [part for row in image[0].split(24, 1) for part in row.split(24, 2)]
    assert _grid_of_tiles(torch.stack(tiles), whole) == grid
