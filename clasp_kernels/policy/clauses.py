"""Split the text of a user into clauses, and weigh them: the one that asks counts most.

People put context before a question and instructions after it: "My plant has spots, what is wrong
with it? Answer in one word." A clause asks if it starts with a word that starts questions and
requests, such as "what", "is" or "describe". If a text has such clauses, the others count less.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from clasp_kernels.policy.patterns import END, NUMBER, START, YEAR, Match, PatternIndex

_TOKEN = re.compile(r"[^\W\d_]+|\d+(?:[.,:/]\d+)*|[,;:.!?\n(\u2013\u2014]")
_STOPS = frozenset(",;:.!?\n(\u2013\u2014")
_SENTENCE_STOPS = frozenset(".!?\n")
# Words whose "'s" means "is"; after others it is a possessive.
_HOSTS = frozenset(
    [
        "what",
        "where",
        "who",
        "when",
        "why",
        "how",
        "which",
        "it",
        "that",
        "there",
        "here",
        "he",
        "she",
        "this",
        "everything",
    ]
)
_PREPOSITIONS = frozenset(
    ["in", "on", "at", "to", "from", "of", "by", "for", "with", "under", "through", "into", "about"]
)
_WH = frozenset(["what", "which", "who", "whom", "whose", "where", "when", "why", "how"])

_BESIDE_THE_QUESTION = 0.35


class Clause(NamedTuple):
    """The words of a clause between ``START`` and ``END``, and how much its patterns count."""

    words: list[str]
    weight: float


def _backwards(match: Match) -> int:
    return -match[2]


class ClauseReader:
    """Splits a text into clauses. ``openings`` and ``asides`` are found at the start of a clause.

    An opening ("please", "can you tell me") is left out. An aside ("answer with") makes the whole
    sentence count nothing, unless there is no other.
    """

    def __init__(
        self,
        spelling: dict[str, str],
        ask: frozenset[str],
        openings: PatternIndex,
        asides: PatternIndex,
        neutral: PatternIndex,
    ) -> None:
        self._spelling = {word: spelled.split() for word, spelled in spelling.items()}
        self._ask = ask
        self._openings = openings
        self._asides = asides
        self._neutral = neutral

    def read(self, text: str) -> list[Clause]:
        """Return the clauses of ``text`` that hold words."""
        clauses: list[list[str]] = []  # of all sentences
        asks: list[bool] = []
        idle: list[bool] = []  # whether a clause is an aside
        first = 0  # the first clause of the current sentence
        words = [START]
        spelling, ask = self._spelling, self._ask
        openings, asides, neutral = self._openings, self._asides, self._neutral
        for token in [*_TOKEN.findall(text.casefold()), "."]:
            if token not in _STOPS:
                if token in spelling:
                    words += spelling[token]
                elif token < ":":  # it starts with a digit
                    year = len(token) == 4 and token.isdigit() and "1000" <= token < "2100"
                    words.append(YEAR if year else NUMBER)
                elif token != "s":
                    words.append(token)
                elif words[-1] in _HOSTS:
                    words.append("is")
                continue
            if len(words) > 1:
                words.append(END)
                if not neutral.last_words.isdisjoint(words):
                    for _, _, start, end, _ in sorted(neutral.heaviest(words), key=_backwards):
                        del words[start:end]
                if words[1] in openings.first_words:
                    words = self._without_openings(words)
                if len(words) > 2:
                    word = words[1]
                    clauses.append(words)
                    asks.append(word in ask or (word in _PREPOSITIONS and words[2] in _WH))
                    idle.append(word in asides.first_words and asides.prefix(words, 1) > 1)
                words = [START]
            if token in _SENTENCE_STOPS:
                if True in idle[first:]:
                    idle[first:] = [True] * (len(idle) - first)
                elif token == "?" and True not in asks[first:]:
                    asks[first:] = [True] * (len(asks) - first)
                first = len(clauses)
        if True in idle and False in idle:
            clauses = [words for words, aside in zip(clauses, idle, strict=True) if not aside]
            asks = [asking for asking, aside in zip(asks, idle, strict=True) if not aside]
        some = True in asks
        return [
            Clause(words, 1.0 if asking or not some else _BESIDE_THE_QUESTION)
            for words, asking in zip(clauses, asks, strict=True)
        ]

    def _without_openings(self, words: list[str]) -> list[str]:
        """Return the words of a clause without the openings at its start."""
        start = 1
        while True:
            end = self._openings.prefix(words, start)
            if end == start:
                return [START, *words[start:]] if start > 1 else words
            start = end
