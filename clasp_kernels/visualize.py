"""Pictures of what was kept: pivots, completion and dropped tokens over the image.

Kept patches keep their colours and get a frame: thick orange with a corner mark for pivots, thin
sky blue for completion. Everything dropped goes dark and grey. The two frame colours stay apart
under every common colour blindness, and the corner mark tells them apart without any colour.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from math import ceil
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

#: Okabe and Ito's orange and sky blue.
PIVOT_COLOR = (230, 159, 0)
COMPLETION_COLOR = (86, 180, 233)

_INK = (28, 30, 34)
_MUTED = (104, 108, 116)
_PAPER = (255, 255, 255)
_CASING = (12, 12, 14)
# Dropped patches keep a third of their contrast, on a floor that leaves night scenes readable.
_DIMMED_CONTRAST, _DIMMED_FLOOR = 0.33, 36
_MARGIN = 16

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Card:
    """One picture of a contact sheet: an overlay and the words around it."""

    overlay: Image.Image
    title: str
    lines: Sequence[str] = ()


def draw_selection(
    image: Image.Image,
    indices: Iterable[int],
    is_pivot: Iterable[bool],
    grid: tuple[int, int],
    *,
    size: int = 576,
) -> Image.Image:
    """The image with kept patches framed and dropped ones dimmed, its longer side about ``size``.

    ``indices`` are patch numbers, row by row, on a ``grid`` of (rows, columns) that spans the
    whole image; -1 stands for "none" and is skipped. ``is_pivot`` is aligned with ``indices``.
    The result is an RGB picture whose sides are multiples of the grid's.

    >>> kept = draw_selection(Image.new("RGB", (96, 96), "white"), [0, 5], [True, False], (3, 3))
    >>> kept.size
    (576, 576)
    """
    rows, columns = grid
    if rows < 1 or columns < 1:
        raise ValueError(f"grid must be (rows, columns), each at least 1, got {grid!r}")
    kept = [(int(n), bool(p)) for n, p in zip(indices, is_pivot, strict=True) if int(n) != -1]
    for number, _ in kept:
        if not 0 <= number < rows * columns:
            raise ValueError(f"indices must be in 0..{rows * columns - 1} or -1, got {number}")
    # The image decides the shape, the grid only divides it.
    scale = size / max(image.width, image.height)
    cell_width = max(4, round(image.width * scale / columns))
    cell_height = max(4, round(image.height * scale / rows))
    full = image.convert("RGB").resize(
        (cell_width * columns, cell_height * rows), Image.Resampling.LANCZOS
    )
    dimmed = full.convert("L").point([_dim(value) for value in range(256)]).convert("RGB")

    boxes = {
        number: (
            number % columns * cell_width,
            number // columns * cell_height,
            (number % columns + 1) * cell_width,
            (number // columns + 1) * cell_height,
        )
        for number, _ in kept
    }
    for box in boxes.values():
        dimmed.paste(full.crop(box), box[:2])
    draw = ImageDraw.Draw(dimmed)
    for number, pivot in kept:
        _frame(draw, boxes[number], pivot)
    return dimmed


def _dim(value: int) -> int:
    return round(value * _DIMMED_CONTRAST) + _DIMMED_FLOOR


def _frame(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], pivot: bool) -> None:
    left, top, right, bottom = box[0], box[1], box[2] - 1, box[3] - 1
    side = min(right - left, bottom - top) + 1
    thin = max(2, side // 14)
    width = 2 * thin if pivot else thin
    color = PIVOT_COLOR if pivot else COMPLETION_COLOR
    if pivot:
        mark = width + side // 3
        draw.polygon([(left, top), (left + mark, top), (left, top + mark)], fill=color)
    draw.rectangle((left, top, right, bottom), outline=color, width=width)
    if side > 6 * width:  # a dark line inside keeps the frame visible on a patch of its colour
        inset = width
        draw.rectangle(
            (left + inset, top + inset, right - inset, bottom - inset), outline=_CASING, width=1
        )
        if pivot:
            draw.polygon([(left, top), (left + mark, top), (left, top + mark)], fill=color)


def selection_picture(
    image: Image.Image, overlay: Image.Image, title: str, lines: Sequence[str]
) -> Image.Image:
    """The image beside its overlay, with a title, a legend and lines of caption."""
    panel = image.convert("RGB").resize(overlay.size, Image.Resampling.LANCZOS)
    width = max(3 * _MARGIN + 2 * overlay.width, _legend_width() + 2 * _MARGIN)
    title_lines = _wrap(title, _font(24), width - 2 * _MARGIN)
    caption = [part for line in lines for part in _wrap(line, _font(18), width - 2 * _MARGIN)]
    head = _MARGIN + 32 * len(title_lines)
    legend_top = head + overlay.height + _MARGIN
    height = legend_top + 36 + 26 * len(caption) + _MARGIN
    page = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(page)
    _text_block(draw, title_lines, (_MARGIN, _MARGIN - 4), 32, _font(24), _INK)
    page.paste(panel, (_MARGIN, head))
    page.paste(overlay, (2 * _MARGIN + overlay.width, head))
    _legend(draw, (_MARGIN, legend_top))
    _text_block(draw, caption, (_MARGIN, legend_top + 36), 26, _font(18), _INK)
    return page


def contact_sheet(cards: Sequence[Card], heading: str, *, columns: int = 3) -> Image.Image:
    """Several overlays on one page under a heading and one legend."""
    if not cards:
        raise ValueError("cards must hold at least one card, got none")
    columns = min(columns, len(cards))
    cell_width = max(card.overlay.width for card in cards)
    title_lines = [_wrap(card.title, _font(20), cell_width) for card in cards]
    caption_lines = [
        [part for line in card.lines for part in _wrap(line, _font(16), cell_width)]
        for card in cards
    ]
    width = max(_MARGIN + columns * (cell_width + _MARGIN), _legend_width() + 2 * _MARGIN)
    heading_lines = _wrap(heading, _font(26), width - 2 * _MARGIN)
    legend_top = _MARGIN + 34 * len(heading_lines)

    starts = range(0, len(cards), columns)
    rows = [range(start, min(start + columns, len(cards))) for start in starts]
    title_heights = [26 * max(len(title_lines[n]) for n in row) + 4 for row in rows]
    row_heights = [
        title_height
        + max(cards[n].overlay.height + 6 + 22 * len(caption_lines[n]) for n in row)
        + _MARGIN
        for row, title_height in zip(rows, title_heights, strict=True)
    ]
    page = Image.new("RGB", (width, legend_top + 40 + sum(row_heights)), _PAPER)
    draw = ImageDraw.Draw(page)
    _text_block(draw, heading_lines, (_MARGIN, _MARGIN - 4), 34, _font(26), _INK)
    _legend(draw, (_MARGIN, legend_top))
    upper = legend_top + 40
    for row, title_height, row_height in zip(rows, title_heights, row_heights, strict=True):
        for number in row:
            left = _MARGIN + (number - row.start) * (cell_width + _MARGIN)
            # A one-line title stands next to its picture, not at the top of a taller row.
            title_top = upper + title_height - 26 * len(title_lines[number]) - 4
            _text_block(draw, title_lines[number], (left, title_top), 26, _font(20), _INK)
            overlay = cards[number].overlay
            page.paste(overlay, (left, upper + title_height))
            below = upper + title_height + overlay.height + 6
            _text_block(draw, caption_lines[number], (left, below), 22, _font(16), _MUTED)
        upper += row_height
    return page


def check_format(path: str | Path) -> None:
    """Raise Pillow's ValueError or OSError if it cannot write what ``path``'s name asks for.

    >>> check_format("map.png")
    >>> check_format("map.docx")
    Traceback (most recent call last):
    ValueError: unknown file extension: .docx
    """
    buffer = BytesIO()
    buffer.name = str(path)  # where Pillow looks for the suffix of what it is given open
    Image.new("RGB", (16, 16)).save(buffer, format=None if Path(path).suffix else "PNG")


def save_picture(picture: Image.Image, path: str | Path) -> None:
    """Write a picture, making its folder; the format follows the name, PNG where it has none."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, format=None if path.suffix else "PNG")


# Each label, and whether its swatch is a pivot's, a completion's, or a dropped patch.
_LEGEND = (("pivot: most attended", True), ("completion: least covered", False), ("dropped", None))
_SWATCH, _SWATCH_GAP, _LABEL_GAP = 24, 8, 28


def _label_width(label: str) -> int:
    return ceil(_font(18).getlength(label))


def _legend_width() -> int:
    labels = sum(_SWATCH + _SWATCH_GAP + _label_width(label) for label, _ in _LEGEND)
    return labels + _LABEL_GAP * (len(_LEGEND) - 1)


def _legend(draw: ImageDraw.ImageDraw, corner: tuple[int, int]) -> None:
    """Pivot, completion, dropped: one swatch and one word each."""
    left, top = corner
    for label, kind in _LEGEND:
        box = (left, top, left + _SWATCH, top + _SWATCH)
        draw.rectangle((*box[:2], box[2] - 1, box[3] - 1), fill=(196, 198, 202))
        if kind is None:
            draw.rectangle((*box[:2], box[2] - 1, box[3] - 1), fill=(62, 63, 66))
        else:
            _frame(draw, box, kind)
        draw.text((left + _SWATCH + _SWATCH_GAP, top + 1), label, font=_font(18), fill=_INK)
        left += _SWATCH + _SWATCH_GAP + _label_width(label) + _LABEL_GAP


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
    """Lines no wider than ``width``; a word that is wider by itself stays whole."""
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
