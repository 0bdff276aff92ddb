"""Have the model select tokens by every rule, category and budget, and keep what it did."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cache
from typing import Any

import torch
from torch.nn import functional

from clasp_kernels.explore.plans import Plan
from clasp_kernels.models import ClaspHandle, apply_clasp
from clasp_kernels.models.selection import Choice, TokenSelector, rules_of, valid_tokens
from clasp_kernels.policy import Profile, Schedule
from clasp_kernels.rules import PooledSelection, find_rule, pool_tokens


class TokenState(IntEnum):
    """The state of a visual token after a stage."""

    GONE = 0
    """An earlier stage had dropped it."""
    DROPPED = 1
    COMPLETION = 2
    """Kept, but not as a pivot."""
    PIVOT = 3


@dataclass(frozen=True)
class ShownStage:
    """One pruning stage of one prompt. Tokens are numbered through all images of the prompt."""

    layer: int | None
    """Decoder layers that had run; None before the first."""
    states: torch.Tensor
    """[tokens] uint8: the ``TokenState`` of each token."""
    salience: torch.Tensor
    """[tokens] float32: the scores that rules are given; 0 for tokens that are gone."""
    coverage: torch.Tensor
    """[tokens] float32: the largest cosine similarity to a kept token of the same image, by the
    features that are compared at this stage; 0 for tokens that are gone."""

    @property
    def kept(self) -> list[int]:
        """The numbers of the kept tokens, ascending."""
        return (self.states >= TokenState.COMPLETION).nonzero()[:, 0].tolist()

    @property
    def pivots(self) -> list[int]:
        """The numbers of the pivots, ascending."""
        return (self.states == TokenState.PIVOT).nonzero()[:, 0].tolist()


@dataclass(frozen=True)
class PromptTokens:
    """A model with one prompt, and how the prompt's visual tokens are counted."""

    model: Any
    processor: Any
    inputs: Any
    """The arguments of ``generate``."""
    counts: tuple[int, ...]
    """Visual tokens of each image of the prompt."""
    profile: Profile | None = None
    """The profile, or None for the model's own."""

    @property
    def starts(self) -> list[int]:
        """The number of the first token of each image."""
        return [sum(self.counts[:image]) for image in range(len(self.counts))]

    def applied(self, schedule: Schedule, rule: str) -> ClaspHandle:
        """Patch the model. Raises the errors of ``apply_clasp``."""
        return apply_clasp(
            self.model,
            schedule=schedule,
            rule=rule,
            profile=self.profile,
            processor=self.processor,
        )


@dataclass(frozen=True)
class Exploration:
    """The stages of every plan, rule, category and budget."""

    num_tokens: int
    rules: tuple[str, ...]
    categories: tuple[str, ...]
    scales: tuple[float, ...]
    """The ``budget_scale`` of each category, which multiplies its budgets."""
    plans: tuple[Plan, ...]
    groups: Mapping[str, str]
    """For each category, the first one with the same settings: both select alike."""
    stages: Mapping[tuple[str, str, str, int], tuple[ShownStage, ...]]
    """By name of the plan, rule, group of the category, and number of the schedule. A rule that
    works only before the LLM has none of another plan."""

    def of(self, plan: str, rule: str, category: str, budget: int) -> tuple[ShownStage, ...]:
        """Return the stages of one combination; ``budget`` is the number of the schedule."""
        return self.stages[plan, rule, self.groups[category], budget]


def explore(
    prompt: PromptTokens,
    plans: Sequence[Plan],
    rules: Sequence[str],
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> Exploration:
    """Select by every combination. ``on_done`` is told how many are done, of how many.

    The images are encoded once for all selections before the LLM, which then run as in a patched
    model. A progressive schedule needs a prefill of the patched model for each combination.
    """
    with prompt.applied(plans[0].schedules[0], rules[0]) as handle:
        profile = handle.profile
    groups = alike(profile)
    combinations = [
        (plan, rule, category, budget)
        for plan in plans
        for rule in rules
        if plan.name == "input" or not find_rule(rule).only_before_llm
        for category in dict.fromkeys(groups.values())
        for budget in range(len(plan.schedules))
    ]
    stages = {}
    with torch.inference_mode():
        select = _before_the_llm(prompt)
        for done, (plan, rule, category, budget) in enumerate(combinations):
            on_done(done, len(combinations))
            run = select if plan.name == "input" else _inside_the_llm(prompt)
            stages[plan.name, rule, category, budget] = run(plan.schedules[budget], rule, category)
    on_done(len(combinations), len(combinations))
    return Exploration(
        num_tokens=sum(prompt.counts),
        rules=tuple(rules),
        categories=profile.category_names,
        scales=tuple(profile.categories[name].budget_scale for name in profile.category_names),
        plans=tuple(plans),
        groups=groups,
        stages=stages,
    )


def alike(profile: Profile) -> dict[str, str]:
    """Return for each category the first one with the same settings.

    >>> groups = alike(Profile.for_model_type("llava"))
    >>> set(groups) == set(groups) | set(groups.values())
    True
    """
    first: dict[str, str] = {}
    for name, policy in profile.categories.items():
        first[name] = next(other for other in (*first, name) if profile.categories[other] == policy)
    return first


# Only the prefill matters. The model's own generation config may ask for more.
_PREFILL = {
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "return_dict_in_generate": False,
    "max_new_tokens": 1,
}
_Run = Callable[[Schedule, str, str], tuple[ShownStage, ...]]


def _before_the_llm(prompt: PromptTokens) -> _Run:
    """Encode the images, and return what selects their tokens before the LLM."""
    with prompt.applied(Schedule.input(1), "clasp") as handle:
        selector = handle.selector
        vision = handle.adapter.encode(prompt.model, prompt.inputs)
        salience = cache(vision.salience)
        salience()  # an adapter may need its patches for this
    valid = valid_tokens(vision)

    @cache
    def relevance() -> torch.Tensor:
        with prompt.applied(Schedule.input(1), "clasp") as handle:
            return _relevance(prompt, handle)

    @cache
    def fused(category: str) -> torch.Tensor:
        return selector.fuse(vision, [category] * len(prompt.counts))

    @cache
    def by_rule(rule: str) -> TokenSelector:
        return replace(selector, rules=rules_of(selector.profile, rule))

    @cache
    def places(rule: str, category: str) -> torch.Tensor | None:
        return by_rule(rule).places(prompt.inputs, [category])

    def run(schedule: Schedule, rule: str, category: str) -> tuple[ShownStage, ...]:
        trial = replace(by_rule(rule), schedule=schedule)
        categories = [category] * len(prompt.counts)
        features = fused(category)
        counts = trial.counts(0, categories, vision.counts)
        selection = trial.choose(
            features, salience, categories, counts, valid, relevance, places(rule, category)
        )
        return _stages(prompt, [(None, Choice(features, salience, relevance, selection))])

    return run


def _relevance(prompt: PromptTokens, handle: ClaspHandle) -> torch.Tensor:
    """Return the similarity of each token to the prompt, which no rule or category changes.

    It takes a prefill, because only that tells the prompt's text from its placeholders.
    """
    seen: list[torch.Tensor] = []
    with handle.watched(lambda choice: seen.append(choice.relevance())):
        _prefill(prompt, handle.profile.category_names[0])
    return seen[0]


def _prefill(prompt: PromptTokens, category: str) -> None:
    prompt.model.generate(
        **prompt.inputs,
        **_PREFILL,
        categories=[category],
        tokenizer=prompt.processor.tokenizer,  # for stop_strings
    )


def _inside_the_llm(prompt: PromptTokens) -> _Run:
    """Return what selects tokens by a prefill of the patched model."""

    def run(schedule: Schedule, rule: str, category: str) -> tuple[ShownStage, ...]:
        choices: list[Choice] = []

        def seen(choice: Choice) -> None:
            scores = choice.salience()  # now: a rule may not have asked for them
            choices.append(replace(choice, salience=lambda: scores))

        with prompt.applied(schedule, rule) as handle, handle.watched(seen):
            _prefill(prompt, category)
        layers = [layer or None for layer in schedule.layers]
        return _stages(prompt, list(zip(layers, choices, strict=True)))

    return run


def _stages(
    prompt: PromptTokens, choices: Sequence[tuple[int | None, Choice]]
) -> tuple[ShownStage, ...]:
    """Place the choices of consecutive stages among all tokens of the prompt."""
    left = [torch.arange(count) for count in prompt.counts]
    stages = []
    for layer, choice in choices:
        states = torch.full((sum(prompt.counts),), TokenState.GONE, dtype=torch.uint8)
        salience, coverage = torch.zeros(len(states)), torch.zeros(len(states))
        scores = choice.salience()
        for image, (start, tokens) in enumerate(zip(prompt.starts, left, strict=True)):
            numbers = start + tokens
            picks = choice.selection.indices[image].cpu()
            is_pivot = choice.selection.is_pivot[image].cpu()[picks >= 0]
            picks = picks[picks >= 0]
            states[numbers] = TokenState.DROPPED
            states[numbers[picks]] = TokenState.COMPLETION
            states[numbers[picks[is_pivot]]] = TokenState.PIVOT
            salience[numbers] = scores[image, : len(tokens)].float().cpu().nan_to_num(0.0)
            features = choice.features[image, : len(tokens)]
            coverage[numbers] = _coverage(features, _kept(choice, image, picks))
            left[image] = tokens[picks]
        stages.append(ShownStage(layer, states, salience, coverage))
    return tuple(stages)


def _kept(choice: Choice, image: int, picks: torch.Tensor) -> torch.Tensor:
    """Return what the choice keeps of an image's features: those of its ``picks``, or means."""
    features, selection = choice.features[image], choice.selection
    if isinstance(selection, PooledSelection):
        return pool_tokens(features[None], selection.groups[image, None], len(picks))[0]
    return features[picks]


def _coverage(features: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Return the largest cosine similarity [N] of each token [N, D] to one of ``kept`` [R, D]."""
    unit, of_kept = (functional.normalize(each.float().cpu(), dim=-1) for each in (features, kept))
    return (unit @ of_kept.T).amax(dim=1).nan_to_num(0.0)
