"""The rows: every way to answer with fewer tokens, as `PLAN.md` lists them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from words import CATEGORIES

from clasp_kernels.policy import CategoryPolicy, Profile, Schedule
from clasp_kernels.rules import rule_names
from quality.names import (
    ALL,
    BLIND,
    BUDGETS,
    CONTROLS,
    FULL,
    NUM_LAYERS,
    NUM_TOKENS,
    SMALLER,
)

RANDOM_SEEDS = (1, 2, 3)
STAGES = ((0, 2, 4), (1, 3))
# CLASP and its registered rule are one: a patched model takes the rule's pivots from the profile.
RULES = tuple(name for name in rule_names() if name not in ("clasp", *CONTROLS))


@dataclass(frozen=True)
class Row:
    """A row of the table, at every budget."""

    name: str
    kind: str
    """"whole" and "blind" for the model as it is, with and without the picture, "smaller" for a
    smaller image, and "pruned"."""
    profile: Profile | None = None
    rule: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    """More arguments of ``apply_clasp``."""
    stages: tuple[int, ...] = ()
    """The decoder layers after which tokens are dropped; before the first if empty."""

    def schedule(self, budget: int) -> Schedule | None:
        """Return the schedule of a mean of ``budget`` tokens, or None if none has it.

        >>> Row("inside", "pruned", stages=(1, 3)).schedule(48)
        Schedule({1: 38, 3: 23})
        >>> Row("inside", "pruned", stages=(1, 3)).schedule(16) is None  # layer 0 has 144
        True
        """
        if not self.stages:
            return Schedule.input(budget)
        try:
            return Schedule.progressive(budget, self.stages, NUM_LAYERS, NUM_TOKENS)
        except ValueError:
            return None

    @property
    def budgets(self) -> tuple[int, ...]:
        """The budgets at which the row exists; that of all tokens if it drops none."""
        if self.kind in ("whole", "blind"):
            return (NUM_TOKENS,)
        return tuple(budget for budget in BUDGETS if self.schedule(budget) is not None)


@dataclass(frozen=True)
class Choices:
    """The settings of rows that training questions chose."""

    layer: int
    """The best single layer, an entry of ``Profile.layers``."""
    inside: dict[str, dict[str, str]]
    """The options of each progressive row, by its name."""


def layer_name(layer: float) -> str:
    return f"one layer ({layer})"


def inside_name(stages: tuple[int, ...]) -> str:
    """
    >>> inside_name((1, 3))
    'progressive (1, 3)'
    """
    return f"progressive {stages}"


def random_name(seed: int) -> str:
    return f"random {seed}"


def _changed(profile: Profile, change: Callable[[str, CategoryPolicy], CategoryPolicy]) -> Profile:
    policies = {name: change(name, policy) for name, policy in profile.categories.items()}
    return replace(profile, categories=policies)


def one_layer(profile: Profile, layer: float) -> Profile:
    """Return the profile with ``layer`` alone, one of ``profile.layers``."""
    weights = tuple(float(each == layer) for each in profile.layers)
    return _changed(profile, lambda _, policy: replace(policy, layer_weights=weights))


def fixed_split(profile: Profile, pivot_ratio: float) -> Profile:
    return _changed(profile, lambda _, policy: replace(policy, pivot_ratio=pivot_ratio))


def one_policy(profile: Profile) -> Profile:
    """Return the profile with the policy of "general" for every category.

    ``choose_profile.py`` gives "general" what is best over all its training questions.
    """
    return _changed(profile, lambda *_: profile.categories["general"])


def wrong_category(profile: Profile) -> Profile:
    """Return the profile with the policy of the next category for every category.

    Categories that no question of the test bed has ("knowledge", "general") keep their own.
    """
    following = dict(zip(CATEGORIES, (*CATEGORIES[1:], CATEGORIES[0]), strict=True))
    return _changed(profile, lambda name, _: profile.categories[following.get(name, name)])


def layer_rows(profile: Profile) -> list[Row]:
    """Return a row for each single layer, shallow to deep."""
    return [Row(layer_name(layer), "pruned", one_layer(profile, layer)) for layer in profile.layers]


def inside_rows(profile: Profile, stages: tuple[int, ...]) -> list[Row]:
    """Return a row for every way to choose tokens inside the decoder."""
    ways = product(("last", "instruction"), ("hidden", "fused"))
    return [
        Row(
            f"{inside_name(stages)}, {salience_rows}, {completion_on}",
            "pruned",
            profile,
            settings={"salience_rows": salience_rows, "completion_on": completion_on},
            stages=stages,
        )
        for salience_rows, completion_on in ways
    ]


def training_rows(profile: Profile) -> list[Row]:
    """Return the rows that are run on training questions, to choose among them."""
    return [
        *layer_rows(profile),
        *(row for stages in STAGES for row in inside_rows(profile, stages)),
    ]


def choose(profile: Profile, accuracy: Callable[[Row], float]) -> Choices:
    """Choose by the accuracy of rows on training questions. The first of equals is chosen."""
    best = max(layer_rows(profile), key=accuracy)
    layer = next(layer for layer in profile.layers if layer_name(layer) == best.name)
    inside = {
        inside_name(stages): max(inside_rows(profile, stages), key=accuracy).settings
        for stages in STAGES
    }
    return Choices(int(layer), inside)


def rows(profile: Profile, choices: Choices) -> list[Row]:
    """Return the rows that are run on held-out questions.

    Controls and other rules get the layer that the projector was trained on, and no category
    changes anything for them. The salience of all rows is that of the profile's layer.
    """

    def pruned(name: str, used: Profile, **more: Any) -> Row:
        return Row(name, "pruned", used, **more)

    plain = one_layer(profile, profile.layers[-1])
    general = profile.categories["general"].pivot_ratio
    return [
        Row(ALL, "whole"),
        Row(BLIND, "blind"),
        *(pruned(random_name(seed), plain, rule=random_name(seed)) for seed in RANDOM_SEEDS),
        *(pruned(name, plain, rule=name) for name in CONTROLS if name != "random"),
        Row(SMALLER, "smaller"),
        *(pruned(name, plain, rule=name) for name in RULES),
        pruned(FULL, profile),
        pruned("one profile", one_policy(profile)),
        pruned("fixed split", fixed_split(profile, general)),
        *layer_rows(profile),
        pruned("pivots only", fixed_split(profile, 1.0)),
        pruned("completion only", fixed_split(profile, 0.0)),
        pruned("wrong category", wrong_category(profile)),
        *(
            pruned(name, profile, settings=choices.inside[name], stages=stages)
            for stages in STAGES
            for name in [inside_name(stages)]
        ),
    ]


def side(budget: int) -> int:
    """Return the patches on a side of the smaller image: the least square not below the budget.

    >>> [side(budget) ** 2 for budget in BUDGETS]
    [49, 36, 16, 9]
    """
    patches = 1
    while patches * patches < budget:
        patches += 1
    return patches
