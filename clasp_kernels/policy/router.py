"""The default router: weighted phrases, no model, a few microseconds per prompt.

The question in a prompt (see ``question``) is split into words, and every phrase of the rules that
occurs in it adds its weight to its category. Phrases match longest first and do not overlap, so
"number of" can mean counting while "number on" means reading. Phrases after a relative pronoun
("the car *that is left of the bus*") count half, because they identify a thing rather than ask
something. The category with the highest sum wins; a tie goes to the one listed first in the rules.

Rules are data::

    {
      "format": 1,
      "fallback": "general",
      "categories": {"counting": {"how many": 4, "count": 3}, "scene": {"describe": 3}},
      "neutral": ["single word"]
    }

A ``neutral`` phrase adds no weight, but its words cannot match another phrase. "^" before a phrase
anchors it to the start of the question, "$" after a phrase to the end: "red$" matches in "Is the
left car red?".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clasp_kernels._integers import as_int
from clasp_kernels.policy._fields import (
    as_mapping,
    finite_number,
    known_fields,
    read_json,
    write_json,
)
from clasp_kernels.policy.categories import FALLBACK_CATEGORY
from clasp_kernels.policy.default_rules import DEFAULT_RULES
from clasp_kernels.policy.question import find_question

RouterLike = Callable[[list[str]], Sequence[str]]
"""The interface of a router: takes prompts, returns one category name per prompt."""

ROUTER_FORMAT = 1
_WORD = re.compile(r"[^\W_]+")
_CLITICS = {"s": "is", "re": "are"}  # the word split off at the apostrophe of "what's"
_RELATIVE_PRONOUNS = frozenset({"that", "which", "who", "whose"})
_RELATIVE_DISCOUNT = 0.5


@dataclass(frozen=True)
class Route:
    """The category of a prompt and the reason.

    >>> Router().explain("How many dogs are there?")
    Route(category='counting', reason="matched 'how many'")
    """

    category: str
    reason: str


class _Node:
    """A node of the trie of phrases: the words that may follow, and the phrase that ends here."""

    __slots__ = ("category", "following", "phrase", "weight")

    def __init__(self) -> None:
        self.following: dict[str, _Node] = {}
        self.phrase: str | None = None
        self.category: str | None = None  # None for a neutral phrase
        self.weight = 0.0


class Router:
    """Maps prompts to categories by weighted phrases.

    It is deterministic, loads no model weights, and ignores case and punctuation. ``rules`` have
    the layout described in the docstring of this module; the default rules have the categories of
    ``CATEGORIES``. A router is itself a ``RouterLike`` callable.

    >>> Router().route(["What colour is the car?", "WHERE is the dog", "<image>\\nRead the sign."])
    ['attribute', 'spatial', 'ocr']
    >>> Router({"format": 1, "categories": {"maps": {"street": 1}}}).route(["Which street?", "Hi"])
    ['maps', 'general']
    """

    def __init__(self, rules: Mapping[str, Any] | None = None) -> None:
        rules = as_mapping("router rules", DEFAULT_RULES if rules is None else rules)
        known_fields("router rules", rules, ("format", "fallback", "categories", "neutral"))
        if as_int(rules.get("format")) != ROUTER_FORMAT:
            raise ValueError(
                f"format must be {ROUTER_FORMAT}, the version this package reads, "
                f"got {rules.get('format')!r}"
            )
        self._fallback = rules.get("fallback", FALLBACK_CATEGORY)
        if not isinstance(self._fallback, str) or not self._fallback:
            raise ValueError(f"fallback must be a category name, got {self._fallback!r}")
        neutral = rules.get("neutral", [])
        if not isinstance(neutral, Sequence) or isinstance(neutral, str):
            raise ValueError(f"neutral must be a list of phrases, got {neutral!r}")
        self._rules: dict[str, dict[str, float]] = {}
        self._neutral = list(neutral)
        self._phrases = _Node()
        for category, phrases in as_mapping("categories", rules.get("categories")).items():
            field = f"categories.{category}"
            self._rules[category] = {}
            for phrase, weight in as_mapping(field, phrases).items():
                weight = finite_number(f"{field}[{phrase!r}]", weight, "a number above 0")
                if weight <= 0:
                    raise ValueError(f"{field}[{phrase!r}] must be a number above 0, got {weight}")
                self._add(field, phrase, category, weight)
                self._rules[category][phrase] = weight
        if not self._rules:
            raise ValueError("categories must hold at least one category with phrases")
        for phrase in self._neutral:
            self._add("neutral", phrase, None, 0.0)

    @property
    def categories(self) -> tuple[str, ...]:
        """Every category that the router can return, in tie-breaking order, the fallback last."""
        return (*(name for name in self._rules if name != self._fallback), self._fallback)

    def route(self, prompts: Iterable[str]) -> list[str]:
        """Return the category of each prompt."""
        return [self._decide(prompt)[0] for prompt in _check_prompts(prompts)]

    __call__ = route

    def explain(self, prompt: str) -> Route:
        """Return the category of one prompt, and the phrases that decided it."""
        [prompt] = _check_prompts([prompt])
        category, matches = self._decide(prompt)
        winning = [(node.phrase, weight) for node, weight in matches if node.category == category]
        if not winning:
            return Route(category, "no phrase of the rules matched")
        # Leave out phrases of small weight, such as "is", which only broke a tie.
        telling = max(weight for _, weight in winning) / 2
        phrases = [repr(phrase) for phrase, weight in winning if weight >= telling]
        return Route(category, f"matched {', '.join(phrases)}")

    def to_dict(self) -> dict[str, Any]:
        """Return the rules in the layout that the constructor takes."""
        return {
            "format": ROUTER_FORMAT,
            "fallback": self._fallback,
            "categories": {name: dict(phrases) for name, phrases in self._rules.items()},
            "neutral": list(self._neutral),
        }

    @classmethod
    def load(cls, path: str | Path) -> Router:
        """Read a router's rules from JSON. Errors name the file and the field."""
        data = read_json(path)
        try:
            return cls(data)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def save(self, path: str | Path) -> None:
        """Write the rules as JSON. ``Router.load`` returns an equal router."""
        write_json(path, self.to_dict())

    def __eq__(self, other: object) -> bool:
        # Compare in order, because order breaks ties.
        return isinstance(other, Router) and (repr(self.to_dict()) == repr(other.to_dict()))

    __hash__ = None  # type: ignore[assignment]

    def _add(self, field: str, phrase: object, category: str | None, weight: float) -> None:
        words = _words(phrase) if isinstance(phrase, str) else []
        if not isinstance(phrase, str) or not words:
            raise ValueError(f"{field}: a phrase must hold at least one word, got {phrase!r}")
        node = self._phrases
        for word in ["^"] * phrase.startswith("^") + words + ["$"] * phrase.endswith("$"):
            node = node.following.setdefault(word, _Node())
        if node.phrase is not None:
            raise ValueError(
                f"{field}: phrase {phrase!r} repeats {node.phrase!r} of "
                f"{node.category or 'neutral'}"
            )
        node.phrase, node.category, node.weight = phrase, category, weight

    def _decide(self, prompt: str) -> tuple[str, list[tuple[_Node, float]]]:
        words = ["^", *_words(find_question(prompt)), "$"]
        matches: list[tuple[_Node, float]] = []
        position, discount = 0, 1.0
        while position < len(words):
            if position > 1 and words[position] in _RELATIVE_PRONOUNS:
                discount = _RELATIVE_DISCOUNT
            node, length = self._longest(words, position)
            if node is not None and node.category is not None:
                matches.append((node, node.weight * discount))
            position += length
        scores = dict.fromkeys(self._rules, 0.0)
        for node, weight in matches:
            if node.category is not None:
                scores[node.category] += weight
        best = max(scores, key=scores.__getitem__)  # max returns the first of equals
        return (best if scores[best] > 0 else self._fallback), matches

    def _longest(self, words: list[str], position: int) -> tuple[_Node | None, int]:
        """Return the longest phrase that starts at ``position``, and how many words to advance."""
        found, length = None, 1
        node = self._phrases.following.get(words[position])
        end = position + 1
        while node is not None:
            if node.phrase is not None:
                found, length = node, end - position
            if end == len(words):
                break
            node = node.following.get(words[end])
            end += 1
        return found, length


def route_prompts(
    router: RouterLike, prompts: Sequence[str], known: Sequence[str] | None = None
) -> list[str]:
    """Call a router and check that it returned one known category name per prompt.

    >>> route_prompts(lambda prompts: ["ocr"] * len(prompts), ["Read it."], known=["ocr"])
    ['ocr']
    """
    prompts = _check_prompts(prompts)
    answers = router(prompts)
    if isinstance(answers, (str, bytes)) or not isinstance(answers, Iterable):
        name = getattr(router, "__name__", type(router).__name__)
        raise TypeError(
            f"router {name} must give a list of category names, one per prompt, got {answers!r}"
        )
    answers = list(answers)
    if len(answers) != len(prompts):
        raise ValueError(f"router gave {len(answers)} categories for {len(prompts)} prompts")
    for index, answer in enumerate(answers):
        if not isinstance(answer, str) or (known is not None and answer not in known):
            allowed = f"one of {', '.join(known)}" if known is not None else "a category name"
            raise ValueError(
                f"router must give {allowed} for each prompt, got {answer!r} for prompt {index}"
            )
    return answers


def _words(text: str) -> list[str]:
    words = _WORD.findall(text.casefold())
    return [_CLITICS.get(word, word) for word in words]


def _check_prompts(prompts: Iterable[str]) -> list[str]:
    if isinstance(prompts, (str, bytes)):
        raise TypeError("prompts must be a list of strings, got one string; pass [prompt]")
    checked = list(prompts)
    for index, prompt in enumerate(checked):
        if not isinstance(prompt, str):
            raise TypeError(f"prompts[{index}] must be a string, got {type(prompt).__name__}")
    return checked
