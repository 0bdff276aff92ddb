"""The questions that choose a profile: of every kind that has the category, from training alone."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from kinds import CATEGORIES_OF, KINDS
from model import IMAGE_SIZE
from PIL import Image
from words import CATEGORIES
from write_questions import training_examples, write_questions


def test_the_kinds_that_have_a_category_take_turns() -> None:
    examples = training_examples(9)
    assert {picture.split for picture, _ in examples} == {"train"}
    counts = Counter((question.category, picture.kind) for picture, question in examples)
    for category in CATEGORIES:
        having = [kind for kind in KINDS if category in CATEGORIES_OF[kind]]
        shares = [counts[category, kind] for kind in having]
        assert sum(shares) == 9 and max(shares) - min(shares) <= 1


def test_only_the_kinds_that_were_asked_for_are_drawn() -> None:
    examples = training_examples(2, ["documents"])
    assert {picture.kind for picture, _ in examples} == {"documents"}
    assert {question.category for _, question in examples} == {*CATEGORIES_OF["documents"]}


@pytest.mark.parametrize("kinds", [["signs"], ["objects", "textures"]])
def test_the_file_names_the_pictures_that_are_written(tmp_path: Path, kinds: list[str]) -> None:
    path = write_questions(tmp_path, 2, kinds)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    examples = training_examples(2, kinds)
    for row, (picture, question) in zip(rows, examples, strict=True):
        assert (row["question"], row["answer"]) == (question.text, question.answer)
        with Image.open(tmp_path / row["image"]) as image:
            assert image.tobytes() == picture.render(IMAGE_SIZE).tobytes()
