"""Render the scenes and questions of ``clasp demo`` into the package.

    python training/tiny_vlm/make_demo_assets.py

The scenes are held out from training. For each kind of question, the first suitable scene by seed
is taken, whether or not the model answers it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pictures import Question
from scenes import Scene, sample_scene

ASSETS = Path(__file__).resolve().parents[2] / "clasp_kernels" / "assets" / "demo"
KINDS = ("color", "count_shape", "place", "left_right", "sign", "setting")
PIXELS = 384
FIRST_SEED = 500_000


def worth_looking_at(scene: Scene) -> bool:
    """Return whether a scene has a sign and at least three different objects."""
    return scene.sign is not None and len({(o.shape, o.color) for o in scene.objects}) >= 3


def choose(kinds: tuple[str, ...]) -> list[tuple[Scene, Question]]:
    """Choose one scene and question of each kind, each scene with a different setting."""
    chosen: list[tuple[Scene, Question]] = []
    seed = FIRST_SEED
    for kind in kinds:
        while True:
            scene = sample_scene(seed, "heldout")
            question = next((q for q in scene.questions(seed) if q.kind == kind), None)
            seed += 1
            settings = {taken.setting for taken, _ in chosen}
            if question and worth_looking_at(scene) and scene.setting not in settings:
                chosen.append((scene, question))
                break
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ASSETS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, (scene, question) in enumerate(choose(KINDS), start=1):
        name = f"scene_{number}.png"
        scene.render(PIXELS).save(arguments.out / name, optimize=True)
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
