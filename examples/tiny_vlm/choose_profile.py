"""Choose the tiny LLaVA's profile: strategies x pivot ratios, per category, on training scenes.

    python examples/tiny_vlm/choose_profile.py --model clasp_kernels/assets/tiny_vlm

Held-out scenes stay unseen. For every category the pair with the best mean accuracy over the
budgets wins; `general` and `knowledge`, which the scenes do not ask for, take the pair that is
best over all questions. Writes `clasp_profile.json` into the model's folder, and the table.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from evaluate import Example, generate_answers, prepare, score
from scenes import CATEGORIES, sample_scene
from transformers import AutoProcessor, LlavaForConditionalGeneration

from clasp_kernels.models import apply_clasp
from clasp_kernels.policy import Profile

LAYERS = (-4, -3, -2, -1)
STRATEGIES = "ABCDE"
PIVOT_RATIOS = (0.0, 0.25, 0.5, 0.75, 1.0)
BUDGETS = (12, 24)
UNASKED = ("knowledge", "general")
FIRST_SEED = 10_000_000  # any seed will do: the split is by content, not by seed


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


def uniform_profile(strategy: str, pivot_ratio: float) -> Profile:
    """The same choice for every category, so that one run scores all of them."""
    choice = {"layer_weights": strategy, "pivot_ratio": pivot_ratio}
    return Profile.from_dict(
        {
            "format": 1,
            "name": "sweep",
            "model_type": "llava",
            "layers": list(LAYERS),
            "source": "one cell of a sweep",
            "categories": {name: choice for name in (*CATEGORIES, *UNASKED)},
        }
    )


def sweep(
    model: LlavaForConditionalGeneration, processor: object, examples: list[Example]
) -> dict[tuple[str, float], dict[str, float]]:
    """Accuracy by category, and overall, of each strategy and pivot ratio: mean over budgets."""
    batches = prepare(processor, examples)
    table = {}
    for strategy in STRATEGIES:
        for ratio in PIVOT_RATIOS:
            runs = []
            for budget in BUDGETS:
                profile = uniform_profile(strategy, ratio)
                with apply_clasp(model, budget=budget, profile=profile, processor=processor):
                    answers = generate_answers(
                        model, processor, batches, f"{strategy} {ratio:.2f} keep {budget}"
                    )
                result = score(examples, answers)
                runs.append(result.by_category | {"overall": result.overall})
            table[strategy, ratio] = {
                name: sum(run[name] for run in runs) / len(runs) for name in runs[0]
            }
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--per-category", type=int, default=100)
    parser.add_argument("--table", type=Path, help="JSON with every cell of the sweep")
    arguments = parser.parse_args()
    model = LlavaForConditionalGeneration.from_pretrained(arguments.model).eval()
    processor = AutoProcessor.from_pretrained(arguments.model)
    examples = training_examples(arguments.per_category)
    table = sweep(model, processor, examples)
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
                f"this project's own, by examples/tiny_vlm/choose_profile.py: the best of "
                f"strategies {STRATEGIES[0]} to {STRATEGIES[-1]} and pivot ratios "
                f"{', '.join(map(str, PIVOT_RATIOS))} on {arguments.per_category} training "
                f"questions a category, mean over budgets {' and '.join(map(str, BUDGETS))}"
            ),
            "categories": categories,
        }
    )
    profile.save(arguments.model / "clasp_profile.json")
    if arguments.table:
        rows = [
            {"strategy": strategy, "pivot_ratio": ratio, "accuracy": accuracy}
            for (strategy, ratio), accuracy in table.items()
        ]
        arguments.table.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
