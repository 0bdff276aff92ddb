"""The questions: equally many of each cell, the same for every row.

A cell is a kind of picture and a category of questions. Training questions decide everything that
is chosen, and held-out ones judge it. No picture is in both splits: a picture's split is a hash of
its content.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from evaluate import Example, examples_of
from kinds import CATEGORIES_OF, KINDS
from seeds import CHOICES, FINAL

FIRST_SEED = {"train": CHOICES, "heldout": FINAL}


@dataclass(frozen=True)
class Label:
    """The groups of the tables that a question belongs to."""

    kind: str
    category: str
    needs: str

    @property
    def cell(self) -> str:
        return f"{self.kind}/{self.category}"


def draw(split: str, per_cell: int) -> list[Example]:
    """Return `per_cell` questions of each cell, one a picture, cell after cell."""
    return examples_of(tuple(KINDS), per_cell, split, FIRST_SEED[split])


def num_cells() -> int:
    return sum(map(len, CATEGORIES_OF.values()))


def labels(examples: Sequence[Example]) -> list[Label]:
    return [
        Label(picture.kind, question.category, question.needs) for picture, question in examples
    ]


def digest(examples: Sequence[Example]) -> str:
    """Return a hash of the pictures, questions and answers, in their order."""
    content = sha256()
    for picture, question in examples:
        content.update(f"{picture.content}\n{question.text}\n{question.answer}\n".encode())
    return content.hexdigest()


def batches(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Return the numbers of the questions in batches whose prompts are equally long.

    >>> batches([5, 7, 5, 5], 2)
    [[0, 2], [3], [1]]
    """
    by_length: dict[int, list[int]] = defaultdict(list)
    for number, length in enumerate(lengths):
        by_length[length].append(number)
    return [
        numbers[start : start + size]
        for _, numbers in sorted(by_length.items())
        for start in range(0, len(numbers), size)
    ]
