"""Read the questions of a calibration from a JSONL file, and check them before anything runs.

Every line is a JSON object::

    {"image": "photos/1.jpg", "question": "How many dogs are there?", "answer": "3"}
    {"image": "photos/2.jpg", "question": "What does it say?", "answer": ["exit", "the exit"],
     "category": "ocr", "score": "anls"}

``image``
    A path, absolute or relative to the folder of the file.
``question``, ``answer``
    The answer is a string or a number, or a non-empty list of them.
``category``
    Optional; the router decides where it is missing.
``score``
    Optional; the name of a scorer of ``clasp_kernels.calibrate.scoring`` for this question.

Other fields are ignored, so that a file may serve other tools too.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from clasp_kernels.calibrate.scoring import SCORERS

# So many problems are named; of the others, their number.
_NAMED = 5


@dataclass(frozen=True)
class Question:
    """One question of the data, with its right answers."""

    line: int
    """The line of the file, from 1."""
    image: Path
    image_hash: str
    """SHA-256 of the bytes of the image file."""
    text: str
    answers: tuple[str, ...]
    category: str | None
    """None until it is routed."""
    scorer: str | None = None

    @property
    def key(self) -> str:
        """A name that depends on the content alone: equal for equal questions about equal images.

        The right answers are not in it, as they do not change what the model says.
        """
        content = json.dumps([self.image_hash, self.text, self.category])
        return sha256(content.encode()).hexdigest()[:16]


def read_questions(path: Path) -> list[Question]:
    """Read the questions of a JSONL file, in the order of its lines. Blank lines are skipped.

    Raises:
        ValueError: lines cannot be used; the message names them, and what is wrong with them.
        OSError: the file cannot be read.
    """
    hashes: dict[Path, str] = {}
    found, wrong = [], []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 text: {error.reason} at byte {error.start}") from None
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            found.append(_question(number, text, path.parent, hashes))
        except ValueError as error:
            wrong.append(f"line {number}: {error}")
    refuse(wrong)
    if not found:
        raise ValueError("it has no questions")
    return found


def refuse(wrong: Sequence[str]) -> None:
    """Raise a ValueError that names some of the problems, if there are any."""
    if wrong:
        more = len(wrong) - _NAMED
        raise ValueError(
            "; ".join(wrong[:_NAMED]) + (f"; and {more} more lines like these" if more > 0 else "")
        )


def _question(number: int, text: str, folder: Path, hashes: dict[Path, str]) -> Question:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not valid JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"it must be a JSON object, got {type(row).__name__}")
    for field in ("image", "question", "answer"):
        if field not in row:
            raise ValueError(f"the field {field!r} is missing")
    image = folder / _text("image", row["image"])
    if image not in hashes:
        try:
            hashes[image] = sha256(image.read_bytes()).hexdigest()
        except OSError as error:
            raise ValueError(
                f"the image {image} cannot be read: {error.strerror or error}"
            ) from None
    category, scorer = row.get("category"), row.get("score")
    if scorer is not None and scorer not in SCORERS:
        raise ValueError(f"score must be one of {', '.join(SCORERS)}, got {scorer!r}")
    return Question(
        line=number,
        image=image,
        image_hash=hashes[image],
        text=_text("question", row["question"]),
        answers=_answers(row["answer"]),
        category=None if category is None else _text("category", category),
        scorer=scorer,
    )


def _text(field: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{field} must be a string that is not blank, got {value!r}")
    return value


def _answers(value: Any) -> tuple[str, ...]:
    given = value if isinstance(value, list) else [value]
    numbers = [
        str(each) if isinstance(each, (int, float)) and not isinstance(each, bool) else each
        for each in given
    ]
    if not numbers or not all(isinstance(each, str) and each.strip() for each in numbers):
        raise ValueError(
            f"answer must be a string that is not blank, a number, or a list of them, got {value!r}"
        )
    return tuple(numbers)


def routed(
    questions: Sequence[Question], route: Callable[[list[str]], Sequence[str]]
) -> list[Question]:
    """Return the questions with a category each: their own, or what ``route`` says."""
    open_ones = [question.text for question in questions if question.category is None]
    names = iter(route(open_ones) if open_ones else ())
    return [
        question if question.category is not None else replace(question, category=next(names))
        for question in questions
    ]


def distinct(questions: Sequence[Question]) -> list[Question]:
    """Return the questions without repetitions: asking twice would count chance twice.

    Raises:
        ValueError: a repetition has other answers; the message names the lines.
    """
    first: dict[str, Question] = {}
    wrong = []
    for question in questions:
        before = first.setdefault(question.key, question)
        if (before.answers, before.scorer) != (question.answers, question.scorer):
            wrong.append(
                f"line {question.line}: it asks what line {before.line} asks, but has another "
                f"answer or score: all right answers must be one list in one line"
            )
    refuse(wrong)
    return list(first.values())


def limited(questions: Sequence[Question], limit: int | None, seed: int) -> list[Question]:
    """Return at most ``limit`` questions of each category, drawn at random, in the given order.

    Which are drawn depends on the questions and the seed, not on their order.
    """
    if limit is None:
        return list(questions)
    groups: dict[str | None, list[Question]] = {}
    for question in questions:
        groups.setdefault(question.category, []).append(question)
    drawn: set[str] = set()
    for group in groups.values():
        keys = sorted(question.key for question in group)
        drawn.update(random.Random(seed).sample(keys, min(limit, len(keys))))
    return [question for question in questions if question.key in drawn]
