"""Decide for each category: the best cell, if it is significantly better than the default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from clasp_kernels._version import __version__
from clasp_kernels.calibrate.dataset import Question
from clasp_kernels.calibrate.grid import OWN, Cell, Grid
from clasp_kernels.calibrate.scoring import SCORERS
from clasp_kernels.calibrate.stages import Stages
from clasp_kernels.calibrate.statistics import CONFIDENCE, DRAWS, intervals, tested
from clasp_kernels.calibrate.store import AnswerKey
from clasp_kernels.policy import Profile


@dataclass(frozen=True)
class CellResult:
    """How one cell did in one category."""

    cell: Cell
    score: float
    """The mean over questions and budgets."""
    interval: tuple[float, float]
    """The 95 % confidence interval of ``score``, for this cell alone."""
    by_budget: tuple[float, ...]
    """The mean over questions for each budget."""
    difference: float = 0.0
    """The score minus that of the default."""
    difference_interval: tuple[float, float] = (0.0, 0.0)
    """An interval of ``difference``. The intervals of all cells of all categories hold at once with
    95 % confidence."""
    p_value: float = 1.0
    """The p-value of ``difference``, corrected for all cells of all categories."""

    @property
    def is_better(self) -> bool:
        """Whether it is significantly better than the default."""
        return self.difference > 0 and self.p_value <= 1 - CONFIDENCE


@dataclass(frozen=True)
class CategoryChoice:
    """The results of one category. The first is the default."""

    category: str
    questions: int
    images: int
    results: tuple[CellResult, ...]

    @property
    def default(self) -> CellResult:
        return self.results[0]

    @property
    def best(self) -> CellResult:
        """The result of the best score; of equal ones, the default or else the first tried."""
        return max(self.results, key=lambda result: result.score)

    @property
    def chosen(self) -> CellResult:
        """The best of those that are significantly better than the default, or the default."""
        better = [result for result in self.results if result.is_better]
        return max(better, key=lambda result: result.score, default=self.default)

    @property
    def is_kept(self) -> bool:
        """Whether the default is kept."""
        return self.chosen is self.default

    @property
    def reason(self) -> str:
        """Why this is the choice, in a sentence."""
        best, chosen = self.best, self.chosen
        if len(self.results) == 1:
            return "the default is kept: nothing else was tried"
        if best is self.default:
            return "the default is kept: no other cell scores higher"
        if chosen is self.default:
            return (
                f"the default is kept: {best.cell.name} scores {_points(best.difference)} higher, "
                f"which is not significant ({_p_value(best.p_value)})"
            )
        return (
            f"{chosen.cell.name} scores {_points(chosen.difference)} higher than the default "
            f"({_p_value(chosen.p_value)})"
        )


def _means(stages: Stages) -> str:
    return " (means over decoder layers)" if stages.are_inside else ""


def _points(difference: float) -> str:
    return f"{100 * difference:.1f} points"


def _p_value(value: float) -> str:
    return "corrected p < 0.001" if value < 0.001 else f"corrected p = {value:.3f}"


def scores_of(
    questions: Sequence[Question],
    cells: Sequence[Cell],
    budgets: Sequence[int | float],
    answers: Mapping[AnswerKey, str],
    scorer: str,
) -> torch.Tensor:
    """Return the score of every answer, [questions, budgets, cells] float64."""
    return torch.tensor(
        [
            [
                [
                    SCORERS[question.scorer or scorer](
                        answers[AnswerKey(question.key, str(budget), cell.name)], question.answers
                    )
                    for cell in cells
                ]
                for budget in budgets
            ]
            for question in questions
        ],
        dtype=torch.float64,
    ).reshape(len(questions), len(budgets), len(cells))


def choose(
    questions: Sequence[Question],
    grid: Grid,
    budgets: Sequence[int | float],
    answers: Mapping[AnswerKey, str],
    scorer: str,
    *,
    seed: int = 0,
    draws: int = DRAWS,
) -> list[CategoryChoice]:
    """Return the choice of every category that is asked about, in the order of the profile.

    The score of a question is the mean over the budgets: a profile has one policy for all of them.
    """
    number = {image: n for n, image in enumerate({q.image_hash: None for q in questions})}
    asked = [
        (category, mine)
        for category in grid.profile.category_names
        if (mine := [question for question in questions if question.category == category])
    ]
    scores = [
        scores_of(mine, grid.cells(category), budgets, answers, scorer) for category, mine in asked
    ]
    images = [torch.tensor([number[q.image_hash] for q in mine]) for _, mine in asked]
    means = [each.mean(1) for each in scores]
    differences = tested(
        [mean[:, 1:] - mean[:, :1] for mean in means], images, seed=seed, draws=draws
    )
    choices = []
    for (category, mine), score, mean, units, found in zip(
        asked, scores, means, images, differences, strict=True
    ):
        low, high = intervals(mean, units, seed=seed)
        results = [
            CellResult(
                cell,
                float(mean[:, n].mean()),
                (float(low[n]), float(high[n])),
                tuple(score[:, :, n].mean(0).tolist()),
            )
            for n, cell in enumerate(grid.cells(category))
        ]
        results[1:] = [
            replace(
                result,
                difference=float(found.mean[n]),
                difference_interval=(float(found.low[n]), float(found.high[n])),
                p_value=float(found.p_value[n]),
            )
            for n, result in enumerate(results[1:])
        ]
        choices.append(CategoryChoice(category, len(mine), len(units.unique()), tuple(results)))
    return choices


def calibrated_profile(
    grid: Grid,
    choices: Sequence[CategoryChoice],
    *,
    name: str,
    data: str,
    budgets: Sequence[int | float],
    stages: Stages,
    scorer: str,
) -> Profile:
    """Return the profile with the chosen policies. Its ``source`` says what found them."""
    base = grid.profile
    found = {choice.category: choice for choice in choices if not choice.is_kept}
    changed = {
        category: grid.policy(category, choice.chosen.cell) for category, choice in found.items()
    }
    questions = sum(choice.questions for choice in choices)
    tried = f"rules {', '.join(grid.rules)}"
    if grid.strategies != (OWN,):
        tried += f", strategies {', '.join(grid.strategies)}"
    if "clasp" in grid.rules:
        tried += f", pivot ratios {', '.join(f'{ratio:g}' for ratio in grid.pivot_ratios)}"
    better = f"significantly better for {', '.join(changed)}" if changed else "nothing better"
    others = ""
    if len(changed) < len(base.categories):
        others = f"; {'the others' if changed else 'all'} as in {base.name!r}: {base.source}"
    return replace(
        base,
        name=name,
        format=2,
        categories={**base.categories, **changed},
        source=(
            f"clasp calibrate of clasp_kernels {__version__}: {data}, {questions} questions, "
            f"budgets {', '.join(map(str, budgets))}{_means(stages)}, tokens dropped {stages}, "
            f"score {scorer}, {tried}: {better}{others}"
        ),
    )
