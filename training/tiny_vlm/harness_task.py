"""Write a task for the evaluation harness lmms-eval: questions about held-out scenes.

    python training/tiny_vlm/harness_task.py FOLDER
    lmms-eval ... --include_path FOLDER --tasks clasp_scenes

`benchmarks/real/run.sh bundled` does both. Only Pillow is needed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from pictures import Question
from scenes import Scene, sample_scene
from seeds import RECIPE
from words import CATEGORIES

NAME = "clasp_scenes"

_YAML = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {questions}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.picture
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs:
  max_new_tokens: 5
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""
_UTILS = """\
from PIL import Image


def picture(doc):
    return [Image.open(doc["image"]).convert("RGB")]
"""


def examples(count: int) -> Iterator[tuple[Scene, Question]]:
    """Yield `count` held-out examples, one a scene. The categories take turns."""
    found = 0
    seed = RECIPE
    while found < count:
        scene = sample_scene(seed, "heldout")
        wanted = CATEGORIES[found % len(CATEGORIES)]
        question = next((q for q in scene.questions(seed) if q.category == wanted), None)
        if question is not None:
            yield scene, question
            found += 1
        seed += 1


def write_task(folder: Path, count: int) -> None:
    """Write the task, its questions and their images into `folder`."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (scene, question) in enumerate(examples(count)):
        image = folder / f"{number}.png"
        scene.render().save(image)
        line = {"image": str(image), "question": question.text, "answer": question.answer}
        lines.append(json.dumps(line) + "\n")
    questions = folder / "questions.jsonl"
    questions.write_text("".join(lines))
    (folder / "utils.py").write_text(_UTILS)
    (folder / f"{NAME}.yaml").write_text(_YAML.format(name=NAME, questions=questions))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=50, help="questions (default: 50)")
    arguments = parser.parse_args()
    write_task(arguments.folder, arguments.count)


if __name__ == "__main__":
    main()
