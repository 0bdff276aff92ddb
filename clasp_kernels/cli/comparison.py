"""Ask one question with all visual tokens and with few, and compare answers, times and memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from clasp_kernels.cli.errors import (
    UsageError,
    applying_clasp,
    in_one_line,
    refusing_as,
)
from clasp_kernels.cli.loading import LoadedModel
from clasp_kernels.cli.phases import PhaseClock, Phases
from clasp_kernels.cli.prompt import prepare
from clasp_kernels.policy import FALLBACK_CATEGORY, Profile, Router, Schedule

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from clasp_kernels.models import ClaspHandle, PrefillRecord
    from clasp_kernels.models.adapter import View

# Up to _MAX_RUNS timed runs after a warm-up, until _SECONDS_FOR_RUNS have passed.
_MAX_RUNS = 5
_SECONDS_FOR_RUNS = 1.0


@dataclass(frozen=True)
class Run:
    """The result of answering with all, or with kept, tokens. Seconds are medians of the runs."""

    answer: str
    new_tokens: int
    visual_tokens: int
    kv_cache_bytes: int
    seconds: Phases


@dataclass(frozen=True)
class Stage:
    """One pruning stage and the visual tokens that it kept."""

    layer: int | None
    """Decoder layers that had run; None before the first."""
    tokens_before: int
    indices: tuple[int, ...]
    """Indices of the kept tokens among all visual tokens of the prompt."""
    is_pivot: tuple[bool, ...]

    @property
    def tokens_after(self) -> int:
        return len(self.indices)

    @property
    def when(self) -> str:
        return "before the LLM" if self.layer is None else f"after layer {self.layer}"


@dataclass(frozen=True)
class Comparison:
    """The results of one question with all visual tokens and with the kept ones."""

    question: str
    category: str
    reason: str
    all_tokens: Run
    kept_tokens: Run
    stages: tuple[Stage, ...]
    num_layers: int
    timed_runs: int
    schedule: Schedule | None = None
    """The schedule, or None if tokens were only dropped before the LLM."""
    rule: str = "clasp"
    """The name of the selection rule."""
    views: tuple[View, ...] = field(default=(), repr=False)
    """The pictures that the model saw, and where its visual tokens are."""

    @property
    def indices(self) -> tuple[int, ...]:
        """The tokens that are left after the last stage."""
        return self.stages[-1].indices

    @property
    def is_pivot(self) -> tuple[bool, ...]:
        return self.stages[-1].is_pivot

    @property
    def num_pivots(self) -> int:
        return sum(self.is_pivot)

    @property
    def mean_visual_tokens(self) -> float:
        """Mean number of visual tokens over the decoder layers of the pruned model."""
        total, seen, since = 0, self.all_tokens.visual_tokens, 0
        for stage in self.stages:
            layer = stage.layer or 0
            total += seen * (layer - since)
            seen, since = stage.tokens_after, layer
        return (total + seen * (self.num_layers - since)) / self.num_layers


def compare(
    loaded: LoadedModel,
    image: Image.Image,
    question: str,
    *,
    keep: int | Schedule,
    profile: Profile | None = None,
    category: str | None = None,
    rule: str | None = None,
    max_new_tokens: int = 32,
    on_step: Callable[[str], None] = lambda step: None,
) -> Comparison:
    """Ask with all visual tokens and with those that one rule keeps, as :func:`compare_rules`."""
    [comparison] = compare_rules(
        loaded,
        image,
        question,
        rules=None if rule is None else (rule,),
        keep=keep,
        profile=profile,
        category=category,
        max_new_tokens=max_new_tokens,
        on_step=on_step,
    )
    return comparison


def compare_rules(
    loaded: LoadedModel,
    image: Image.Image,
    question: str,
    *,
    rules: Sequence[str] | None,
    keep: int | Schedule,
    profile: Profile | None = None,
    category: str | None = None,
    max_new_tokens: int = 32,
    on_step: Callable[[str], None] = lambda step: None,
) -> tuple[Comparison, ...]:
    """Ask with all visual tokens and with those that each rule keeps; warm up all, then time them.

    ``rules`` are names of rules of ``clasp_kernels.rules``; None is the one that the profile has
    for the category. ``keep`` is the number of tokens kept before the LLM, or a schedule. The
    comparisons, one for each rule, share the answer with all tokens.

    Raises a UsageError if ``question``, ``keep`` or ``category`` is invalid, and a CommandError if
    the model cannot be pruned.
    """
    model = loaded.model
    # Apply once for the checks, so that an unsupported model is refused before any work.
    with _applied(loaded, 1, profile, None if rules is None else rules[0]) as handle:
        name, reason = categorise(question, category, handle.profile)
        if rules is None:
            rules = (handle.profile.categories[name].rule or "clasp",)
        prompt = prepare(loaded, handle.adapter, image, question)
    num_tokens = prompt.visual_tokens
    num_layers: int = model.config.get_text_config().num_hidden_layers
    _check_fits(keep, max(prompt.counts), num_layers, loaded.name)
    asker = _Asker(loaded, prompt.inputs, max_new_tokens)
    some = {rule: _described(keep, num_tokens, rule if len(rules) > 1 else None) for rule in rules}
    # Run the pruned model first: if it fails, it does so sooner and with less memory. Every rule is
    # warmed up, because the first call of an op may load or compile its kernel.
    for rule in rules:
        on_step(f"Warming up with {some[rule]}")
        with _applied(loaded, keep, profile, rule):
            asker.warm_up(name)
    on_step(f"Warming up with all {num_tokens} visual tokens")
    asker.warm_up()

    # Alternate all ways, so that changes in the machine's speed affect them alike.
    kept, full = {rule: _Answers() for rule in rules}, _Answers()
    records: dict[str, PrefillRecord] = {}
    started = time.perf_counter()
    seconds = _SECONDS_FOR_RUNS * len(rules)
    while not full.phases or (
        len(full.phases) < _MAX_RUNS and time.perf_counter() - started < seconds
    ):
        run = f"run {len(full.phases) + 1}"
        for rule in rules:
            on_step(f"Answering with {some[rule]}, {run}")
            with _applied(loaded, keep, profile, rule) as handle:
                asker.ask(kept[rule], name, handle)
                assert handle.last is not None  # for the type checker: every pruned run sets it
                records[rule] = handle.last
        on_step(f"Answering with all {num_tokens} visual tokens, {run}")
        asker.ask(full)
    comparisons = []
    for rule in rules:
        record = records[rule]
        stages = _stages(record, prompt.counts)
        comparisons.append(
            Comparison(
                question=question,
                category=name,
                reason=reason,
                all_tokens=full.summary(num_tokens, record.kv_cache_bytes_unpruned),
                kept_tokens=kept[rule].summary(stages[-1].tokens_after, record.kv_cache_bytes),
                stages=stages,
                num_layers=num_layers,
                timed_runs=len(full.phases),
                schedule=keep if isinstance(keep, Schedule) else None,
                rule=rule,
                views=prompt.views,
            )
        )
    return tuple(comparisons)


def _described(keep: int | Schedule, num_tokens: int, rule: str | None) -> str:
    """Return the words of a progress message for what is kept, and by which of several rules."""
    some = (
        f"the schedule {keep}"
        if isinstance(keep, Schedule)
        else f"{keep} of {num_tokens} visual tokens"
    )
    return some if rule is None else f"{some}, by {rule}"


def _stages(record: PrefillRecord, counts: Sequence[int]) -> tuple[Stage, ...]:
    """Return the stages of a prompt whose images have ``counts`` visual tokens."""
    stages: list[Stage] = []
    before = sum(counts)
    for stage in record.stages:
        indices: list[int] = []
        is_pivot: list[bool] = []
        first = 0
        for image, (kept, count) in enumerate(zip(stage.counts, counts, strict=True)):
            indices += [first + index for index in stage.indices[image, :kept].tolist()]
            is_pivot += stage.is_pivot[image, :kept].tolist()
            first += count
        stages.append(Stage(stage.layer, before, tuple(indices), tuple(is_pivot)))
        before = len(indices)
    return tuple(stages)


def _check_fits(keep: int | Schedule, num_tokens: int, num_layers: int, model: str) -> None:
    if isinstance(keep, Schedule):
        try:
            keep.check_fits(num_tokens, num_layers)
            keep.counts(num_tokens)
        except ValueError as error:
            raise UsageError(f"--schedule does not fit {model}: {in_one_line(error)}") from None
        most = max(tokens for _, tokens in keep.stages)  # a fraction is at most 1
        if most > num_tokens:
            raise UsageError(
                f"--schedule must keep at most {num_tokens}, the visual tokens {model} makes of "
                f"this image, got {most}"
            )
    elif not 1 <= keep <= num_tokens:
        raise UsageError(
            f"--keep must be in 1..{num_tokens}, the visual tokens {model} makes of this image, "
            f"got {keep}"
        )


def categorise(question: str, category: str | None, profile: Profile) -> tuple[str, str]:
    """Return the category of a question, and the reason for it.

    ``category`` is the one that the user gave, if any. Raises a UsageError if the profile does not
    have it.
    """
    if category is not None:
        if category not in profile.categories:
            raise UsageError(
                f"--category must be one of {', '.join(profile.category_names)}, got {category!r}"
            )
        return category, "given with --category"
    route = Router().explain(question)
    if route.category in profile.categories:
        return route.category, route.reason
    return (
        FALLBACK_CATEGORY,
        f"{route.category} ({route.reason}) is not in profile {profile.name!r}",
    )


def _applied(
    loaded: LoadedModel, keep: int | Schedule, profile: Profile | None, rule: str | None
) -> ClaspHandle:
    from clasp_kernels.models import apply_clasp

    with applying_clasp(loaded.name):
        if isinstance(keep, Schedule):
            return apply_clasp(loaded.model, schedule=keep, profile=profile, rule=rule)
        return apply_clasp(loaded.model, budget=keep, profile=profile, rule=rule)


@dataclass
class _Answers:
    """The timed runs with all tokens, or with kept ones. Greedy, so their answers are equal."""

    answer: str = ""
    new_tokens: int = 0
    phases: list[Phases] = field(default_factory=list)

    def summary(self, visual_tokens: int, kv_cache_bytes: int) -> Run:
        medians = {
            phase.name: statistics.median(getattr(phases, phase.name) for phases in self.phases)
            for phase in fields(Phases)
        }
        return Run(self.answer, self.new_tokens, visual_tokens, kv_cache_bytes, Phases(**medians))


class _Asker:
    """Generates greedy answers to one prepared prompt, and times their phases."""

    def __init__(self, loaded: LoadedModel, inputs: Any, max_new_tokens: int) -> None:
        self._loaded = loaded
        self._inputs = inputs
        self._max_new_tokens = max_new_tokens

    def warm_up(self, category: str | None = None) -> None:
        """Run a prefill and one decode step."""
        self._generate(category, min(2, self._max_new_tokens), None)

    def ask(
        self, answers: _Answers, category: str | None = None, handle: ClaspHandle | None = None
    ) -> None:
        with PhaseClock(self._loaded.model) as clock:
            output = self._generate(category, self._max_new_tokens, clock)
        new_tokens = output[0, self._inputs["input_ids"].shape[1] :]
        answers.new_tokens = len(new_tokens)
        answers.answer = self._loaded.processor.decode(new_tokens, skip_special_tokens=True).strip()
        answers.phases.append(clock.phases(handle.last if handle else None))

    def _generate(
        self, category: str | None, max_new_tokens: int, clock: PhaseClock | None
    ) -> torch.Tensor:
        import torch

        from clasp_kernels.models.generation import GREEDY

        with refusing_as(f"{self._loaded.name} cannot answer"), torch.inference_mode():
            output: torch.Tensor = self._loaded.model.generate(
                **self._inputs,
                **({} if category is None else {"categories": [category]}),
                **GREEDY,
                tokenizer=self._loaded.processor.tokenizer,  # for stop_strings
                max_new_tokens=max_new_tokens,
                streamer=clock,
            )
        return output
