"""The default router: weighted patterns of words, no model, about 50 microseconds per prompt.

The last user turn of a prompt is found and split into clauses (see ``turns`` and ``clauses``).
Every pattern of the rules that occurs in a clause adds its weight to its category. Where patterns
overlap, the heaviest counts, so "how many colours" is counting. The clauses that ask count in full
and those beside them less. Within a clause, words after a relative pronoun ("the car *that is left
of the bus*") count half, because they identify a thing rather than ask something. To this, every
word adds its learned weights (see ``word_weights``). The category with the highest sum wins; a tie
goes to the one listed first in the rules.

Rules are data::

    {
      "format": 2,
      "fallback": "general",
      "spelling": {"color": "colour", "whats": "what is"},
      "classes": {"function": ["the", "of"], "place": ["kitchen", "street"], "ask": ["what"]},
      "openings": ["please", "can you tell me"],
      "asides": ["answer with"],
      "categories": {"counting": {"how many": 4}, "scene": {"^describe": 3, "<place>": 2}},
      "neutral": ["single word"]
    }

``patterns`` describes how a pattern is written. ``spelling`` is applied to words first. ``neutral``
patterns are left out of a clause, and ``openings`` at its start. A sentence with a clause that
starts with one of ``asides`` is ignored. The class "ask" holds the words that start a clause that
asks, the class "function" those that are not modifiers of a noun.

"words" may hold a table of word weights; the default router has one, ``Router(DEFAULT_RULES)`` has
none.

Rules of format 1 hold "format", "fallback", "categories" and "neutral" only, and their patterns are
plain words with "^" and "$". The text is one clause, the sentences with a question mark. Patterns
match longest first, and the words of a neutral pattern cannot match another one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from clasp_kernels._integers import as_int
from clasp_kernels.policy._fields import (
    as_mapping,
    category_name,
    finite_number,
    known_fields,
    read_json,
    write_json,
)
from clasp_kernels.policy.categories import FALLBACK_CATEGORY
from clasp_kernels.policy.clauses import Clause, ClauseReader
from clasp_kernels.policy.default_rules import DEFAULT_RULES
from clasp_kernels.policy.patterns import (
    END,
    FUNCTION_CLASS,
    NUMBER,
    START,
    YEAR,
    PatternIndex,
    Rule,
)
from clasp_kernels.policy.question import find_question, user_text
from clasp_kernels.policy.word_weights import WordWeights, default_words

RouterLike = Callable[[list[str]], Sequence[str]]
"""The interface of a router: takes prompts, returns one category name per prompt."""

ROUTER_FORMAT = 2
_READ_FORMATS = (1, 2)
_FIELDS = {
    1: ("format", "fallback", "categories", "neutral"),
    2: (
        *("format", "fallback", "spelling", "classes", "openings", "asides"),
        *("categories", "neutral", "words"),
    ),
}
_WORD = re.compile(r"[^\W_]+")
_CLITICS = {"s": "is", "re": "are"}  # the word split off at the apostrophe of "what's"
_RELATIVE_PRONOUNS = frozenset({"that", "which", "who", "whose"})
_RELATIVE_DISCOUNT = 0.5
_SHOWN = {NUMBER: "(number)", YEAR: "(year)"}
_ASK_CLASS = "ask"
_Weighed = tuple[Rule, float, list[str], int, int]
"""A match: its rule, the weight that it adds, the words of the clause, its start and its end."""
_MAX_WORDS = 2  # words that an explanation names beside the patterns


@dataclass(frozen=True)
class Route:
    """The category of a prompt and the reason.

    >>> Router().explain("How many dogs are there?")
    Route(category='counting', reason="matched 'how many'")
    """

    category: str
    reason: str


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
        if rules is None:
            self.__dict__.update(_default_state())
        else:
            self._read(rules, None)

    def _read(self, rules: Mapping[str, Any], words: WordWeights | None) -> None:
        rules = as_mapping("router rules", rules)
        version = as_int(rules.get("format"))
        if version not in _READ_FORMATS:
            known_fields("router rules", rules, _FIELDS[ROUTER_FORMAT])
            raise ValueError(
                f"format must be 1 or {ROUTER_FORMAT}, the versions this package reads, "
                f"got {rules.get('format')!r}"
            )
        known_fields("router rules", rules, _FIELDS[version])
        self._format = version
        self._fallback = category_name("fallback", rules.get("fallback", FALLBACK_CATEGORY))
        self._spelling = {
            _string(f"spelling[{word!r}]", word): _string(f"spelling[{word!r}]", spelled)
            for word, spelled in as_mapping("spelling", rules.get("spelling", {})).items()
        }
        self._classes = {
            name: _strings(f"classes.{name}", words)
            for name, words in as_mapping("classes", rules.get("classes", {})).items()
        }
        self._lists = {
            field: _strings(field, rules.get(field, []), "phrases")
            for field in ("openings", "asides", "neutral")
        }
        self._patterns = PatternIndex(self._classes)
        self._rules: dict[str, dict[str, float]] = {}
        for category, patterns in as_mapping("categories", rules.get("categories")).items():
            field = f"categories.{category}"
            self._rules[category] = {}
            for pattern, weight in as_mapping(field, patterns).items():
                weight = finite_number(f"{field}[{pattern!r}]", weight, "a number above 0")
                if weight <= 0:
                    raise ValueError(f"{field}[{pattern!r}] must be a number above 0, got {weight}")
                self._add(self._patterns, field, Rule(pattern, category, weight))
                self._rules[category][pattern] = weight
        self._categories = (
            *(name for name in self._rules if name != self._fallback),
            self._fallback,
        )
        if not self._rules:
            raise ValueError("categories must hold at least one category with phrases")
        others = {field: PatternIndex(self._classes) for field in self._lists}
        if version == 1:
            others["neutral"] = self._patterns
        for field, index in others.items():
            for pattern in self._lists[field]:
                self._add(index, field, Rule(pattern, None, 0.0))
        self._function = frozenset(self._classes.get(FUNCTION_CLASS, ()))
        self._words = WordWeights(rules["words"]) if "words" in rules else words
        unknown = set(self._words.categories if self._words else ()) - set(self.categories)
        if unknown:
            raise ValueError(
                f"words.categories must be among {', '.join(self.categories)}, "
                f"got {', '.join(sorted(unknown))}"
            )
        self._no_scores = dict.fromkeys(self._categories, 0.0)
        self._bias = self._no_scores | (self._words.bias if self._words else {})
        self._reader = ClauseReader(
            self._spelling, frozenset(self._classes.get(_ASK_CLASS, ())), **others
        )

    @property
    def categories(self) -> tuple[str, ...]:
        """Every category that the router can return, in tie-breaking order, the fallback last."""
        return self._categories

    def route(self, prompts: Iterable[str]) -> list[str]:
        """Return the category of each prompt."""
        return [self._decide(self._clauses(prompt))[0] for prompt in check_prompts(prompts)]

    __call__ = route

    def explain(self, prompt: str) -> Route:
        """Return the category of one prompt, and what in it decided: words that match patterns of
        the rules, and words that weigh by themselves. They are spelled as the rules know them:
        "colour" for "color", "(number)" for 12.

        >>> Router().explain("Is it 330 or 500 ml?").reason
        "matched '(number) or (number) ml'"
        """
        [prompt] = check_prompts([prompt])
        clauses = self._clauses(prompt)
        category, matches = self._decide(clauses)
        evidence = [
            (weight, repr(_phrase(words[start:end])))
            for rule, weight, words, start, end in matches
            if rule.category == category
        ]
        if self._words is not None:
            told = {word for _, phrase in evidence for word in _words(phrase)}
            leads = [lead for lead in self._words.leads(clauses, category) if lead[1] not in told]
            evidence += [
                (lead, f"the word {_phrase([word])!r}") for lead, word in leads[:_MAX_WORDS]
            ]
        telling = max((weight for weight, _ in evidence), default=0.0) / 2
        if telling <= 0:
            return Route(category, "no phrase of the rules matched")
        # Leave out what weighs little, such as "is", which only broke a tie.
        reasons = dict.fromkeys(reason for weight, reason in evidence if weight >= telling)
        return Route(category, f"matched {', '.join(reasons)}")

    def to_dict(self) -> dict[str, Any]:
        """Return the rules in the layout that the constructor takes."""
        rules: dict[str, Any] = {
            "categories": {name: dict(found) for name, found in self._rules.items()}
        }
        rules |= {"spelling": dict(self._spelling), "classes": dict(self._classes), **self._lists}
        rules |= {"format": self._format, "fallback": self._fallback}
        found = {field: rules[field] for field in _FIELDS[self._format] if field in rules}
        return found | ({"words": self._words.to_dict()} if self._words else {})

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

    def _add(self, index: PatternIndex, field: str, rule: Rule) -> None:
        pattern = rule.pattern
        if not isinstance(pattern, str) or not _words(pattern):
            raise ValueError(f"{field}: a phrase must hold at least one word, got {pattern!r}")
        if self._format == 1:
            words = " ".join(_words(pattern))
            pattern = "^" * pattern.startswith("^") + words + "$" * pattern.endswith("$")
        try:
            other = index.add(pattern, rule)
        except ValueError as error:
            raise ValueError(f"{field}: phrase {rule.pattern!r}: {error}") from None
        if other is not None:
            raise ValueError(
                f"{field}: phrase {rule.pattern!r} repeats {other.pattern!r} of "
                f"{other.category or 'neutral'}"
            )

    def _clauses(self, prompt: str) -> list[Clause]:
        if self._format == 1:
            return [Clause([START, *_words(find_question(prompt)), END], 1.0)]
        return self._reader.read(user_text(prompt))

    def _decide(self, clauses: list[Clause]) -> tuple[str, list[_Weighed]]:
        matches: list[_Weighed] = []
        search = self._patterns.longest if self._format == 1 else self._patterns.heaviest
        scores = dict(self._bias if clauses else self._no_scores)
        for words, weight in clauses:
            relative = len(words)
            if not _RELATIVE_PRONOUNS.isdisjoint(words):
                relative = self._relative(words)
            for _, _, start, end, rule in search(words):
                if rule.category is not None:
                    added = rule.weight * weight
                    if start >= relative:
                        added *= _RELATIVE_DISCOUNT
                    matches.append((rule, added, words, start, end))
                    scores[rule.category] += added
        if self._words is not None:
            self._words.add(clauses, scores)
        best = max(scores, key=scores.__getitem__)  # max returns the first of equals
        return (best if scores[best] > 0 else self._fallback), matches

    def _relative(self, words: list[str]) -> int:
        """Return where the first relative clause starts, or the number of words."""
        for position in range(2, len(words)):
            # "In which year" and "tell me which" ask.
            if words[position] in _RELATIVE_PRONOUNS and words[position - 1] not in self._function:
                return position
        return len(words)


@lru_cache(maxsize=1)
def _default_state() -> dict[str, Any]:
    """Return the attributes of the default router, which routers share because none changes them.

    Reading the default rules takes as long as routing a thousand prompts.
    """
    router = Router.__new__(Router)
    router._read(DEFAULT_RULES, default_words())
    return vars(router)


def route_prompts(
    router: RouterLike, prompts: Sequence[str], known: Sequence[str] | None = None
) -> list[str]:
    """Call a router and check that it returned one known category name per prompt.

    >>> route_prompts(lambda prompts: ["ocr"] * len(prompts), ["Read it."], known=["ocr"])
    ['ocr']
    """
    prompts = check_prompts(prompts)
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


def _string(field: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{field} must be a word, got {value!r}")
    return value


def _strings(field: str, value: object, what: str = "words") -> list[Any]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(f"{field} must be a list of {what}, got {value!r}")
    return list(value)


def _words(text: str) -> list[str]:
    words = _WORD.findall(text.casefold())
    return [_CLITICS.get(word, word) for word in words]


def _phrase(words: Sequence[str]) -> str:
    """Return words of a clause as text."""
    return " ".join(_SHOWN.get(word, word) for word in words if word not in (START, END))


def check_prompts(prompts: Iterable[str]) -> list[str]:
    """Return the prompts as a list, or raise a TypeError that says which one is no string."""
    if isinstance(prompts, (str, bytes)):
        raise TypeError("prompts must be a list of strings, got one string; pass [prompt]")
    checked = list(prompts)
    for index, prompt in enumerate(checked):
        if not isinstance(prompt, str):
            raise TypeError(f"prompts[{index}] must be a string, got {type(prompt).__name__}")
    return checked
