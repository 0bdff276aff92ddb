"""Write the scores of a calibration as CSV, and what was decided in words."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clasp_kernels.calibrate.choice import CategoryChoice
from clasp_kernels.calibrate.dataset import Question
from clasp_kernels.calibrate.grid import Cell, Grid
from clasp_kernels.calibrate.scoring import SCORERS
from clasp_kernels.calibrate.stages import Stages
from clasp_kernels.calibrate.store import AnswerKey


def write_answers(
    path: Path,
    questions: Sequence[Question],
    grid: Grid,
    budgets: Sequence[int | float],
    answers: Mapping[AnswerKey, str],
    scorer: str,
) -> None:
    """Write a row for every answer: the raw scores."""
    header = ("line", "image", "question", "category", "budget", *_CELL, "answer", "score")

    def rows() -> Iterator[tuple[Any, ...]]:
        for question in questions:
            assert question.category is not None
            for budget in budgets:
                for cell in grid.cells(question.category):
                    answer = answers[AnswerKey(question.key, str(budget), cell.name)]
                    score = SCORERS[question.scorer or scorer](answer, question.answers)
                    about = (question.line, question.image, question.text, question.category)
                    yield (*about, budget, *_described(cell), answer, _number(score))

    _write(path, header, rows())


def write_scores(
    path: Path,
    choices: Sequence[CategoryChoice],
    budgets: Sequence[int | float],
    stages: Stages,
) -> None:
    """Write a row for every category and cell: mean scores, intervals and tests."""
    dropped = ",".join(map(str, stages.layers))
    header = (
        *("stages", "category", "questions", "images", *_CELL, "default", "chosen"),
        *(f"score_{budget}" for budget in budgets),
        *("score", "score_low", "score_high"),
        *("difference", "difference_low", "difference_high", "corrected_p"),
    )

    def rows() -> Iterator[tuple[Any, ...]]:
        for choice in choices:
            for result in choice.results:
                is_default = result is choice.default
                numbers = (*result.by_budget, result.score, *result.interval)
                compared = (result.difference, *result.difference_interval, result.p_value)
                asked = (choice.category, choice.questions, choice.images)
                yield (
                    *(dropped, *asked, *_described(result.cell)),
                    *(int(is_default), int(result is choice.chosen), *map(_number, numbers)),
                    *(("",) * len(compared) if is_default else map(_number, compared)),
                )

    _write(path, header, rows())


_CELL = ("rule", "strategy", "pivot_ratio")


def _described(cell: Cell) -> tuple[str, str, str]:
    """Return the cell's columns; "default" stands for a strategy and ratio of the profile."""
    if cell.strategy is None:
        return cell.rule, "default", "default"
    return cell.rule, cell.strategy, "" if cell.pivot_ratio is None else f"{cell.pivot_ratio:g}"


def _number(value: float) -> str:
    return f"{value:.6g}"


def _write(path: Path, header: Sequence[str], rows: Iterator[tuple[Any, ...]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def in_words(choices: Sequence[CategoryChoice], categories: Sequence[str]) -> list[str]:
    """Return a sentence for each of the profile's ``categories``, the asked ones first."""
    asked = {choice.category for choice in choices}
    unasked = [category for category in categories if category not in asked]
    lines = [f"{choice.category}: {choice.reason}." for choice in choices]
    if unasked:
        lines.append(f"{', '.join(unasked)}: the default is kept, as there are no questions.")
    return lines
