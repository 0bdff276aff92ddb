"""Draw the scores of a category as heat maps: strategies down, pivot ratios across."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial

from PIL import Image, ImageDraw, ImageFont

from clasp_kernels.calibrate.choice import CategoryChoice, CellResult
from clasp_kernels.calibrate.grid import CLASP, Cell, Grid
from clasp_kernels.calibrate.stages import Stages

_INK, _MUTED, _PAPER, _EMPTY = (28, 30, 34), (104, 108, 116), (255, 255, 255), (238, 239, 241)
# From low to high: lightness falls all the way, so that the map can be read without colors.
_RAMP = ((255, 247, 222), (250, 205, 138), (232, 138, 98), (176, 71, 108), (88, 28, 99))
_MARK = (0, 114, 178)
_WIDTH, _HEIGHT, _GAP, _MARGIN = 62, 40, 14, 18
_LABELS = 40
Score = Callable[[CellResult], float]


def category_page(
    choice: CategoryChoice, grid: Grid, budgets: Sequence[int | float], stages: Stages
) -> Image.Image:
    """Return a page with a map of the mean, and one of each budget where there are several."""
    panels: list[tuple[str, Score]] = [
        (_budget(budget, stages), partial(_at_budget, number))
        for number, budget in enumerate(budgets)
    ]
    if len(budgets) > 1:
        panels.insert(0, ("mean over budgets", lambda result: result.score))
    drawn = [_panel(choice, grid, title, score) for title, score in panels]
    heading = [
        f"{choice.category}: {choice.questions} questions about {choice.images} images",
        choice.reason,
        *_dropped(stages),
    ]
    return _page(heading, [drawn[start : start + 2] for start in range(0, len(drawn), 2)])


def overview_page(
    choices: Sequence[CategoryChoice], grid: Grid, stages: Stages, heading: str
) -> Image.Image:
    """Return a page with the map of the mean of every category."""
    drawn = [
        _panel(choice, grid, f"{choice.category} ({choice.questions})", lambda result: result.score)
        for choice in choices
    ]
    rows = [drawn[start : start + 2] for start in range(0, len(drawn), 2)]
    return _page([heading, *_dropped(stages)], rows)


def _at_budget(number: int, result: CellResult) -> float:
    return result.by_budget[number]


def _budget(budget: int | float, stages: Stages) -> str:
    mean = "a mean of " if stages.are_inside else ""
    if isinstance(budget, int):
        return f"{mean}{budget} tokens"
    return f"{mean}{100 * budget:g} % of the tokens"


def _dropped(stages: Stages) -> list[str]:
    """Return a line that says where tokens were dropped; none for the usual place."""
    return [f"tokens dropped {stages}"] if stages.are_inside else []


def _columns(grid: Grid) -> list[tuple[str, str, float | None]]:
    """Return the label, rule and pivot ratio of each column."""
    columns: list[tuple[str, str, float | None]] = []
    for rule in grid.rules:
        if rule == CLASP:
            columns += [(f"{ratio:g}", rule, ratio) for ratio in grid.pivot_ratios]
        else:
            columns.append((rule, rule, None))
    return columns


def _panel(choice: CategoryChoice, grid: Grid, title: str, score: Score) -> Image.Image:
    """Draw one map. Colors go from its lowest to its highest score."""
    results = {result.cell: result for result in choice.results}
    columns = _columns(grid)
    widths = [max(_WIDTH, round(_font(15).getlength(label)) + 12) for label, _, _ in columns]
    gaps = [
        _GAP if n and columns[n - 1][1] != rule else 0 for n, (_, rule, _) in enumerate(columns)
    ]
    values = [score(result) for result in choice.results]
    low, high = min(values), max(values)
    top = 58
    outside = choice.default.cell.strategy is None
    bottom = top + _HEIGHT * len(grid.strategies)
    width = _LABELS + sum(widths) + sum(gaps) + 2
    image = Image.new(
        "RGB", (max(width, 330), bottom + (_HEIGHT + 8 if outside else 0) + 24), _PAPER
    )
    draw = ImageDraw.Draw(image)
    draw.text((0, 0), title, font=_font(18), fill=_INK)
    across = "pivot ratio" if CLASP in grid.rules else "rule"
    if grid.rules != (CLASP,) and CLASP in grid.rules:
        across = "pivot ratio of clasp, and other rules"
    draw.text((_LABELS, 24), across, font=_font(13), fill=_MUTED)
    for row, strategy in enumerate(grid.strategies):
        y = top + row * _HEIGHT
        draw.text((8, y + 10), strategy, font=_font(16), fill=_INK)
    x = _LABELS
    for (label, rule, ratio), cell_width, gap in zip(columns, widths, gaps, strict=True):
        x += gap
        _centred(draw, label, (x, top - 18, x + cell_width, top), 15, _INK)
        for row, strategy in enumerate(grid.strategies):
            y = top + row * _HEIGHT
            box = (x, y, x + cell_width - 2, y + _HEIGHT - 2)
            result = results.get(Cell(rule, strategy, ratio))
            if result is None:
                draw.rectangle(box, fill=_EMPTY)
            else:
                _cell(draw, box, choice, result, score(result), low, high)
        x += cell_width
    if outside:
        y = bottom + 8
        box = (_LABELS, y, _LABELS + _WIDTH - 2, y + _HEIGHT - 2)
        _cell(draw, box, choice, choice.default, score(choice.default), low, high)
        label = "the default, which is not in the grid"
        draw.text((_LABELS + _WIDTH + 8, y + 10), label, font=_font(14), fill=_MUTED)
    ends = f"{100 * low:.1f}", f"{100 * high:.1f}"
    _scale(draw, (_LABELS, image.height - 14), ends)
    return image


def _cell(
    draw: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    choice: CategoryChoice,
    result: CellResult,
    value: float,
    low: float,
    high: float,
) -> None:
    """Draw a score. The default has a dashed frame, the choice a thick one."""
    share = (value - low) / (high - low) if high > low else 0.5
    color = _color(share)
    draw.rectangle(box, fill=color)
    ink = _PAPER if sum(color) < 420 else _INK
    _centred(draw, f"{100 * value:.1f}", box, 15, ink)
    if result is choice.default:
        _dashed(draw, box, ink)
    if result is choice.chosen:
        draw.rectangle(box, outline=_MARK, width=4)


def _dashed(
    draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], color: tuple[int, int, int]
) -> None:
    left, top, right, bottom = (box[0] + 5, box[1] + 5, box[2] - 5, box[3] - 5)
    for x in range(left, right, 7):
        for y in (top, bottom):
            draw.line((x, y, min(x + 3, right), y), fill=color)
    for y in range(top, bottom, 7):
        for x in (left, right):
            draw.line((x, y, x, min(y + 3, bottom)), fill=color)


def _scale(draw: ImageDraw.ImageDraw, corner: tuple[int, int], ends: tuple[str, str]) -> None:
    left, top = corner
    draw.text((left, top - 3), ends[0], font=_font(13), fill=_MUTED)
    left += round(_font(13).getlength(ends[0])) + 6
    for step in range(100):
        draw.line((left + step, top, left + step, top + 9), fill=_color(step / 99))
    draw.text((left + 106, top - 3), ends[1], font=_font(13), fill=_MUTED)


def _page(heading: Sequence[str], rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    legend = (
        "score in %; thick blue frame: chosen, dashed frame: the default; "
        "each map has its own color scale"
    )
    texts = [(heading[0], 22, _INK), *((line, 16, _INK) for line in heading[1:])]
    texts.append((legend, 14, _MUTED))
    width = max(
        *(sum(panel.width + 2 * _MARGIN for panel in row) for row in rows),
        *(round(_font(size).getlength(text)) + 2 * _MARGIN for text, size, _ in texts),
    )
    head = _MARGIN + sum(size + 10 for _, size, _ in texts) + 6
    heights = [max(panel.height for panel in row) + _MARGIN for row in rows]
    page = Image.new("RGB", (width, head + sum(heights)), _PAPER)
    draw = ImageDraw.Draw(page)
    y = _MARGIN - 4
    for text, size, color in texts:
        draw.text((_MARGIN, y), text, font=_font(size), fill=color)
        y += size + 10
    y = head
    for row, height in zip(rows, heights, strict=True):
        x = _MARGIN
        for panel in row:
            page.paste(panel, (x, y))
            x += panel.width + 2 * _MARGIN
        y += height
    return page


def _centred(
    draw: ImageDraw.ImageDraw,
    text: str,
    box: tuple[int, int, int, int],
    size: int,
    color: tuple[int, int, int],
) -> None:
    middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    draw.text(middle, text, font=_font(size), fill=color, anchor="mm")


def _color(share: float) -> tuple[int, int, int]:
    """Return the color of a share in 0..1 of the scale.

    >>> _color(0.0), _color(1.0)
    ((255, 247, 222), (88, 28, 99))
    """
    place = share * (len(_RAMP) - 1)
    number = min(int(place), len(_RAMP) - 2)
    part = place - number
    red, green, blue = (
        round(a + part * (b - a)) for a, b in zip(_RAMP[number], _RAMP[number + 1], strict=True)
    )
    return red, green, blue


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
