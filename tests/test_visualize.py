"""Pictures of what was kept, looked at pixel by pixel."""

import numpy as np
import pytest
from PIL import Image

from clasp_kernels.visualize import (
    COMPLETION_COLOR,
    PIVOT_COLOR,
    Card,
    contact_sheet,
    draw_selection,
    save_picture,
    selection_picture,
)

RED = (200, 30, 40)


def pixels(picture, box=None):
    return np.asarray(picture.crop(box) if box else picture).astype(int)


def count(picture, color, box=None):
    return int((pixels(picture, box) == color).all(-1).sum())


def patch(number, columns=4, side=48):
    left, top = number % columns * side, number // columns * side
    return left, top, left + side, top + side


@pytest.fixture
def overlay():
    """A 4 x 4 grid on red: pivots at 1 and 14, completion at 4, the rest dropped."""
    image = Image.new("RGB", (64, 64), RED)
    return draw_selection(image, [1, 4, 14, -1], [True, False, True, False], (4, 4), size=192)


def test_each_kept_patch_is_framed_in_its_color_and_keeps_its_own_inside(overlay):
    for number, frame in ((1, PIVOT_COLOR), (4, COMPLETION_COLOR), (14, PIVOT_COLOR)):
        left, top, right, bottom = patch(number)
        for corner in ((right - 1, top), (left, bottom - 1), (right - 1, bottom - 1), (left, top)):
            assert overlay.getpixel(corner) == frame
        assert overlay.getpixel((left + 24, top + 24)) == RED


def test_pivots_and_completion_differ_without_color_too(overlay):
    thin = count(overlay, COMPLETION_COLOR, patch(4))
    assert count(overlay, PIVOT_COLOR, patch(1)) > 1.8 * thin
    left, top, *_ = patch(1)
    assert overlay.getpixel((left + 12, top + 8)) == PIVOT_COLOR  # the corner mark
    left, top, *_ = patch(4)
    assert overlay.getpixel((left + 12, top + 8)) == RED


def test_dropped_patches_are_grey_and_darker(overlay):
    for number in set(range(16)) - {1, 4, 14}:
        inside = pixels(overlay, patch(number))
        assert (inside.max(-1) == inside.min(-1)).all()
        assert inside.mean() < np.mean(RED)


def test_dropped_patches_keep_some_contrast_even_at_night():
    night = Image.new("RGB", (64, 64), (10, 10, 30))
    night.paste((250, 250, 250), (32, 0, 64, 64))
    dimmed = pixels(draw_selection(night, [], [], (4, 4), size=192))[..., 0]
    assert dimmed[:, :90].max() >= 30
    assert dimmed[:, 102:].min() - dimmed[:, :90].max() >= 60


def test_the_picture_keeps_the_shape_of_the_image():
    wide = draw_selection(Image.new("RGB", (200, 100)), [0], [True], (5, 10), size=400)
    assert wide.size == (400, 200)
    assert draw_selection(Image.new("L", (30, 30)), [0], [True], (7, 7), size=100).size == (98, 98)


def test_the_input_image_is_left_alone():
    image = Image.new("RGB", (192, 192), RED)
    draw_selection(image, [0], [True], (4, 4), size=192)
    assert count(image, RED) == 192 * 192


@pytest.mark.parametrize(
    ("indices", "grid", "message"),
    [
        ([16], (4, 4), r"indices must be in 0..15 or -1, got 16"),
        ([-2], (4, 4), r"indices must be in 0..15 or -1, got -2"),
        ([0], (0, 4), r"grid must be \(rows, columns\), each at least 1, got \(0, 4\)"),
    ],
)
def test_what_does_not_fit_is_named(indices, grid, message):
    with pytest.raises(ValueError, match=message):
        draw_selection(Image.new("RGB", (8, 8)), indices, [True], grid)


def test_indices_and_pivots_must_be_aligned():
    with pytest.raises(ValueError, match="shorter"):
        draw_selection(Image.new("RGB", (8, 8)), [0, 1], [True], (4, 4))


def test_selection_picture_shows_image_and_overlay_side_by_side(overlay):
    page = selection_picture(Image.new("RGB", (64, 64), RED), overlay, "Why?", ["one", "two"])
    width, height = overlay.size
    top = next(y for y in range(page.height) if page.getpixel((20, y)) == RED)
    shown = page.crop((16, top, 16 + width, top + height))
    assert count(shown, RED) == width * height
    beside = page.crop((32 + width, top, 32 + 2 * width, top + height))
    assert (pixels(beside) == pixels(overlay)).all()


def test_selection_picture_has_title_legend_and_caption(overlay):
    page = selection_picture(overlay, overlay, "Why?", ["one"])
    assert (pixels(page, (0, 0, page.width, 40)) < 100).any()
    below = (0, 48 + overlay.height, page.width, page.height)
    for color in (PIVOT_COLOR, COMPLETION_COLOR):
        assert count(page, color, below) > 50
    longer = selection_picture(overlay, overlay, "Why?", ["one", "two " * 60])
    assert longer.height > page.height + 2 * 26 - 1
    assert longer.width == page.width


def legend_of(page, top):
    """The columns that the legend has ink in, from its first to its last."""
    band = pixels(page, (0, top, page.width, top + 30))
    columns = np.nonzero((band < 255).any((0, -1)))[0]
    return band[:, columns[0] : columns[-1] + 1]


@pytest.mark.parametrize("size", [(100, 400), (1, 8000)])
def test_the_legend_is_whole_beside_a_narrow_picture(size):
    wide = Image.new("RGB", (576, 96), RED)
    whole = legend_of(selection_picture(wide, wide, "", []), 64 + wide.height)
    image = Image.new("RGB", size, RED)
    narrow = draw_selection(image, [0], [True], (12, 12))
    page = selection_picture(image, narrow, "", [])
    assert (legend_of(page, 64 + narrow.height) == whole).all()
    sheet = contact_sheet([Card(narrow, "one")], "")
    assert (legend_of(sheet, 50) == whole).all()


def test_contact_sheet_shows_every_card_whole():
    colors = [(200, 30, 40), (30, 160, 60), (40, 60, 200), (120, 20, 120)]
    cards = [
        Card(Image.new("RGB", (200, 80), color), f"Question {n} " * n, ["answer"] * n)
        for n, color in enumerate(colors, start=1)
    ]
    sheet = contact_sheet(cards, "Heading", columns=3)
    for color in colors:
        ys, xs = np.nonzero((pixels(sheet) == color).all(-1))
        assert len(ys) == 200 * 80
        assert (xs.max() - xs.min() + 1, ys.max() - ys.min() + 1) == (200, 80)
    assert sheet.width == 16 + 3 * 216


def test_a_contact_sheet_of_nothing_is_refused():
    with pytest.raises(ValueError, match="cards must hold at least one card, got none"):
        contact_sheet([], "Heading")


@pytest.mark.parametrize(("name", "kind"), [("a.png", "PNG"), ("a.jpg", "JPEG"), ("a", "PNG")])
def test_save_makes_the_folder_and_follows_the_name(tmp_path, name, kind):
    path = tmp_path / "new" / "folder" / name
    save_picture(Image.new("RGB", (8, 8), RED), path)
    with Image.open(path) as written:
        assert written.format == kind
        assert written.size == (8, 8)
