"""Write training pictures and their questions as images and a JSONL file for `clasp calibrate`.

    python training/tiny_vlm/write_questions.py out/questions --per-category 100

Held-out pictures are not used, so that they can judge the profile.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import cache
from itertools import chain
from pathlib import Path

from evaluate import Example, examples_of
from kinds import CATEGORIES_OF, KINDS
from model import IMAGE_SIZE
from seeds import PROFILE
from words import CATEGORIES


def training_examples(per_category: int, kinds: Sequence[str] = tuple(KINDS)) -> list[Example]:
    """Return `per_category` examples of each category, one a picture.

    The kinds of picture that have the category take turns.
    """
    found: list[Example] = []
    for category in CATEGORIES:
        having = [kind for kind in kinds if category in CATEGORIES_OF[kind]]
        if having:
            cells = [_cell(kind, category, -(-per_category // len(having))) for kind in having]
            found += list(chain.from_iterable(zip(*cells, strict=True)))[:per_category]
    return found


def _cell(kind: str, category: str, count: int) -> list[Example]:
    """Return `count` training examples of one category of one kind."""
    every = _examples(kind, count)
    return [(picture, question) for picture, question in every if question.category == category]


@cache
def _examples(kind: str, per_cell: int) -> list[Example]:
    return examples_of([kind], per_cell, "train", PROFILE)


def write_questions(folder: Path, per_category: int, kinds: Sequence[str] = tuple(KINDS)) -> Path:
    """Write the images and `questions.jsonl`, and return the path of that."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (picture, question) in enumerate(training_examples(per_category, kinds)):
        name = f"picture_{number}.png"
        picture.render(IMAGE_SIZE).save(folder / name)
        row = {
            "image": name,
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
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    arguments = parser.parse_args()
    print(write_questions(arguments.folder, arguments.per_category, arguments.kinds))


if __name__ == "__main__":
    main()
