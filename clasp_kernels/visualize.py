"""Pictures of a selection: pivots, completion and dropped tokens drawn over the image.

Kept patches keep their colors and get a frame: thick orange with a corner mark for pivots, thin sky
blue for completion. Dropped patches become dark and gray. The two frame colors differ under every
common color blindness, and the corner mark distinguishes them without color. If tokens are dropped
at several stages, the patches of each stage are less dark than those of the previous stage and
carry one more dot: none at the first stage, one at the second, and so on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from math import ceil, sqrt
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

PIVOT_COLOR = (230, 159, 0)
"""The orange of Okabe and Ito, as red, green and blue."""
COMPLETION_COLOR = (86, 180, 233)
"""The sky blue of Okabe and Ito."""

KEPT = ("pivot: most attended", "completion: least covered")
"""The legend of the two frames, for CLASP: of pivots, and of the other kept patches."""

_INK = (28, 30, 34)
_MUTED = (104, 108, 116)
_PAPER = (255, 255, 255)
_CASING = (12, 12, 14)
# Dropped patches keep a third of their contrast, above a floor that leaves night scenes readable.
# The last of several stages keeps more, but stays dark enough for light dots to show.
_DIMMED_CONTRAST, _DIMMED_FLOOR = 0.33, 36
_LAST_CONTRAST, _LAST_FLOOR = 0.52, 44
_DOT = (244, 244, 246)
_MARGIN = 16
# The smallest side of a drawn patch, in pixels.
_LEAST_SIDE = 4

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Box = tuple[int, int, int, int]
_Entry = tuple[str, Image.Image]


@dataclass(frozen=True)
class Dropped:
    """The patches that one stage of pruning dropped."""

    when: str
    """The words after "dropped" in a legend: "before the LLM", "after layer 2"."""
    indices: Sequence[int]
    """Patch numbers in row-major order."""


@dataclass(frozen=True)
class Card:
    """One picture of a contact sheet: an overlay with its title and caption lines."""

    overlay: Image.Image
    title: str
    lines: Sequence[str] = ()


def draw_selection(
    image: Image.Image,
    indices: Iterable[int],
    is_pivot: Iterable[bool],
    grid: tuple[int, int] | None = None,
    *,
    boxes: Sequence[Box] | None = None,
    size: int = 576,
    dropped: Sequence[Dropped] = (),
) -> Image.Image:
    """Returns the image with kept patches framed and dropped ones dimmed.

    The longer side of the picture is about ``size``. ``indices`` are patch numbers; -1 stands for
    "none" and is skipped. ``is_pivot`` is aligned with ``indices``. Either ``grid`` or ``boxes``
    gives the patches: a ``grid`` of (rows, columns) divides the whole image, with patches numbered
    in row-major order; ``boxes`` holds (left, top, right, bottom) of each patch in pixels of the
    image, and pixels outside all boxes stay unchanged. ``dropped`` lists the dropped patches of
    each stage, the first stage first. It is only needed to distinguish several stages; every patch
    must then be kept or dropped at exactly one stage.

    The result is an RGB picture. With a ``grid`` its sides are multiples of the grid's. With
    ``boxes`` it is larger than ``size`` if patches would otherwise be too small to be told apart.

    >>> white = Image.new("RGB", (96, 96), "white")
    >>> draw_selection(white, [0, 5], [True, False], (3, 3)).size
    (576, 576)
    >>> stages = [Dropped("before the LLM", [1, 2, 3, 4]), Dropped("after layer 2", [6, 7, 8])]
    >>> draw_selection(white, [0, 5], [True, False], (3, 3), dropped=stages).size
    (576, 576)
    >>> halves = [(0, 0, 48, 96), (48, 0, 96, 96)]
    >>> draw_selection(white, [1], [True], boxes=halves, size=192).size
    (192, 192)
    """
    if (grid is None) == (boxes is None):
        given = "neither" if grid is None else "both"
        raise ValueError(f"one of grid and boxes must say where patches are, got {given}")
    if boxes is None:
        assert grid is not None
        width, height, boxes = _scaled_grid(image, grid, size)
    else:
        width, height, boxes = _scaled_boxes(image, boxes, size)
    kept = [(int(n), bool(p)) for n, p in zip(indices, is_pivot, strict=True) if int(n) != -1]
    for number, _ in kept:
        if not 0 <= number < len(boxes):
            raise ValueError(f"indices must be in 0..{len(boxes) - 1} or -1, got {number}")
    if dropped:
        _check_partition([number for number, _ in kept], dropped, len(boxes))
    full = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    drawn = full.copy()
    dimmed = _dim(full)
    for box in boxes:
        drawn.paste(dimmed.crop(box), box[:2])
    draw = ImageDraw.Draw(drawn)
    for stage in range(1, len(dropped)):
        dimmed_less = _dim(full, stage / (len(dropped) - 1))
        for number in dropped[stage].indices:
            box = boxes[number]
            drawn.paste(dimmed_less.crop(box), box[:2])
            _dots(draw, box, stage)
    for number, _ in kept:
        drawn.paste(full.crop(boxes[number]), boxes[number][:2])
    for number, pivot in kept:
        _frame(draw, boxes[number], pivot)
    return drawn


def _scaled_grid(
    image: Image.Image, grid: tuple[int, int], size: int
) -> tuple[int, int, list[Box]]:
    """Returns the width and height of the picture, and the box of each patch in it."""
    rows, columns = grid
    if rows < 1 or columns < 1:
        raise ValueError(f"grid must be (rows, columns), each at least 1, got {grid!r}")
    # The image determines the aspect ratio; the grid only divides it.
    scale = size / max(image.size)
    width = max(_LEAST_SIDE, round(image.width * scale / columns))
    height = max(_LEAST_SIDE, round(image.height * scale / rows))
    boxes = [
        (column * width, row * height, (column + 1) * width, (row + 1) * height)
        for row in range(rows)
        for column in range(columns)
    ]
    return width * columns, height * rows, boxes


def _scaled_boxes(
    image: Image.Image, boxes: Sequence[Box], size: int
) -> tuple[int, int, list[Box]]:
    """As :func:`_scaled_grid`, for patches at arbitrary boxes."""
    for number, (left, top, right, bottom) in enumerate(boxes):
        if not (0 <= left < right <= image.width and 0 <= top < bottom <= image.height):
            raise ValueError(
                f"boxes must be (left, top, right, bottom) inside the image of {image.width} x "
                f"{image.height} pixels, got {(left, top, right, bottom)} for patch {number}"
            )
    sides = [side for box in boxes for side in (box[2] - box[0], box[3] - box[1])]
    scale = max(size / max(image.size), _LEAST_SIDE / min(sides, default=_LEAST_SIDE))
    scaled: list[Box] = []
    for box in boxes:
        left, top, right, bottom = (round(edge * scale) for edge in box)
        scaled.append((left, top, right, bottom))
    return max(1, round(image.width * scale)), max(1, round(image.height * scale)), scaled


def _check_partition(kept: Sequence[int], dropped: Sequence[Dropped], num_patches: int) -> None:
    """Checks that every patch is kept or dropped at exactly one stage."""
    fate = dict.fromkeys(kept, "kept")
    for stage in dropped:
        for number in stage.indices:
            if not 0 <= number < num_patches:
                raise ValueError(
                    f"dropped must hold indices in 0..{num_patches - 1}, got {number} {stage.when}"
                )
            if number in fate:
                raise ValueError(
                    f"dropped must hold a patch once and no kept one, but {number}, dropped "
                    f"{stage.when}, is also {fate[number]}"
                )
            fate[number] = f"dropped {stage.when}"
    if len(fate) < num_patches:
        missing = next(number for number in range(num_patches) if number not in fate)
        raise ValueError(
            f"dropped must hold every patch that indices do not, but {missing} is in neither"
        )


def _dim(image: Image.Image, lateness: float = 0.0) -> Image.Image:
    """Returns the image gray and dark; ``lateness`` goes from 0 (first stage) to 1 (last,
    lightest)."""
    contrast = _DIMMED_CONTRAST + lateness * (_LAST_CONTRAST - _DIMMED_CONTRAST)
    floor = round(_DIMMED_FLOOR + lateness * (_LAST_FLOOR - _DIMMED_FLOOR))
    table = [round(value * contrast) + floor for value in range(256)]
    return image.convert("L").point(table).convert("RGB")


def _dots(draw: ImageDraw.ImageDraw, box: Box, number: int) -> None:
    """Draws ``number`` dots in a square in the middle of the box, or none if there is no room."""
    left, top, right, bottom = box
    side = min(right - left, bottom - top)
    per_row = ceil(sqrt(number))
    step = min(max(2, side // 4), (side - 2) // per_row)
    if step < 2:
        return
    dot = (step + 1) // 2
    rows = [min(per_row, number - start) for start in range(0, number, per_row)]
    y = top + (bottom - top - step * (len(rows) - 1) - dot) // 2
    for length in rows:
        x = left + (right - left - step * (length - 1) - dot) // 2
        for _ in range(length):
            if dot > 1 and dot + 2 <= step:  # a dark ring, for light patches
                draw.ellipse((x - 1, y - 1, x + dot, y + dot), fill=_CASING)
            shape = draw.ellipse if dot > 2 else draw.rectangle
            shape((x, y, x + dot - 1, y + dot - 1), fill=_DOT)
            x += step
        y += step


def _frame(draw: ImageDraw.ImageDraw, box: Box, pivot: bool) -> None:
    left, top, right, bottom = box[0], box[1], box[2] - 1, box[3] - 1
    side = min(right - left, bottom - top) + 1
    thin = max(2, side // 14)
    width = 2 * thin if pivot else thin
    color = PIVOT_COLOR if pivot else COMPLETION_COLOR
    if pivot:
        mark = width + side // 3
        draw.polygon([(left, top), (left + mark, top), (left, top + mark)], fill=color)
    draw.rectangle((left, top, right, bottom), outline=color, width=width)
    if side > 6 * width:  # a dark line inside keeps the frame visible on a patch of its color
        inset = width
        draw.rectangle(
            (left + inset, top + inset, right - inset, bottom - inset), outline=_CASING, width=1
        )
        if pivot:
            draw.polygon([(left, top), (left + mark, top), (left, top + mark)], fill=color)


def selection_picture(
    image: Image.Image,
    overlay: Image.Image,
    title: str,
    lines: Sequence[str],
    *,
    dropped: Sequence[Dropped] = (),
    below: bool = False,
    kept: tuple[str, str] = KEPT,
) -> Image.Image:
    """Returns the image beside its overlay, with a title, a legend and caption lines.

    The overlay is placed below the image if ``below``, which suits wide images. ``dropped`` holds
    the stages that ``draw_selection`` was given. If there are several, the legend names each stage
    and the number of patches it dropped. ``kept`` are the words of the legend for the frames of
    pivots and of the other kept patches.
    """
    panel = image.convert("RGB").resize(overlay.size, Image.Resampling.LANCZOS)
    legend = _Legend([f"{stage.when}: {len(stage.indices)}" for stage in dropped], kept)
    right, down = (0, overlay.height + _MARGIN) if below else (overlay.width + _MARGIN, 0)
    pictures = overlay.width + right
    width = max(pictures, legend.least_width) + 2 * _MARGIN
    legend_height = legend.height(width - 2 * _MARGIN)
    title_lines = _wrap(title, _font(24), width - 2 * _MARGIN)
    caption = [part for line in lines for part in _wrap(line, _font(18), width - 2 * _MARGIN)]
    head = _MARGIN + 32 * len(title_lines)
    legend_top = head + down + overlay.height + _MARGIN
    caption_top = legend_top + legend_height + 12
    height = caption_top + 26 * len(caption) + _MARGIN
    page = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(page)
    _text_block(draw, title_lines, (_MARGIN, _MARGIN - 4), 32, _font(24), _INK)
    page.paste(panel, (_MARGIN, head))
    page.paste(overlay, (_MARGIN + right, head + down))
    legend.paste(page, (_MARGIN, legend_top), width - 2 * _MARGIN)
    _text_block(draw, caption, (_MARGIN, caption_top), 26, _font(18), _INK)
    return page


def contact_sheet(
    cards: Sequence[Card],
    heading: str,
    *,
    columns: int = 3,
    stages: Sequence[str] = (),
    kept: tuple[str, str] = KEPT,
) -> Image.Image:
    """Returns a page of several overlays under a heading and one legend.

    ``stages`` names the stages of the overlays, in the words of ``Dropped.when``. All overlays have
    the same stages. ``kept`` are the words of the legend for the frames of pivots and of the other
    kept patches.
    """
    if not cards:
        raise ValueError("cards must hold at least one card, got none")
    columns = min(columns, len(cards))
    cell_width = max(card.overlay.width for card in cards)
    title_lines = [_wrap(card.title, _font(20), cell_width) for card in cards]
    caption_lines = [
        [part for line in card.lines for part in _wrap(line, _font(16), cell_width)]
        for card in cards
    ]
    legend = _Legend(stages, kept)
    width = max(_MARGIN + columns * (cell_width + _MARGIN), legend.least_width + 2 * _MARGIN)
    heading_lines = _wrap(heading, _font(26), width - 2 * _MARGIN)
    legend_top = _MARGIN + 34 * len(heading_lines)
    cards_top = legend_top + legend.height(width - 2 * _MARGIN) + 16

    starts = range(0, len(cards), columns)
    rows = [range(start, min(start + columns, len(cards))) for start in starts]
    title_heights = [26 * max(len(title_lines[n]) for n in row) + 4 for row in rows]
    row_heights = [
        title_height
        + max(cards[n].overlay.height + 6 + 22 * len(caption_lines[n]) for n in row)
        + _MARGIN
        for row, title_height in zip(rows, title_heights, strict=True)
    ]
    page = Image.new("RGB", (width, cards_top + sum(row_heights)), _PAPER)
    draw = ImageDraw.Draw(page)
    _text_block(draw, heading_lines, (_MARGIN, _MARGIN - 4), 34, _font(26), _INK)
    legend.paste(page, (_MARGIN, legend_top), width - 2 * _MARGIN)
    upper = cards_top
    for row, title_height, row_height in zip(rows, title_heights, row_heights, strict=True):
        for number in row:
            left = _MARGIN + (number - row.start) * (cell_width + _MARGIN)
            # Titles are aligned to the bottom, so that a one-line title stands next to its picture.
            title_top = upper + title_height - 26 * len(title_lines[number]) - 4
            _text_block(draw, title_lines[number], (left, title_top), 26, _font(20), _INK)
            overlay = cards[number].overlay
            page.paste(overlay, (left, upper + title_height))
            below = upper + title_height + overlay.height + 6
            _text_block(draw, caption_lines[number], (left, below), 22, _font(16), _MUTED)
        upper += row_height
    return page


def check_format(path: str | Path) -> None:
    """Raises Pillow's ValueError or OSError if it cannot write the format of ``path``'s suffix.

    >>> check_format("map.png")
    >>> check_format("map.docx")
    Traceback (most recent call last):
    ValueError: unknown file extension: .docx
    """
    buffer = BytesIO()
    buffer.name = str(path)  # Pillow takes the suffix of an open file from its name
    Image.new("RGB", (16, 16)).save(buffer, format=None if Path(path).suffix else "PNG")


def save_picture(picture: Image.Image, path: str | Path) -> None:
    """Writes a picture and creates its folder. The suffix sets the format; PNG if there is none."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, format=None if path.suffix else "PNG")


_SWATCH, _SWATCH_GAP, _LABEL_GAP, _ROW_GAP = 24, 8, 28, 8
_KEPT_GREY, _DROPPED_GREY, _DROPPED_LAST_GREY = (196, 198, 202), (62, 63, 66), (116, 117, 120)


class _Legend:
    """The legend: a swatch and a label for pivot, completion and dropped, in rows that fit.

    If tokens are dropped at several ``stages``, each stage has a swatch with its dots.
    """

    def __init__(self, stages: Sequence[str], kept: tuple[str, str] = KEPT) -> None:
        self._kept = [(kept[0], _kept_swatch(True)), (kept[1], _kept_swatch(False))]
        self._dropped = [("dropped", _dropped_swatch(0, 1))]
        self.least_width = _row_width([*self._kept, *self._dropped])
        if len(stages) > 1:
            self._dropped = [
                (f"dropped {stage}", _dropped_swatch(number, len(stages)))
                for number, stage in enumerate(stages)
            ]
            self.least_width = max(self.least_width, *(_row_width([one]) for one in self._dropped))

    def height(self, width: int) -> int:
        rows = len(self._rows(width))
        return rows * _SWATCH + (rows - 1) * _ROW_GAP

    def paste(self, page: Image.Image, corner: tuple[int, int], width: int) -> None:
        draw = ImageDraw.Draw(page)
        left, top = corner
        for row in self._rows(width):
            x = left
            for label, swatch in row:
                page.paste(swatch, (x, top))
                draw.text((x + _SWATCH + _SWATCH_GAP, top + 1), label, font=_font(18), fill=_INK)
                x += _row_width([(label, swatch)]) + _LABEL_GAP
            top += _SWATCH + _ROW_GAP

    def _rows(self, width: int) -> list[list[_Entry]]:
        """One row if it fits into ``width``; otherwise the entries of the stages begin a new
        row."""
        if _row_width([*self._kept, *self._dropped]) <= width:
            return [[*self._kept, *self._dropped]]
        rows: list[list[_Entry]] = []
        for group in (self._kept, self._dropped):
            rows.append([])
            for entry in group:
                if rows[-1] and _row_width([*rows[-1], entry]) > width:
                    rows.append([])
                rows[-1].append(entry)
        return rows


def _row_width(entries: Sequence[_Entry]) -> int:
    labels = sum(_SWATCH + _SWATCH_GAP + ceil(_font(18).getlength(label)) for label, _ in entries)
    return labels + _LABEL_GAP * (len(entries) - 1)


def _kept_swatch(pivot: bool) -> Image.Image:
    swatch = Image.new("RGB", (_SWATCH, _SWATCH), _KEPT_GREY)
    _frame(ImageDraw.Draw(swatch), (0, 0, _SWATCH, _SWATCH), pivot)
    return swatch


def _dropped_swatch(stage: int, num_stages: int) -> Image.Image:
    swatch = Image.new("RGB", (_SWATCH, _SWATCH), _DROPPED_GREY)
    if stage:
        last = Image.new("RGB", swatch.size, _DROPPED_LAST_GREY)
        swatch = Image.blend(swatch, last, stage / (num_stages - 1))
        _dots(ImageDraw.Draw(swatch), (0, 0, _SWATCH, _SWATCH), stage)
    return swatch


def _text_block(
    draw: ImageDraw.ImageDraw,
    lines: Sequence[str],
    corner: tuple[int, int],
    step: int,
    font: Font,
    color: tuple[int, int, int],
) -> None:
    for number, line in enumerate(lines):
        draw.text((corner[0], corner[1] + number * step), line, font=font, fill=color)


def _wrap(text: str, font: Font, width: int) -> list[str]:
    """Wraps text to lines of at most ``width``; a longer word stays whole."""
    lines: list[str] = []
    for paragraph in text.splitlines() or [""]:
        line = ""
        for word in paragraph.split(" "):
            longer = f"{line} {word}" if line else word
            if line and font.getlength(longer) > width:
                lines.append(line)
                line = word
            else:
                line = longer
        lines.append(line)
    return lines


@cache
def _font(size: int) -> Font:
    return ImageFont.load_default(size)
