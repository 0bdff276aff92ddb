"""Patterns of words, and the search for them in a list of words.

A pattern is written as words with these signs:

- ``what|which``: one of several words;
- ``the?``: the word may be missing;
- ``<place>``: any word of the class "place";
- ``~``: up to three words that are not in the class "function". These are the modifiers of the noun
  that follows: "the ~ price" matches in "the total retail price";
- ``^`` first, or ``$`` last: the start or the end of the text.

Two classes are built in. ``<number>`` is a number in digits, ``<year>`` one from 1000 to 2099.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import product, repeat

START, END = "^", "$"
NUMBER, YEAR = "<number>", "<year>"
FUNCTION_CLASS = "function"
_MAX_GAP = 3
_OPTION = re.compile(r"<\w+>|[^\W_]+")
_TOKEN = re.compile(rf"(?:{_OPTION.pattern})(?:\|(?:{_OPTION.pattern}))*\??")
_GAP = "~"
_OTHER = ""  # any word that is in no pattern


@dataclass(frozen=True)
class Rule:
    """A pattern, and the weight it adds to a category. ``category`` is None for a neutral one."""

    pattern: str
    category: str | None
    weight: float

    @property
    def rank(self) -> float:
        """The precedence among matches that overlap; the smallest wins."""
        return -math.inf if self.category is None else -self.weight


class _Node:
    """The beginning of patterns: what may follow it, and the rule that is complete here."""

    __slots__ = ("following", "gap", "rule")

    def __init__(self) -> None:
        self.following: dict[str, list[_Node]] = {}  # by word
        self.gap: _Node | None = None  # where "~" leads
        self.rule: Rule | None = None


class _State:
    """All beginnings of patterns that some words may be, and the rule that these words complete.

    Each comes with the number of words that its "~" may still skip.
    """

    __slots__ = ("moves", "nodes", "rank", "rule")

    def __init__(self, nodes: tuple[tuple[_Node, int], ...]) -> None:
        self.nodes = nodes
        self.moves: dict[str, _State | None] = {}  # by word, filled when a word is first met
        rules = [node.rule for node, _ in nodes if node.rule is not None]
        self.rule = min(rules, key=lambda rule: rule.rank, default=None)
        self.rank = self.rule.rank if self.rule is not None else 0.0


Match = tuple[float, int, int, int, Rule]
"""A match, as its rank, the negative number of its words, its start, its end, and its rule.

Matches sort by precedence: the heavier rule first, then the longer match, then the earlier one.
"""


class PatternIndex:
    """Many patterns, found together. Add the patterns, then search."""

    def __init__(self, classes: Mapping[str, Collection[str]]) -> None:
        self._classes = {f"<{name}>": words for name, words in classes.items()}
        self._stops = frozenset({START, END, *classes.get(FUNCTION_CLASS, ())})
        self._first = _Node()
        self._children: dict[tuple[int, str], _Node] = {}
        # Every word of a pattern to itself, because a dict's `get` is the fastest look-up in bulk.
        self._known: dict[str, str] = {word: word for word in self._stops}
        self.first_words: set[str] = set()
        self.last_words: set[str] = set()
        self._start = _State(())
        self._states: dict[tuple[tuple[int, int], ...], _State] = {}

    def add(self, pattern: str, rule: Rule) -> Rule | None:
        """Add ``rule`` for ``pattern``; return the rule that already has this pattern, if any.

        Raises ValueError if the pattern cannot be read.
        """
        for parts in spell_out(pattern):
            self.first_words |= self._members(parts[0])
            self.last_words |= self._members(parts[-1])
            node = self._first
            for part in parts:
                key = (id(node), part)
                child = self._children.get(key)
                if child is None:
                    child = self._children[key] = self._child(node, part)
                node = child
            if node.rule is not None and node.rule is not rule:
                return node.rule
            node.rule = rule
        self._start = _State(((self._first, 0),))
        return None

    def _child(self, node: _Node, part: str) -> _Node:
        child = _Node()
        if part == _GAP:
            node.gap = child
            return child
        words = self._members(part)
        for word in words:
            node.following.setdefault(word, []).append(child)
        self._known.update(zip(words, words, strict=True))
        return child

    def _members(self, part: str) -> set[str]:
        """Return the words that ``part`` stands for."""
        words: set[str] = set()
        for option in part.split("|"):
            if option[0] != "<" or option in (NUMBER, YEAR):
                words.add(option)
            elif option in self._classes:
                words.update(self._classes[option])
            else:
                known = ", ".join(self._classes) or "none"
                raise ValueError(f"there is no class {option}; classes: {known}")
        return words

    def prefix(self, words: list[str], start: int) -> int:
        """Return where the longest pattern that starts at ``start`` ends; ``start`` without one."""
        state = self._start
        longest = start
        for position in range(start, len(words)):
            word = self._known.get(words[position], _OTHER)
            moves = state.moves
            following = moves[word] if word in moves else self._move(state, word)
            if following is None:
                break
            state = following
            if state.rule is not None:
                longest = position + 1
        return longest

    def longest(self, words: list[str]) -> list[Match]:
        """Return the matches from the first word on, the longest at each place, without overlap."""
        found: list[Match] = []
        free = 0  # where the last match ends
        for match in sorted(self._matches(words), key=lambda match: (match[2], -match[3])):
            if match[2] >= free:
                found.append(match)
                free = match[3]
        return found

    def heaviest(self, words: list[str]) -> list[Match]:
        """Return matches without overlap, the heaviest first, neutral ones before all others.

        Of equally heavy matches that overlap, the longer wins, then the earlier.
        """
        every = self._matches(words)
        if len(every) < 2:
            return every
        every.sort()
        found: list[Match] = []
        taken = 0  # one bit per word
        for match in every:
            span = (1 << match[3]) - (1 << match[2])
            if not taken & span:
                taken |= span
                found.append(match)
        return found

    def _matches(self, words: list[str]) -> list[Match]:
        words = list(map(self._known.get, words, repeat(_OTHER)))
        count = len(words)
        found: list[Match] = []
        first = self._start
        for start, word in enumerate(words):
            state, end = first, start
            while True:
                try:  # almost always there, and one lookup
                    following = state.moves[word]
                except KeyError:
                    following = self._move(state, word)
                if following is None:
                    break
                state = following
                end += 1
                if state.rule is not None:
                    found.append((state.rank, start - end, start, end, state.rule))
                if end == count:
                    break
                word = words[end]
        return found

    def _move(self, state: _State, word: str) -> _State | None:
        """Return the state after ``word``, and remember it."""
        nodes: dict[tuple[int, int], tuple[_Node, int]] = {}
        for node, skips in state.nodes:
            for child in node.following.get(word, ()):
                nodes[id(child), 0] = (child, 0)
                if child.gap is not None:
                    nodes[id(child.gap), _MAX_GAP] = (child.gap, _MAX_GAP)
            if skips and word not in self._stops:
                nodes[id(node), skips - 1] = (node, skips - 1)
        after = None
        if nodes:
            key = tuple(sorted(nodes))
            after = self._states.get(key)
            if after is None:
                after = self._states[key] = _State(tuple(nodes.values()))
        state.moves[word] = after
        return after


def spell_out(pattern: str) -> list[list[str]]:
    """Return the lists of parts that ``pattern`` stands for: with and without optional words.

    >>> spell_out("^what|which the? ~ price")
    [['^', 'what|which', 'the', '~', 'price'], ['^', 'what|which', '~', 'price']]
    """
    body = pattern.removeprefix(START).removesuffix(END).casefold()
    choices: list[list[str]] = [[START]] if pattern.startswith(START) else []
    for token in body.split():
        if token == _GAP:
            choices.append([_GAP])
        elif _TOKEN.fullmatch(token):
            part = token.removesuffix("?")
            choices.append([part, ""] if token.endswith("?") else [part])
        else:
            raise ValueError(f"cannot read {token!r}")
    if pattern.endswith(END):
        choices.append([END])
    spelled = [[part for part in parts if part] for parts in product(*choices)]
    if not all(any(part[0] not in "^$~" for part in parts) for parts in spelled) or not spelled:
        raise ValueError("a pattern must hold at least one word")
    if any(parts[0] == _GAP or parts[-1] == _GAP for parts in spelled):
        raise ValueError('"~" must be between words')
    return spelled
