"""Write training scenes and their questions as images and a JSONL file for `clasp calibrate`.

    python training/tiny_vlm/write_questions.py out/scenes --per-category 100

Held-out scenes are not used, so that they can judge the profile.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from evaluate import Example
from model import IMAGE_SIZE
from scenes import Scene, sample_scene
from words import CATEGORIES

FIRST_SEED = 10_000_000  # an arbitrary seed: the split is by content, not by seed


def training_examples(per_category: int) -> list[Example]:
    """Return the first examples of each category, at most one of each category about a scene."""
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


def write_questions(folder: Path, per_category: int) -> Path:
    """Write the images and `questions.jsonl`, and return the path of that."""
    folder.mkdir(parents=True, exist_ok=True)
    names: dict[Scene, str] = {}
    lines = []
    for scene, question in training_examples(per_category):
        if scene not in names:
            names[scene] = f"scene_{len(names)}.png"
            scene.render(IMAGE_SIZE).save(folder / names[scene])
        row = {
            "image": names[scene],
            "question": question.text,
            "answer": question.answer,
            "category": question.category,
        }
        lines.append(json.dumps(row) + "\n")
    path = folder / "questions.jsonl"
    path.write_text("".join(lines), encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--per-category", type=int, default=100)
    arguments = parser.parse_args()
    print(write_questions(arguments.folder, arguments.per_category))


if __name__ == "__main__":
    main()
