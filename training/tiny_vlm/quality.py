"""Measure the accuracy of the tiny LLaVA with fewer visual tokens, on held-out pictures.

    python training/tiny_vlm/quality.py --model clasp_kernels/assets/tiny_vlm \
        --out benchmarks/results/cpu

All methods use the same model, questions and number of kept tokens, in one run. `clasp` is
`apply_clasp` with the model's profile. `pivots only` and `completion only` give the whole budget to
one of the two. `random` keeps uniformly drawn tokens, by masking all others as keys in every layer,
which is equivalent to dropping them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from evaluate import Example, Score, generate_answers, heldout_examples, prepare, score
from model import NUM_VISUAL_TOKENS
from transformers import AutoProcessor, LlavaForConditionalGeneration
from words import CATEGORIES

from clasp_kernels.models import apply_clasp
from clasp_kernels.policy import Profile

BUDGETS = (8, 16, 24, 36, 72)
METHODS = ("clasp", "pivots only", "completion only", "random")
COLORS = {"clasp": "#0072B2", "pivots only": "#E69F00", "completion only": "#009E73"}


def split_profile(profile: Profile, pivot_ratio: float) -> Profile:
    categories = {
        name: dataclasses.replace(policy, pivot_ratio=pivot_ratio)
        for name, policy in profile.categories.items()
    }
    return dataclasses.replace(profile, categories=categories)


def random_batches(model: LlavaForConditionalGeneration, batches: list[Any], budget: int) -> Any:
    """Yield the prompts with all but `budget` random tokens of each image masked as keys."""
    generator = torch.Generator().manual_seed(budget)
    for inputs in batches:
        mask = inputs["attention_mask"].clone()
        draw = torch.rand(len(mask), NUM_VISUAL_TOKENS, generator=generator)
        kept = draw.argsort(1).argsort(1) < budget
        mask[inputs["input_ids"] == model.config.image_token_id] = kept.long().flatten()
        positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        yield {**inputs, "attention_mask": mask, "position_ids": positions}


def measure(
    model: LlavaForConditionalGeneration,
    processor: Any,
    examples: list[Example],
    profile: Profile,
) -> dict[tuple[str, int], Score]:
    profiles = {
        "clasp": profile,
        "pivots only": split_profile(profile, 1.0),
        "completion only": split_profile(profile, 0.0),  # keeps one pivot to start from
    }
    batches = prepare(processor, examples)
    whole = generate_answers(model, processor, batches, "all")
    results = {("all tokens", NUM_VISUAL_TOKENS): score(examples, whole)}
    for budget in BUDGETS:
        for name, used in profiles.items():
            with apply_clasp(model, budget=budget, profile=used, processor=processor):
                answers = generate_answers(model, processor, batches, f"{name} {budget}")
            results[name, budget] = score(examples, answers)
        masked = random_batches(model, batches, budget)
        answers = generate_answers(model, processor, masked, f"random {budget}")
        results["random", budget] = score(examples, answers)
    return results


def plot(results: dict[tuple[str, int], Score], out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    whole = results["all tokens", NUM_VISUAL_TOKENS].overall
    axes.axhline(whole, color="0.35", lw=1, ls="--", label=f"all {NUM_VISUAL_TOKENS} tokens")
    for name in METHODS:
        values = [results[name, budget].overall for budget in BUDGETS]
        dashes = "--" if name == "completion only" else "-"  # its line covers that of clasp
        color = COLORS.get(name, "0.6")
        axes.plot(BUDGETS, values, dashes, marker="o", ms=4, lw=2, label=name, color=color)
    axes.set_xscale("log")
    axes.set_xticks(BUDGETS, [str(budget) for budget in BUDGETS])
    axes.minorticks_off()
    axes.set(xlabel="visual tokens kept", ylabel="accuracy on held-out questions", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(out, dpi=140)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--per-cell", type=int, default=50)
    arguments = parser.parse_args()
    model = LlavaForConditionalGeneration.from_pretrained(arguments.model).eval()
    processor = AutoProcessor.from_pretrained(arguments.model)
    examples = heldout_examples(arguments.per_cell)
    profile = Profile.load(arguments.model / "clasp_profile.json")
    results = measure(model, processor, examples, profile)
    print(f"{'':18s}{'kept':>6s}{'overall':>9s}" + "".join(f"{c:>11s}" for c in CATEGORIES))
    for (name, budget), result in results.items():
        cells = "".join(f"{result.by_category[category]:11.3f}" for category in CATEGORIES)
        print(f"{name:18s}{budget:6d}{result.overall:9.3f}{cells}")
    report = {
        "questions": len(examples),
        "rows": [
            {
                "method": name,
                "tokens_kept": budget,
                "overall": result.overall,
                "by_category": result.by_category,
            }
            for (name, budget), result in results.items()
        ],
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "tiny_vlm_quality.json").write_text(json.dumps(report, indent=2) + "\n")
    plot(results, arguments.out / "tiny_vlm_quality.png")


if __name__ == "__main__":
    main()
