"""Measure what it changes to renumber the positions of the kept tokens, as vLLM does.

    python training/tiny_vlm/positions.py --model clasp_kernels/assets/tiny_vlm \
        --out benchmarks/results/cpu/positions.json

Both settings of `apply_clasp(positions=...)` keep the same tokens and are asked the same held-out
questions in one run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from evaluate import generate_answers, heldout_examples, prepare, score
from kinds import KINDS
from transformers import AutoProcessor, LlavaForConditionalGeneration

from clasp_kernels.models import apply_clasp

BUDGETS = (16, 36, 72)
POSITIONS = ("original", "compact")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--per-cell", type=int, default=50)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    arguments = parser.parse_args()
    model = LlavaForConditionalGeneration.from_pretrained(arguments.model)
    processor = AutoProcessor.from_pretrained(arguments.model)
    examples = heldout_examples(arguments.per_cell, arguments.kinds)
    batches = prepare(processor, examples)
    rows = []
    for budget in BUDGETS:
        answers = {}
        for positions in POSITIONS:
            with apply_clasp(model, budget=budget, positions=positions, processor=processor):
                answers[positions] = generate_answers(
                    model, processor, batches, f"{positions} {budget}"
                )
        equal = sum(map(str.__eq__, answers["original"], answers["compact"]))
        rows.append(
            {
                "budget": budget,
                **{name: round(score(examples, answers[name]).overall, 4) for name in POSITIONS},
                "equal_answers": round(equal / len(examples), 4),
            }
        )
        print(rows[-1])
    report = {"questions": len(examples), "kinds": arguments.kinds, "rows": rows}
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
