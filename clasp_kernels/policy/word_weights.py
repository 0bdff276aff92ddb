"""Learned weights of single words, which decide where no pattern knows what a prompt asks.

Each word has one integer per category. A clause adds the sum over its words, divided by the square
root of their number, so that a long clause does not outweigh every pattern.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import resources
from itertools import repeat
from typing import Any

from clasp_kernels.policy._fields import as_mapping, finite_number, known_fields, read_json
from clasp_kernels.policy.clauses import Clause

_FIELDS = ("categories", "unit", "bias", "weights")
_DIGIT_BITS = 32
_DIGIT, _MIDDLE = (1 << _DIGIT_BITS) - 1, 1 << (_DIGIT_BITS - 1)
# A clause of fewer words is treated like one of this length.
_SHORT = 4


class WordWeights:
    """A table of words: ``weights[word]`` holds integers in the order of ``categories``.

    ``unit`` is what an integer of 1 is worth in the weights of patterns. ``bias`` is where
    every prompt starts. In the layout of JSON, the integers of a word are one string, "3 -1 0".

    >>> words = WordWeights({"categories": ["a", "b"], "unit": 0.5, "bias": "0 2",
    ...                      "weights": {"bear": "8 -4"}})
    >>> scores = {"a": 0.0, "b": 0.0}
    >>> words.add([Clause(["a", "bear"], 1.0)], scores)
    >>> scores
    {'a': 2.0, 'b': -1.0}
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        data = as_mapping("words", data)
        known_fields("words", data, _FIELDS)
        categories = data.get("categories")
        if (
            not isinstance(categories, Sequence)
            or isinstance(categories, str)
            or not all(isinstance(name, str) for name in categories)
        ):
            raise ValueError(f"words.categories must be a list of categories, got {categories!r}")
        self.categories = tuple(categories)
        self._unit = finite_number("words.unit", data.get("unit"), "a number")
        count = len(self.categories)
        # The integers of a word are kept as the digits of one number, so that one sum of numbers
        # adds up every category. The middle makes each digit of a sum positive.
        self._shifts = [_DIGIT_BITS * place for place in range(count)]
        self._places = list(zip(self.categories, self._shifts, strict=True))
        self._middle = sum(_MIDDLE << shift for shift in self._shifts)
        self._row = re.compile(r"-?\d{1,5}" + r" -?\d{1,5}" * (count - 1))
        weights = as_mapping("words.weights", data.get("weights"))
        for word, row in weights.items():
            self._check(f"words.weights[{word!r}]", row)
        integers = list(map(int, " ".join(weights.values()).split()))
        packed = [0] * len(weights)
        for place, shift in enumerate(self._shifts):
            column = integers[place::count]
            packed = [total + (value << shift) for total, value in zip(packed, column, strict=True)]
        self._packed = dict(zip(weights, packed, strict=True))
        self._check("words.bias", data.get("bias"))
        self._bias = str(data["bias"])
        self.bias = {
            category: self._unit * int(value)
            for category, value in zip(self.categories, self._bias.split(), strict=True)
        }

    def _check(self, field: str, row: object) -> None:
        if not isinstance(row, str) or not self._row.fullmatch(row):
            raise ValueError(
                f"{field} must be {len(self.categories)} integers in a string, got {row!r}"
            )

    def add(self, clauses: Sequence[Clause], scores: dict[str, float]) -> None:
        """Add to ``scores`` what the words of ``clauses`` weigh, without the bias."""
        packed, places = self._packed.get, self._places
        for words, weight in clauses:
            total = sum(map(packed, words, repeat(0)), self._middle)
            scale = weight * self.scale(len(words))
            for category, shift in places:
                scores[category] += scale * ((total >> shift & _DIGIT) - _MIDDLE)

    def leads(self, clauses: Sequence[Clause], category: str) -> list[tuple[float, str]]:
        """Return what each word adds to ``category`` more than to the others on average.

        The highest come first. Words that add less are left out.
        """
        if category not in self.categories:
            return []
        place = self.categories.index(category)
        found = []
        for words, weight in clauses:
            for word in words:
                row = self._unpacked(self._packed.get(word, 0))
                lead = row[place] - sum(row) / len(row)
                if lead > 0:
                    found.append((weight * self.scale(len(words)) * lead, word))
        return sorted(found, key=lambda lead: -lead[0])

    def _unpacked(self, total: int) -> list[int]:
        total += self._middle
        return [(total >> shift & _DIGIT) - _MIDDLE for shift in self._shifts]

    def scale(self, length: int) -> float:
        """Return what an integer of 1 is worth in a clause of ``length`` words."""
        return self._unit / math.sqrt(max(length, _SHORT))

    def to_dict(self) -> dict[str, Any]:
        """Return the table in the layout that the constructor takes."""
        return {
            "categories": list(self.categories),
            "unit": self._unit,
            "bias": self._bias,
            "weights": {
                word: " ".join(map(str, self._unpacked(total)))
                for word, total in self._packed.items()
            },
        }


@lru_cache(maxsize=1)
def default_words() -> WordWeights:
    """Return the table that ``training/router/train.py`` made."""
    with resources.as_file(resources.files("clasp_kernels") / "assets/router/words.json") as path:
        return WordWeights(read_json(path))
