"""Score an answer against the right ones, from 0 to 1.

The scorers are those of the usual benchmarks, in our own words:

``exact``
    1 if the answer equals one of the right ones after :func:`normalised`, else 0.
``vqa``
    The soft accuracy of VQA (Antol et al., 2015), for a list with one answer of each annotator:
    an answer that three of the others gave counts fully, averaged over leaving out each annotator.
``relaxed``
    The relaxed accuracy of ChartQA (Masry et al., 2022): numbers may be off by 5 %, else ``exact``.
``anls``
    The average normalised Levenshtein similarity of DocVQA (Mathew et al., 2021): the similarity to
    the nearest right answer, 0 where it is below one half.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

Scorer = Callable[[str, Sequence[str]], float]

_ARTICLES = frozenset(("a", "an", "the"))
_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
}
_TOLERANCE = 0.05
_LEAST_SIMILAR = 0.5


def normalised(text: str) -> str:
    """Return a text without differences that do not matter: case, punctuation, articles, spaces,
    and numbers in words up to ten.

    A point or a comma between digits stays. An article is kept if it is the whole text, such as the
    letter of a choice.

    >>> normalised("The  EXIT!"), normalised("Three dogs."), normalised("1.5"), normalised("(A)")
    ('exit', '3 dogs', '1.5', 'a')
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text).replace("'", "")
    text = re.sub(r"(?<!\d)[.,]|[.,](?!\d)|[^\w\s.,%-]|_", " ", text)
    words = [_NUMBERS.get(word, word) for word in text.split()]
    return " ".join([word for word in words if word not in _ARTICLES] or words)


def exact(answer: str, right: Sequence[str]) -> float:
    """Return 1 if the answer is one of the right ones.

    >>> exact("Two.", ["2"]), exact("two dogs", ["2"])
    (1.0, 0.0)
    """
    return float(normalised(answer) in map(normalised, right))


def vqa(answer: str, right: Sequence[str]) -> float:
    """Return the mean over annotators of min(1, answers of the others that agree / 3).

    With fewer than four annotators nothing could reach 1, so one that agrees is then enough.

    >>> vqa("cat", ["cat"] * 3 + ["dog"] * 7)
    0.9
    >>> vqa("cat", ["cat", "kitten"])
    1.0
    """
    if len(right) < 4:
        return exact(answer, right)
    agree = [normalised(each) == normalised(answer) for each in right]
    scores = [min(1.0, (sum(agree) - mine) / 3) for mine in agree]
    return round(sum(scores) / len(scores), 12)


def relaxed(answer: str, right: Sequence[str]) -> float:
    """Return 1 if the answer is a number within 5 % of a right one, or equal to a right one.

    >>> relaxed("1,040", ["1000"]), relaxed("12%", ["12"]), relaxed("0.1", ["0"])
    (1.0, 1.0, 0.0)
    """
    said = _number(answer)
    for each in right:
        wanted = _number(each)
        if said is not None and wanted is not None:
            # Rounding must not decide about 1.05 and 1.
            if abs(said - wanted) <= _TOLERANCE * abs(wanted) * (1 + 1e-9):
                return 1.0
        elif exact(answer, [each]):
            return 1.0
    return 0.0


def _number(text: str) -> float | None:
    text = text.strip().rstrip("%.").lstrip("$€£").replace(",", "").strip()
    return float(text) if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)", text) else None


def anls(answer: str, right: Sequence[str]) -> float:
    """Return the similarity to the nearest right answer, 0 if it is below one half.

    >>> anls("Main Stret", ["main street"]), anls("x", ["main street"])
    (0.909..., 0.0)
    """
    best = max(_similarity(_plain(answer), _plain(each)) for each in right)
    return best if best >= _LEAST_SIMILAR else 0.0


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _similarity(one: str, other: str) -> float:
    longest = max(len(one), len(other))
    return 1.0 if longest == 0 else 1.0 - _edits(one, other) / longest


def _edits(one: str, other: str) -> int:
    """Return the Levenshtein distance."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, start=1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


#: Scorers by name. The first is the default.
SCORERS: dict[str, Scorer] = {"exact": exact, "vqa": vqa, "relaxed": relaxed, "anls": anls}
