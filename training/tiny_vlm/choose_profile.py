"""Choose the tiny LLaVA's profile on training pictures: salience layer, strategies, pivot ratios.

    python training/tiny_vlm/choose_profile.py --model clasp_kernels/assets/tiny_vlm

Held-out pictures are not used. The kinds of picture that have a category take turns. The salience
layer is chosen first: the one with the best accuracy of pivots only, with the deepest layers fused.
Then all strategies x pivot ratios are tried with that layer, with the fused layers given to the
projector and with them choosing tokens only. Each category gets the pair with the best mean
accuracy over the budgets, in the way of fusing whose pairs are best on average. `general` and
`knowledge`, which nothing asks about, get the pair that is best over all questions:
`benchmarks/quality` takes it for its row "one profile". The script writes `clasp_profile.json` into
the model's folder, and the table.

The answers are those of `clasp calibrate`. That keeps a default unless something else is
significantly better; here there is no default yet, so the best scores decide alone.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from kinds import KINDS
from tqdm import tqdm
from words import CATEGORIES
from write_questions import write_questions

from clasp_kernels.calibrate import (
    AnswerStore,
    Cell,
    Grid,
    Question,
    Sweep,
    choose,
    read_questions,
)
from clasp_kernels.cli.calibrate import prepared
from clasp_kernels.cli.loading import LoadedModel, load_model
from clasp_kernels.models import apply_clasp
from clasp_kernels.policy import Profile

LAYERS = (-4, -3, -2, -1)
SALIENCE_LAYERS = (-1, -2, -3, -4)
STRATEGIES = ("A", "B", "C", "D", "E")
PIVOT_RATIOS = (0.0, 0.25, 0.5, 0.75, 1.0)
FUSE_INTO = ("projector", "selection")
BUDGETS = (12, 24)
UNASKED = ("knowledge", "general")
Scores = dict[Cell, dict[str, float]]
"""Accuracies by category, and "overall"."""


def pivots_of_the_deepest(salience_layer: int, fuse_into: str) -> Profile:
    """Return a profile without completion, which shows how good the salience is."""
    choice = {"layer_weights": "E", "pivot_ratio": 1.0}
    return Profile.from_dict(
        {
            "format": 2,
            "name": "tiny_vlm",
            "model_type": "llava",
            "layers": list(LAYERS),
            "source": "one salience layer of a sweep",
            "salience_layer": salience_layer,
            "fuse_into": fuse_into,
            "categories": {name: choice for name in (*CATEGORIES, *UNASKED)},
        }
    )


def scores(loaded: LoadedModel, questions: list[Question], grid: Grid, folder: Path) -> Scores:
    """Return the accuracy of each cell by category and overall, averaged over the budgets."""
    with apply_clasp(loaded.model, profile=grid.profile, processor=loaded.processor) as handle:
        take = partial(prepared, loaded=loaded, adapter=handle.adapter)
    sweep = Sweep(
        loaded.model, loaded.processor, grid, BUDGETS, take, max_new_tokens=5, batch_size=25
    )
    with AnswerStore(folder, {}) as store, tqdm(total=sweep.size(questions)) as bar:
        sweep.run(questions, store, lambda done: bar.update(done - bar.n))
        choices = choose(questions, grid, BUDGETS, store.answers, "exact", draws=1)
    found: Scores = {cell: {} for cell in grid.tried}
    for choice in choices:
        for result in choice.results:
            found[result.cell][choice.category] = result.score
    for by_category in found.values():
        by_category["overall"] = sum(by_category.values()) / len(by_category)
    return found


def best(table: Scores, category: str) -> Cell:
    """Return the best cell for a category, the first of equals."""
    column = "overall" if category in UNASKED else category
    return max(table, key=lambda cell: table[cell][column])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--per-category", type=int, default=100)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--table", type=Path, help="JSON with every cell of the sweep")
    arguments = parser.parse_args()
    loaded = load_model(str(arguments.model), "cpu")
    with TemporaryDirectory() as name:
        folder = Path(name)
        questions = read_questions(write_questions(folder, arguments.per_category, arguments.kinds))
        layers = {}
        for layer in SALIENCE_LAYERS:
            grid = Grid(pivots_of_the_deepest(layer, FUSE_INTO[0]), ("E",), (1.0,))
            [layers[layer]] = scores(loaded, questions, grid, folder / f"layer{layer}").values()
        salience_layer = max(layers, key=lambda layer: layers[layer]["overall"])
        grids, tables = {}, {}
        for way in FUSE_INTO:
            start = pivots_of_the_deepest(salience_layer, way)
            grids[way] = Grid(start, STRATEGIES, PIVOT_RATIOS)
            tables[way] = scores(loaded, questions, grids[way], folder / way)
    reached = {
        way: sum(table[best(table, name)][name] for name in CATEGORIES) / len(CATEGORIES)
        for way, table in tables.items()
    }
    fuse_into = max(FUSE_INTO, key=lambda way: reached[way])
    grid = grids[fuse_into]
    print("pivots alone, by salience layer")
    for layer, accuracy in layers.items():
        print(f"  {layer}" + "".join(f"  {name} {accuracy[name]:.3f}" for name in accuracy))
    for way, table in tables.items():
        for name in (*CATEGORIES, "overall"):
            print(f"{name}, fused into the {way}")
            for strategy in STRATEGIES:
                row = (table[Cell("clasp", strategy, ratio)][name] for ratio in PIVOT_RATIOS)
                print(f"  {strategy}" + "".join(f"{score:7.3f}" for score in row))
        print(f"mean of the best of each category, fused into the {way}: {reached[way]:.4f}")
    profile = replace(
        grid.profile,
        categories={
            name: grid.policy(name, best(tables[fuse_into], name))
            for name in (*CATEGORIES, *UNASKED)
        },
        source=(
            "this project's own, by training/tiny_vlm/choose_profile.py: the best salience "
            f"layer of {', '.join(map(str, SALIENCE_LAYERS))}, then the best of fusing into "
            f"{' or '.join(FUSE_INTO)}, strategies {STRATEGIES[0]} to {STRATEGIES[-1]} and pivot "
            f"ratios {', '.join(map(str, PIVOT_RATIOS))} on {arguments.per_category} training "
            f"questions a category about {', '.join(arguments.kinds)}, "
            f"mean over budgets {' and '.join(map(str, BUDGETS))}"
        ),
    )
    profile.save(arguments.model / "clasp_profile.json")
    if arguments.table:
        report = {
            "budgets": BUDGETS,
            "kinds": arguments.kinds,
            "questions_per_category": arguments.per_category,
            "pivots_only_by_salience_layer": layers,
            "best_of_each_category": reached,
            "cells": [
                {
                    "fuse_into": way,
                    "strategy": cell.strategy,
                    "pivot_ratio": cell.pivot_ratio,
                    "accuracy": accuracy,
                }
                for way, table in tables.items()
                for cell, accuracy in table.items()
            ],
        }
        arguments.table.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
