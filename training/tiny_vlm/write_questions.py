"""Write training scenes and their questions as images and a JSONL file for `clasp calibrate`.

    python training/tiny_vlm/write_questions.py out/scenes --per-category 100

Held-out scenes are not used, so that they can judge the profile. One question is asked about a
scene, as answers about one scene depend on each other.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from model import IMAGE_SIZE
from scenes import CATEGORIES, sample_scene

FIRST_SEED = 10_000_000  # an arbitrary seed: the split is by content, not by seed


def write_questions(folder: Path, per_category: int, first_seed: int = FIRST_SEED) -> Path:
    """Write the images and `questions.jsonl`, and return the path of that."""
    folder.mkdir(parents=True, exist_ok=True)
    lines, left, seed = [], dict.fromkeys(CATEGORIES, per_category), first_seed
    while any(left.values()):
        scene = sample_scene(seed, "train")
        asked = next((q for q in scene.questions(seed) if left[q.category]), None)
        if asked is not None:
            left[asked.category] -= 1
            name = f"scene_{seed}.png"
            scene.render(IMAGE_SIZE).save(folder / name)
            row = {"image": name, "question": asked.text, "answer": asked.answer}
            lines.append(json.dumps({**row, "category": asked.category}) + "\n")
        seed += 1
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
