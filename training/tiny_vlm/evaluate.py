"""Measure the accuracy of the tiny LLaVA on held-out scenes, with three baselines without images.

    python training/tiny_vlm/evaluate.py --model clasp_kernels/assets/tiny_vlm --out accuracy.json

Every answer comes from greedy `generate` on the single-turn prompt. An answer is right if it equals
the expected one. The baselines do not see the scene: the same model without an image, the same
model with a grey image, and the most frequent training answer to the same question.
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
from model import IMAGE_SIZE, PROMPT
from PIL import Image
from scenes import CATEGORIES, Question, Scene, sample_scene
from tqdm import tqdm
from transformers import AutoProcessor, LlavaForConditionalGeneration

Example = tuple[Scene, Question]


def heldout_examples(per_category: int) -> list[Example]:
    """Return the first `per_category` examples of each category, one question per scene."""
    found: dict[str, list[Example]] = {category: [] for category in CATEGORIES}
    seed = 0
    while any(len(examples) < per_category for examples in found.values()):
        scene = sample_scene(seed, "heldout")
        wanted = CATEGORIES[seed % len(CATEGORIES)]
        question = next((q for q in scene.questions(seed) if q.category == wanted), None)
        if question and len(found[wanted]) < per_category:
            found[wanted].append((scene, question))
        seed += 1
    return [example for examples in found.values() for example in examples]


@dataclass
class Score:
    by_category: dict[str, float]
    by_kind: dict[str, float]

    @property
    def overall(self) -> float:
        return sum(self.by_category.values()) / len(self.by_category)


def score(examples: Sequence[Example], answers: Iterable[str]) -> Score:
    category: dict[str, list[bool]] = defaultdict(list)
    kind: dict[str, list[bool]] = defaultdict(list)
    for (_, question), answer in zip(examples, answers, strict=True):
        correct = answer.strip() == question.answer
        category[question.category].append(correct)
        kind[f"{question.category}/{question.kind}"].append(correct)

    def mean(groups: dict[str, list[bool]]) -> dict[str, float]:
        return {name: sum(hits) / len(hits) for name, hits in groups.items()}

    return Score(mean(category), mean(kind))


def prepare(
    processor: Any,
    examples: Sequence[Example],
    picture: Callable[[Scene], Image.Image | None] = lambda scene: scene.render(IMAGE_SIZE),
    batch_size: int = 64,
) -> list[Any]:
    """Return model inputs in batches. If `picture` returns None, prompts have no image."""
    batches = []
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        images = [image for scene, _ in batch if (image := picture(scene)) is not None]
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


def frequent_answers(examples: Sequence[Example], num_scenes: int = 6000) -> list[str]:
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    by_kind: dict[str, Counter[str]] = defaultdict(Counter)
    for seed in range(num_scenes):
        for question in sample_scene(seed, "train").questions(seed):
            seen[question.text][question.answer] += 1
            by_kind[question.kind][question.answer] += 1
    return [
        (seen.get(question.text) or by_kind[question.kind]).most_common(1)[0][0]
        for _, question in examples
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--per-category", type=int, default=500)
    arguments = parser.parse_args()
    model = LlavaForConditionalGeneration.from_pretrained(arguments.model).eval()
    processor = AutoProcessor.from_pretrained(arguments.model)
    examples = heldout_examples(arguments.per_category)
    grey = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), (128, 128, 128))
    ways: dict[str, Callable[[Scene], Image.Image | None]] = {
        "image": lambda scene: scene.render(IMAGE_SIZE),
        "no image": lambda scene: None,
        "grey image": lambda scene: grey,
    }
    scores = {
        name: score(
            examples,
            generate_answers(model, processor, prepare(processor, examples, picture), name),
        )
        for name, picture in ways.items()
    }
    scores["most frequent answer"] = score(examples, frequent_answers(examples))
    print(f"{len(examples)} held-out questions")
    print(f"{'':28s}" + "".join(f"{name:>22s}" for name in scores))
    for row in ("overall", *CATEGORIES, *sorted(scores["image"].by_kind)):
        values = [
            s.overall if row == "overall" else (s.by_category | s.by_kind)[row]
            for s in scores.values()
        ]
        print(f"{row:28s}" + "".join(f"{value:22.3f}" for value in values))
    if arguments.out:
        report = {
            "questions": len(examples),
            "questions_per_category": arguments.per_category,
            "accuracy": {
                name: {"overall": s.overall, "by_category": s.by_category, "by_kind": s.by_kind}
                for name, s in scores.items()
            },
        }
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
