"""Pictures of the kept tokens, checked pixel by pixel."""

import numpy as np
import pytest
from PIL import Image

from clasp_kernels.visualize import (
    COMPLETION_COLOR,
    PIVOT_COLOR,
    Card,
    Dropped,
    contact_sheet,
    draw_selection,
    save_picture,
    selection_picture,
)

RED = (200, 30, 40)
DOT = (244, 244, 246)


def pixels(picture, box=None):
    return np.asarray(picture.crop(box) if box else picture).astype(int)


def count(picture, color, box=None):
    return int((pixels(picture, box) == color).all(-1).sum())


def patch(number, columns=4, side=48):
    left, top = number % columns * side, number // columns * side
    return left, top, left + side, top + side


@pytest.fixture
def overlay():
    """Draw a 4 x 4 grid on red: pivots at 1 and 14, completion at 4, the rest dropped."""
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
    assert overlay.getpixel((left + 12, top + 8)) == PIVOT_COLOR  # the corner mark of a pivot
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


def test_boxes_say_where_patches_are_and_the_rest_stays():
    image = Image.new("RGB", (60, 30), RED)
    boxes = [(0, 0, 20, 30), (20, 0, 30, 10), (40, 10, 60, 30)]
    drawn = draw_selection(image, [2], [True], boxes=boxes, size=600)
    assert drawn.size == (600, 300)
    assert (pixels(drawn, (0, 0, 200, 300)) != RED).all(-1).all()
    assert (pixels(drawn, (200, 0, 300, 100)) != RED).all(-1).all()
    assert drawn.getpixel((400, 100)) == drawn.getpixel((599, 299)) == PIVOT_COLOR
    assert drawn.getpixel((500, 200)) == RED
    for outside in ((200, 100, 400, 300), (300, 0, 600, 100)):
        assert (pixels(drawn, outside) == RED).all()


def test_a_grid_and_its_boxes_look_alike():
    image = Image.effect_noise((96, 64), 80)
    boxes = [(32 * (n % 3), 32 * (n // 3), 32 * (n % 3 + 1), 32 * (n // 3 + 1)) for n in range(6)]
    stages = [Dropped("first", [0, 1]), Dropped("second", [3, 5])]
    by_grid = draw_selection(image, [2, 4], [True, False], (2, 3), dropped=stages)
    by_boxes = draw_selection(image, [2, 4], [True, False], boxes=boxes, dropped=stages)
    assert by_grid.tobytes() == by_boxes.tobytes()


def test_small_boxes_make_a_larger_picture():
    image = Image.new("RGB", (1000, 10), RED)
    assert draw_selection(image, [], [], boxes=[(0, 0, 2, 2)], size=100).size == (2000, 20)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({}, "one of grid and boxes must say where patches are, got neither"),
        ({"grid": (1, 1), "boxes": []}, "one of grid and boxes .*, got both"),
        (
            {"boxes": [(0, 0, 8, 8), (0, 0, 9, 8)]},
            r"got \(0, 0, 9, 8\) for patch 1",
        ),
        ({"boxes": [(4, 0, 4, 8)]}, r"got \(4, 0, 4, 8\) for patch 0"),
    ],
)
def test_what_says_no_places_is_named(where, message):
    with pytest.raises(ValueError, match=message):
        draw_selection(Image.new("RGB", (8, 8)), [0], [True], **where)


def test_indices_and_pivots_must_be_aligned():
    with pytest.raises(ValueError, match="shorter"):
        draw_selection(Image.new("RGB", (8, 8)), [0, 1], [True], (4, 4))


def staged(side, per_stage=4, stages=4):
    """Draw a row of kept patches, and a row of patches dropped at each stage, on flat red."""
    image = Image.new("RGB", (per_stage * side, (stages + 1) * side), RED)
    rows = [list(range(n * per_stage, (n + 1) * per_stage)) for n in range(stages + 1)]
    kept, *dropped = rows
    stages_of = [Dropped(f"after layer {n}", numbers) for n, numbers in enumerate(dropped)]
    grid, size = (stages + 1, per_stage), max(image.size)
    drawn = draw_selection(image, kept, [True] * 4, grid, size=size, dropped=stages_of)
    return drawn, rows, draw_selection(image, kept, [True] * 4, grid, size=size)


@pytest.mark.parametrize("side", [48, 24, 18, 12, 9])
def test_each_stage_has_one_dot_more_than_the_one_before(side):
    drawn, (_, *dropped), _ = staged(side)
    one = count(drawn, DOT, patch(dropped[1][0], side=side))
    assert one >= 1
    for stage, numbers in enumerate(dropped):
        for number in numbers:
            assert count(drawn, DOT, patch(number, side=side)) == stage * one


def test_a_later_stage_is_less_dark_and_still_grey():
    drawn, (_, *dropped), _ = staged(48)
    levels = [drawn.getpixel(patch(numbers[0])[:2]) for numbers in dropped]
    assert all(min(level) == max(level) for level in levels)
    assert sorted(set(levels)) == levels
    assert levels[-1][0] < np.mean(RED)


def test_the_last_stage_is_dark_enough_for_its_dots_on_white():
    white = Image.new("RGB", (96, 48), "white")
    stages = [Dropped("first", [0]), Dropped("last", [1])]
    last = draw_selection(white, [], [], (1, 2), size=96, dropped=stages).crop((48, 0, 96, 48))
    assert last.getpixel((0, 0))[0] < 190
    assert count(last, DOT) >= 10


def test_stages_change_neither_the_kept_patches_nor_those_dropped_first():
    drawn, (kept, first, *_), without = staged(48)
    for number in (*kept, *first):
        assert (pixels(drawn, patch(number)) == pixels(without, patch(number))).all()


@pytest.mark.parametrize("side", [*range(4, 20), 31, 48])
def test_dots_stay_in_their_patch_however_many(side):
    stages = [Dropped(f"{number}", [number]) for number in range(14)]
    row = Image.new("RGB", (14 * side, side), RED)
    drawn = pixels(draw_selection(row, [], [], (1, 14), size=14 * side, dropped=stages))
    for number in range(14):
        ours = drawn[:, number * side : (number + 1) * side]
        level = ours[0, 0]
        assert (ours[[0, -1]] == level).all()
        assert (ours[:, [0, -1]] == level).all()


def test_one_stage_is_drawn_as_if_it_had_not_been_named():
    image = Image.effect_noise((90, 60), 80)
    kept, rest = [0, 7], [1, 2, 3, 4, 5, 6, 8]
    one = [Dropped("after layer 2", rest)]
    plain = draw_selection(image, kept, [True, False], (3, 3))
    named = draw_selection(image, kept, [True, False], (3, 3), dropped=one)
    assert plain.tobytes() == named.tobytes()
    page = selection_picture(image, plain, "Why?", ["one"])
    assert selection_picture(image, plain, "Why?", ["one"], dropped=one).tobytes() == page.tobytes()
    cards = [Card(plain, "one")]
    sheet = contact_sheet(cards, "Heading", stages=["after layer 2"])
    assert sheet.tobytes() == contact_sheet(cards, "Heading").tobytes()


@pytest.mark.parametrize(
    ("dropped", "message"),
    [
        ([[1], [2, 4]], r"dropped must hold indices in 0..3, got 4 after layer 1"),
        ([[1], [2, -1]], r"dropped must hold indices in 0..3, got -1 after layer 1"),
        ([[1, 2], [2, 3]], "2, dropped after layer 1, is also dropped after layer 0"),
        ([[1, 2], [0, 3]], "0, dropped after layer 1, is also kept"),
        ([[1], [3]], "dropped must hold every patch that indices do not, but 2 is in neither"),
    ],
)
def test_a_patch_is_kept_or_dropped_once(dropped, message):
    stages = [Dropped(f"after layer {n}", numbers) for n, numbers in enumerate(dropped)]
    with pytest.raises(ValueError, match=message):
        draw_selection(Image.new("RGB", (8, 8)), [0, -1], [True, False], (2, 2), dropped=stages)


def test_selection_picture_shows_image_and_overlay_side_by_side(overlay):
    page = selection_picture(Image.new("RGB", (64, 64), RED), overlay, "Why?", ["one", "two"])
    width, height = overlay.size
    top = next(y for y in range(page.height) if page.getpixel((20, y)) == RED)
    shown = page.crop((16, top, 16 + width, top + height))
    assert count(shown, RED) == width * height
    beside = page.crop((32 + width, top, 32 + 2 * width, top + height))
    assert (pixels(beside) == pixels(overlay)).all()


def test_selection_picture_shows_the_overlay_below(overlay):
    page = selection_picture(Image.new("RGB", (64, 64), RED), overlay, "Why?", [], below=True)
    beside = selection_picture(Image.new("RGB", (64, 64), RED), overlay, "Why?", [])
    width, height = overlay.size
    assert page.height >= beside.height + height
    top = next(y for y in range(page.height) if page.getpixel((20, y)) == RED)
    assert count(page.crop((16, top, 16 + width, top + height)), RED) == width * height
    under = page.crop((16, top + height + 16, 16 + width, top + 2 * height + 16))
    assert (pixels(under) == pixels(overlay)).all()


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
    """Crop the legend to its columns that are not white."""
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


STAGES = [
    Dropped(when, range(count))
    for when, count in (("before the LLM", 44), ("after layer 2", 40), ("after layer 15", 1040))
]


def inks(page, top, bottom):
    """Count the pixels of each colour in a band of the page; white counts as 0."""
    colors, counts = np.unique(
        pixels(page, (0, top, page.width, bottom)).reshape(-1, 3), axis=0, return_counts=True
    )
    return {tuple(color): int(n) for color, n in zip(colors.tolist(), counts, strict=True)} | {
        (255, 255, 255): 0
    }


def test_a_legend_that_is_too_wide_wraps_and_loses_nothing():
    found = []
    for width, rows in ((700, 1), (420, 2), (100, 3)):
        overlay = Image.new("RGB", (width, 96), RED)
        page = selection_picture(overlay, overlay, "", [], dropped=STAGES)
        top = 64 + overlay.height
        assert page.height == top + 36 + 32 * (rows - 1) + 16
        assert (pixels(page, (page.width - 16, top, page.width, page.height)) == 255).all()
        found.append(inks(page, top, page.height))
    assert found[0] == found[1] == found[2]


def test_the_stages_stand_in_a_row_of_their_own_where_one_row_is_too_short():
    overlay = Image.new("RGB", (550, 96), RED)
    page = selection_picture(overlay, overlay, "", [], dropped=STAGES)
    above, below = (0, 160, page.width, 184), (0, 192, page.width, 216)
    assert count(page, PIVOT_COLOR, above) > 50
    assert count(page, DOT, above) == 0
    assert count(page, PIVOT_COLOR, below) == 0
    assert count(page, DOT, below) > 0


def test_the_legend_says_how_many_each_stage_dropped():
    overlay = Image.new("RGB", (700, 96), RED)
    pages = [
        selection_picture(
            overlay, overlay, "", [], dropped=[*STAGES[:2], Dropped("after layer 15", range(n))]
        )
        for n in (1040, 1041)
    ]
    assert pages[0].size == pages[1].size
    assert pages[0].tobytes() != pages[1].tobytes()


def test_a_stage_with_a_long_name_widens_the_page():
    overlay = Image.new("RGB", (100, 96), RED)
    long = [Dropped("before the LLM", []), Dropped("after a layer with a name " * 5, [])]
    page = selection_picture(overlay, overlay, "", [], dropped=long)
    assert (pixels(page, (page.width - 16, 0, page.width, page.height)) == 255).all()
    assert page.width > 1000


def test_a_contact_sheet_names_the_stages_above_its_cards():
    cards = [Card(Image.new("RGB", (100, 80), RED), "one")]
    plain = contact_sheet(cards, "Heading")
    sheet = contact_sheet(cards, "Heading", stages=[stage.when for stage in STAGES])
    assert sheet.width == plain.width
    assert sheet.height == plain.height + 2 * 32
    band = (0, 50, sheet.width, 138)
    assert count(sheet, DOT, band) > count(plain, DOT, band) == 0
    assert count(sheet, RED) == 100 * 80


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
