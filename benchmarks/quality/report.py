"""All numbers of the results, as JSON data: `rows.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from quality.names import ALL, BLIND, FREQUENT, FULL, NUM_TOKENS
from quality.questions import Label
from quality.resampling import (
    DRAWS,
    Estimate,
    Floats,
    Key,
    Resampled,
    accuracy_by_cell,
    counting_cells,
)
from quality.rows import Choices
from quality.verdicts import (
    Comparison,
    Differences,
    Fitness,
    Verdict,
    against_others,
    fitness,
    verdicts,
)

NEEDS = ("spot", "whole")


def judged_bed(
    labels: Sequence[Label], correct: Mapping[Key, Floats], choices: Choices, draws: int = DRAWS
) -> dict[str, Any]:
    """Return the report of one model, or of the mean of several: which cells count, every row with
    its intervals, how *full* compares with every other row, and the verdicts.

    ``correct`` has the row "random", and the most frequent answer.
    """
    guesses = [correct[name, NUM_TOKENS] for name in (BLIND, FREQUENT)]
    cells = counting_cells(labels, correct[ALL, NUM_TOKENS], guesses)
    by_cell = {
        name: accuracy_by_cell(labels, correct[name, NUM_TOKENS]) for name in (ALL, BLIND, FREQUENT)
    }
    if not cells:
        fit, judged, rows, others = fitness(cells, None), [], [], []
    else:
        resampled = Resampled(labels, correct, cells, draws=draws)
        fit = fitness(cells, resampled)
        judged = verdicts(resampled, choices, fit)
        rows = [_row(resampled, key) for key in correct]
        names = dict.fromkeys(name for name, tokens in correct if tokens < NUM_TOKENS)
        others = against_others(resampled, [name for name in names if name != FULL])
    return {
        "accuracy_by_cell": by_cell,
        "fitness": _fitness(fit),
        "rows": rows,
        "full_against": {each.text: _differences(each) for each in others},
        "verdicts": [_verdict(each) for each in judged],
    }


def _row(resampled: Resampled, key: Key) -> dict[str, Any]:
    name, budget = key
    return {
        "row": name,
        "tokens": budget,
        "accuracy": _estimate(Estimate.of(resampled.accuracy(key))),
        "accuracy_by_category": {
            category: _estimate(
                Estimate.of(resampled.accuracy(key, partial(_in_category, category)))
            )
            for category in resampled.categories()
        },
        "retained": _estimate(Estimate.of(100 * resampled.retained(key))),
        "retained_by_category": {
            category: _estimate(
                Estimate.of(100 * resampled.retained(key, partial(_in_category, category)))
            )
            for category in resampled.categories()
        },
        "retained_by_needs": {
            needs: _estimate(Estimate.of(100 * resampled.retained(key, partial(_needs, needs))))
            for needs in NEEDS
            if resampled.categories(partial(_needs, needs))
        },
    }


def _in_category(category: str, label: Label) -> bool:
    return label.category == category


def _needs(needs: str, label: Label) -> bool:
    return label.needs == needs


def _estimate(estimate: Estimate) -> list[float]:
    """The value, and the ends of its interval."""
    return [round(each, 4) for each in (estimate.value, estimate.low, estimate.high)]


def _fitness(fit: Fitness) -> dict[str, Any]:
    return {
        "is_fit": fit.is_fit,
        "cells": list(fit.cells),
        "loss": fit.loss,
        "problems": list(fit.problems),
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        "part": verdict.part,
        "verdict": verdict.verdict,
        "notes": list(verdict.notes),
        "comparisons": [
            {
                "text": each.text,
                "verdict": each.verdict,
                **_differences(each),
            }
            for each in verdict.comparisons
        ],
    }


def _differences(comparison: Comparison) -> dict[str, Any]:
    def by_budget(differences: Differences) -> dict[str, list[float]]:
        return {str(budget): _estimate(each) for budget, each in differences.items()}

    return {
        "differences": by_budget(comparison.differences),
        "simultaneous": by_budget(comparison.simultaneous),
    }
