"""Render the pictures and questions of ``clasp demo`` into the package.

    python training/tiny_vlm/make_demo_assets.py

The pictures are held out from training. For each kind of question, the first suitable picture by
seed is taken, whether or not the model answers it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from kinds import sample
from pictures import Picture, Question
from scenes import Scene
from seeds import DEMO

ASSETS = Path(__file__).resolve().parents[2] / "clasp_kernels" / "assets" / "demo"
# The kind of picture, and the kind of question.
ASKED = (
    ("objects", "color"),
    ("objects", "count_shape"),
    ("objects", "place"),
    ("objects", "left_right"),
    ("objects", "sign"),
    ("objects", "setting"),
    ("documents", "value"),
    ("clutter", "color"),
    ("textures", "pattern"),
)
PIXELS = 384


def worth_looking_at(picture: Picture, settings: set[str]) -> bool:
    """Return whether a scene of objects has a sign, at least three different objects, and a setting
    that is not among `settings`. Every picture of another kind is worth it."""
    if not isinstance(picture, Scene):
        return True
    objects = {(o.shape, o.color) for o in picture.objects}
    return picture.sign is not None and len(objects) >= 3 and picture.setting not in settings


def choose(asked: tuple[tuple[str, str], ...]) -> list[tuple[Picture, Question]]:
    """Choose a picture of each kind with a question of the kind asked."""
    chosen: list[tuple[Picture, Question]] = []
    settings: set[str] = set()
    seed = DEMO
    for kind, wanted in asked:
        while True:
            picture = sample(kind, seed, "heldout")
            question = next((q for q in picture.questions(seed) if q.kind == wanted), None)
            seed += 1
            if question and worth_looking_at(picture, settings):
                chosen.append((picture, question))
                settings.add(picture.surroundings)
                break
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ASSETS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, (picture, question) in enumerate(choose(ASKED), start=1):
        name = f"scene_{number}.png"
        picture.render(PIXELS).save(arguments.out / name, optimize=True)
        entries.append(
            {
                "image": name,
                "category": question.category,
                "question": question.text,
                "answer": question.answer,
            }
        )
    text = json.dumps(entries, indent=2)
    (arguments.out / "questions.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
