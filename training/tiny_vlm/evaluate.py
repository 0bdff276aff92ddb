"""Measure the accuracy of the tiny LLaVA on held-out pictures, with baselines without images.

    python training/tiny_vlm/evaluate.py --model clasp_kernels/assets/tiny_vlm --out accuracy.json

Every answer comes from greedy `generate` on the single-turn prompt. An answer is right if it equals
the expected one. A cell is a kind of picture and a category of questions; every cell has as many
questions, one a picture. The baselines do not see the picture: the same model without an image, the
same model with a grey image, and the most frequent training answer to the same question.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from kinds import CATEGORIES_OF, KINDS, sample
from model import IMAGE_SIZE, PROMPT
from pictures import Picture, Question
from PIL import Image
from seeds import RECIPE
from tqdm import tqdm
from transformers import AutoProcessor, LlavaForConditionalGeneration
from words import CATEGORIES

Example = tuple[Picture, Question]


def examples_of(kinds: Sequence[str], per_cell: int, split: str, first_seed: int) -> list[Example]:
    """Return the first `per_cell` examples of each category of each kind, one a picture."""
    found: list[Example] = []
    for kind in kinds:
        cells: dict[str, list[Example]] = {category: [] for category in CATEGORIES_OF[kind]}
        seed = first_seed
        while any(len(examples) < per_cell for examples in cells.values()):
            picture = sample(kind, seed, split)
            wanted = CATEGORIES_OF[kind][seed % len(cells)]
            question = next((q for q in picture.questions(seed) if q.category == wanted), None)
            if question and len(cells[wanted]) < per_cell:
                cells[wanted].append((picture, question))
            seed += 1
        found += [example for examples in cells.values() for example in examples]
    return found


def heldout_examples(per_cell: int, kinds: Sequence[str] = tuple(KINDS)) -> list[Example]:
    """Return the first `per_cell` held-out examples of each category of each kind.

    They may judge a recipe. `benchmarks/quality` judges by others.
    """
    return examples_of(kinds, per_cell, "heldout", RECIPE)


@dataclass
class Score:
    """Accuracies. A cell is "kind/category", a template "kind/category/template"."""

    by_category: dict[str, float]
    by_needs: dict[str, float]
    by_cell: dict[str, float]
    by_template: dict[str, float]

    @property
    def overall(self) -> float:
        return sum(self.by_category.values()) / len(self.by_category)


def score(examples: Sequence[Example], answers: Iterable[str]) -> Score:
    groups: list[dict[str, list[bool]]] = [defaultdict(list) for _ in range(4)]
    for (picture, question), answer in zip(examples, answers, strict=True):
        cell = f"{picture.kind}/{question.category}"
        names = (question.category, question.needs, cell, f"{cell}/{question.kind}")
        for group, name in zip(groups, names, strict=True):
            group[name].append(answer.strip() == question.answer)
    return Score(
        *({name: sum(hits) / len(hits) for name, hits in group.items()} for group in groups)
    )


def prepare(
    processor: Any,
    examples: Sequence[Example],
    draw: Callable[[Picture], Image.Image | None] = lambda picture: picture.render(IMAGE_SIZE),
    batch_size: int = 64,
) -> list[Any]:
    """Return model inputs in batches. If `draw` returns None, prompts have no image."""
    batches = []
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        images = [image for picture, _ in batch if (image := draw(picture)) is not None]
        prompt = PROMPT if images else PROMPT.replace("<image>", "")
        batches.append(
            processor(
                images=images or None,
                text=[prompt.format(question=question.text) for _, question in batch],
                return_tensors="pt",
                padding=True,
            )
        )
    return batches


def generate_answers(
    model: LlavaForConditionalGeneration,
    processor: Any,
    batches: Iterable[Any],
    description: str = "",
) -> list[str]:
    """Return greedy answers to the prompts in `batches`."""
    answers: list[str] = []
    for inputs in tqdm(batches, desc=description):
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=5, do_sample=False)
        new = output[:, inputs["input_ids"].shape[1] :]
        answers += processor.batch_decode(new, skip_special_tokens=True)
    return answers


def frequent_answers(examples: Sequence[Example], num_pictures: int = 3000) -> list[str]:
    """Return the most frequent answer to each question, or to its template, in training pictures
    of its kind."""
    seen: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for kind in {picture.kind for picture, _ in examples}:
        for seed in range(num_pictures):
            for question in sample(kind, seed, "train").questions(seed):
                for asked in (question.text, question.kind):
                    seen[kind, asked][question.answer] += 1
    return [
        (seen.get((picture.kind, question.text)) or seen[picture.kind, question.kind]).most_common(
            1
        )[0][0]
        for picture, question in examples
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--per-cell", type=int, default=250)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    arguments = parser.parse_args()
    model = LlavaForConditionalGeneration.from_pretrained(arguments.model).eval()
    processor = AutoProcessor.from_pretrained(arguments.model)
    examples = heldout_examples(arguments.per_cell, arguments.kinds)
    grey = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), (128, 128, 128))
    ways: dict[str, Callable[[Picture], Image.Image | None]] = {
        "image": lambda picture: picture.render(IMAGE_SIZE),
        "no image": lambda picture: None,
        "grey image": lambda picture: grey,
    }
    scores = {
        name: score(
            examples,
            generate_answers(model, processor, prepare(processor, examples, draw), name),
        )
        for name, draw in ways.items()
    }
    scores["most frequent answer"] = score(examples, frequent_answers(examples))
    print(f"{len(examples)} held-out questions")
    print(f"{'':40s}" + "".join(f"{name:>22s}" for name in scores))
    image = scores["image"]
    categories = [category for category in CATEGORIES if category in image.by_category]
    for row in ("overall", *categories, *image.by_needs, *image.by_cell, *image.by_template):
        values = [
            s.overall
            if row == "overall"
            else (s.by_category | s.by_needs | s.by_cell | s.by_template)[row]
            for s in scores.values()
        ]
        print(f"{row:40s}" + "".join(f"{value:22.3f}" for value in values))
    if arguments.out:
        report = {
            "questions": len(examples),
            "questions_per_cell": arguments.per_cell,
            "accuracy": {
                name: {
                    "overall": s.overall,
                    "by_category": s.by_category,
                    "by_needs": s.by_needs,
                    "by_cell": s.by_cell,
                    "by_template": s.by_template,
                }
                for name, s in scores.items()
            },
        }
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
