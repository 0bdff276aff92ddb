"""Compare pruning the tiny LLaVA inside its decoder with pruning before it, at equal mean tokens.

    python training/tiny_vlm/stages.py --model clasp_kernels/assets/tiny_vlm \
        --out benchmarks/results/cpu

A schedule's number of tokens is its mean over the decoder layers. Tokens are scored by the
attention of the prompt's last token, or of all tokens after the image (`salience_rows`). Completion
uses hidden states or fused vision features (`completion_on`). Each combination is a row. All rows
use the same model and the same held-out questions, in one run.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

from evaluate import generate_answers, heldout_examples, prepare, score
from model import NUM_VISUAL_TOKENS
from transformers import AutoProcessor, LlavaForConditionalGeneration
from words import CATEGORIES

from clasp_kernels.models import apply_clasp
from clasp_kernels.policy import Profile, Schedule

# (layers after which tokens are dropped, mean numbers of kept tokens).
STAGES = (
    ((0, 2, 4), (16, 36, 72)),
    ((1, 3), (36, 72)),
    ((2,), (72,)),
)
SALIENCE_ROWS = ("last", "instruction")
COMPLETION_ON = ("hidden", "fused")


def measure(model: Any, processor: Any, per_cell: int, profile: Profile) -> dict[str, Any]:
    examples = heldout_examples(per_cell)
    batches = prepare(processor, examples)
    num_layers = model.config.text_config.num_hidden_layers

    def row(schedule: Schedule, **settings: str) -> dict[str, Any]:
        with apply_clasp(
            model, schedule=schedule, profile=profile, processor=processor, **settings
        ):
            answers = generate_answers(model, processor, batches, f"{schedule} {settings}")
        result = score(examples, answers)
        return {
            "schedule": str(schedule),
            "mean_tokens": schedule.average(NUM_VISUAL_TOKENS, num_layers),
            **settings,
            "overall": result.overall,
            "by_category": result.by_category,
        }

    rows = []
    for budget in sorted({average for _, averages in STAGES for average in averages}):
        rows.append(row(Schedule.input(budget)))
        for layers in (layers for layers, averages in STAGES if budget in averages):
            schedule = Schedule.progressive(
                budget, layers=layers, num_layers=num_layers, num_tokens=NUM_VISUAL_TOKENS
            )
            for salience_rows, completion_on in itertools.product(SALIENCE_ROWS, COMPLETION_ON):
                rows.append(row(schedule, salience_rows=salience_rows, completion_on=completion_on))
    return {"questions": len(examples), "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--per-cell", type=int, default=50)
    arguments = parser.parse_args()
    model = LlavaForConditionalGeneration.from_pretrained(arguments.model).eval()
    processor = AutoProcessor.from_pretrained(arguments.model)
    profile = Profile.load(arguments.model / "clasp_profile.json")
    report = measure(model, processor, arguments.per_cell, profile)
    print(f"{'schedule':22s}{'mean':>6s}{'rows':>13s}{'completion':>12s}{'overall':>9s}")
    for row in report["rows"]:
        cells = "".join(f"{row['by_category'][category]:11.3f}" for category in CATEGORIES)
        print(
            f"{row['schedule']:22s}{row['mean_tokens']:6.1f}{row.get('salience_rows', ''):>13s}"
            f"{row.get('completion_on', ''):>12s}{row['overall']:9.3f}{cells}"
        )
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "tiny_vlm_stages.json"
    path.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
