"""Choose the tiny LLaVA's profile on training scenes: salience layer, strategies, pivot ratios.

    python training/tiny_vlm/choose_profile.py --model clasp_kernels/assets/tiny_vlm

Held-out scenes are not used. The salience layer is chosen first: the one with the best accuracy of
pivots only, with the deepest layer fused. Then all strategies x pivot ratios are tried with that
layer. Each category gets the pair with the best mean accuracy over the budgets. `general` and
`knowledge`, which the scenes have no questions for, get the pair that is best over all questions.
The script writes `clasp_profile.json` into the model's folder, and the table.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluate import Example, generate_answers, prepare, score
from scenes import CATEGORIES, sample_scene
from transformers import AutoProcessor, LlavaForConditionalGeneration

from clasp_kernels.models import apply_clasp
from clasp_kernels.policy import Profile

LAYERS = (-4, -3, -2, -1)
SALIENCE_LAYERS = (-1, -2, -3, -4)
STRATEGIES = "ABCDE"
PIVOT_RATIOS = (0.0, 0.25, 0.5, 0.75, 1.0)
BUDGETS = (12, 24)
UNASKED = ("knowledge", "general")
FIRST_SEED = 10_000_000  # an arbitrary seed: the split is by content, not by seed


def training_examples(per_category: int) -> list[Example]:
    found: dict[str, list[Example]] = {category: [] for category in CATEGORIES}
    seed = FIRST_SEED
    while any(len(examples) < per_category for examples in found.values()):
        scene = sample_scene(seed, "train")
        for question in scene.questions(seed):
            examples = found[question.category]
            if len(examples) < per_category and (not examples or examples[-1][0] != scene):
                examples.append((scene, question))
        seed += 1
    return [example for examples in found.values() for example in examples]


def uniform_profile(strategy: str, pivot_ratio: float, salience_layer: int) -> Profile:
    """Return a profile with the same choice for every category, so one run scores all of them."""
    choice = {"layer_weights": strategy, "pivot_ratio": pivot_ratio}
    return Profile.from_dict(
        {
            "format": 1,
            "name": "sweep",
            "model_type": "llava",
            "layers": list(LAYERS),
            "source": "one cell of a sweep",
            "salience_layer": salience_layer,
            "categories": {name: choice for name in (*CATEGORIES, *UNASKED)},
        }
    )


@dataclass
class Sweep:
    """Measures the accuracy of profiles on the same questions."""

    model: LlavaForConditionalGeneration
    processor: Any
    examples: list[Example]

    def __post_init__(self) -> None:
        self.batches = prepare(self.processor, self.examples)

    def accuracy(self, profile: Profile, description: str) -> dict[str, float]:
        """Return the accuracy by category and overall, averaged over the budgets."""
        runs = []
        for budget in BUDGETS:
            with apply_clasp(self.model, budget=budget, profile=profile, processor=self.processor):
                answers = generate_answers(
                    self.model, self.processor, self.batches, f"{description} keep {budget}"
                )
            result = score(self.examples, answers)
            runs.append(result.by_category | {"overall": result.overall})
        return {name: sum(run[name] for run in runs) / len(runs) for name in runs[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--per-category", type=int, default=100)
    parser.add_argument("--table", type=Path, help="JSON with every cell of the sweep")
    arguments = parser.parse_args()
    model = LlavaForConditionalGeneration.from_pretrained(arguments.model).eval()
    processor = AutoProcessor.from_pretrained(arguments.model)
    examples = training_examples(arguments.per_category)
    sweep = Sweep(model, processor, examples)
    layers = {
        layer: sweep.accuracy(uniform_profile("E", 1.0, layer), f"salience layer {layer}")
        for layer in SALIENCE_LAYERS
    }
    salience_layer = max(layers, key=lambda layer: layers[layer]["overall"])
    table = {
        (strategy, ratio): sweep.accuracy(
            uniform_profile(strategy, ratio, salience_layer), f"{strategy} {ratio:.2f}"
        )
        for strategy in STRATEGIES
        for ratio in PIVOT_RATIOS
    }
    print("pivots alone, by salience layer")
    for layer, accuracy in layers.items():
        print(f"  {layer}" + "".join(f"  {name} {accuracy[name]:.3f}" for name in accuracy))
    for name in (*CATEGORIES, "overall"):
        print(name)
        for strategy in STRATEGIES:
            cells = (f"{table[strategy, ratio][name]:7.3f}" for ratio in PIVOT_RATIOS)
            print(f"  {strategy}" + "".join(cells))
    categories = {}
    for name in (*CATEGORIES, *UNASKED):
        column = "overall" if name in UNASKED else name
        strategy, ratio = max(table, key=lambda cell: table[cell][column])
        categories[name] = {"layer_weights": strategy, "pivot_ratio": ratio}
    profile = Profile.from_dict(
        {
            "format": 1,
            "name": "tiny_vlm",
            "model_type": "llava",
            "layers": list(LAYERS),
            "source": (
                "this project's own, by training/tiny_vlm/choose_profile.py: the best salience "
                f"layer of {', '.join(map(str, SALIENCE_LAYERS))}, then the best of "
                f"strategies {STRATEGIES[0]} to {STRATEGIES[-1]} and pivot ratios "
                f"{', '.join(map(str, PIVOT_RATIOS))} on {arguments.per_category} training "
                f"questions a category, mean over budgets {' and '.join(map(str, BUDGETS))}"
            ),
            "salience_layer": salience_layer,
            "categories": categories,
        }
    )
    profile.save(arguments.model / "clasp_profile.json")
    if arguments.table:
        report = {
            "budgets": BUDGETS,
            "questions_per_category": arguments.per_category,
            "pivots_only_by_salience_layer": layers,
            "cells": [
                {"strategy": strategy, "pivot_ratio": ratio, "accuracy": accuracy}
                for (strategy, ratio), accuracy in table.items()
            ],
        }
        arguments.table.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
