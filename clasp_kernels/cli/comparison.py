"""Ask one question with all visual tokens and with few, and compare answers, times and memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from clasp_kernels.cli.errors import CommandError, UsageError, in_one_line, refusing_as
from clasp_kernels.cli.loading import LoadedModel
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
class Phases:
    """Seconds of one answer by phase. ``total`` includes the time between the phases."""

    vision: float
    selection: float
    prefill: float
    decode: float
    total: float


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
    rule: str = "clasp",
    max_new_tokens: int = 32,
    on_step: Callable[[str], None] = lambda step: None,
) -> Comparison:
    """Ask with all visual tokens and with the kept ones; warm up both, then time them.

    ``keep`` is the number of tokens kept before the LLM, or a schedule. ``rule`` is the name of a
    rule of ``clasp_kernels.rules``.

    Raises a UsageError if ``question``, ``keep``, ``category`` or ``rule`` is invalid, and a
    CommandError if the model cannot be pruned.
    """
    from clasp_kernels.rules import rule_names

    if rule not in rule_names():
        raise UsageError(f"--rule must be one of {', '.join(rule_names())}, got {rule!r}")
    model = loaded.model
    # Apply once for the checks, so that an unsupported model is refused before any work.
    with _applied(loaded, 1, profile, rule) as handle:
        name, reason = _categorise(question, category, handle.profile)
        prompt = prepare(loaded, handle.adapter, image, question)
    num_tokens = prompt.visual_tokens
    num_layers: int = model.config.get_text_config().num_hidden_layers
    _check_fits(keep, max(prompt.counts), num_layers, loaded.name)
    asker = _Asker(loaded, prompt.inputs, max_new_tokens)
    some = (
        f"the schedule {keep}"
        if isinstance(keep, Schedule)
        else f"{keep} of {num_tokens} visual tokens"
    )
    # Run the pruned model first: if it fails, it does so sooner and with less memory.
    on_step(f"Warming up with {some}")
    with _applied(loaded, keep, profile, rule):
        asker.warm_up(name)
    on_step(f"Warming up with all {num_tokens} visual tokens")
    asker.warm_up()

    # Alternate the two, so that changes in the machine's speed affect both alike.
    kept, full = _Answers(), _Answers()
    started = time.perf_counter()
    while not full.phases or (
        len(full.phases) < _MAX_RUNS and time.perf_counter() - started < _SECONDS_FOR_RUNS
    ):
        run = f"run {len(full.phases) + 1}"
        on_step(f"Answering with {some}, {run}")
        with _applied(loaded, keep, profile, rule) as handle:
            asker.ask(kept, name, handle)
            record = handle.last
        on_step(f"Answering with all {num_tokens} visual tokens, {run}")
        asker.ask(full)
    assert record is not None  # for the type checker: every pruned run sets it
    stages = _stages(record, prompt.counts)
    return Comparison(
        question=question,
        category=name,
        reason=reason,
        all_tokens=full.summary(num_tokens, record.kv_cache_bytes_unpruned),
        kept_tokens=kept.summary(stages[-1].tokens_after, record.kv_cache_bytes),
        stages=stages,
        num_layers=num_layers,
        timed_runs=len(full.phases),
        schedule=keep if isinstance(keep, Schedule) else None,
        rule=rule,
        views=prompt.views,
    )


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


def _categorise(question: str, category: str | None, profile: Profile) -> tuple[str, str]:
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
    loaded: LoadedModel, keep: int | Schedule, profile: Profile | None, rule: str
) -> ClaspHandle:
    from clasp_kernels.models import apply_clasp

    try:
        if isinstance(keep, Schedule):
            return apply_clasp(loaded.model, schedule=keep, profile=profile, rule=rule)
        return apply_clasp(loaded.model, budget=keep, profile=profile, rule=rule)
    # TypeError: unsupported model class. RuntimeError: unsupported transformers.
    except (TypeError, ValueError, RuntimeError) as error:
        raise CommandError(f"CLASP cannot be applied to {loaded.name}: {error}") from None


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

        # Override the model's generation config, which may not be greedy.
        greedy = {
            "do_sample": False,
            "num_beams": 1,
            "num_return_sequences": 1,
            "return_dict_in_generate": False,
            "use_cache": True,
        }
        with refusing_as(f"{self._loaded.name} cannot answer"), torch.inference_mode():
            output: torch.Tensor = self._loaded.model.generate(
                **self._inputs,
                **({} if category is None else {"categories": [category]}),
                **greedy,
                tokenizer=self._loaded.processor.tokenizer,  # for stop_strings
                max_new_tokens=max_new_tokens,
                streamer=clock,
            )
        return output


class PhaseClock:
    """Times the vision tower, the prefill, the decode steps and the whole answer.

    Forward hooks time the vision tower and the decoder, so the unpruned and the pruned model are
    timed at the same places. The clock is also the ``streamer`` of ``generate``, which is called
    for each new token.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._hooks = ExitStack()
        self._spent: dict[str, float] = {}
        self._entered: dict[str, float] = {}
        self._tokens_at: list[float] = []
        self._started = 0.0
        self._ended = 0.0

    def __enter__(self) -> PhaseClock:
        self._hook("vision", self._model.get_encoder(modality="image"))
        self._hook("decoder", self._model.get_decoder())
        self._started = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = self._now()
        self._hooks.close()

    def put(self, value: torch.Tensor) -> None:
        """Streamer interface: called with the prompt, then with each new token."""
        self._tokens_at.append(self._now())

    def end(self) -> None:
        """Streamer interface: called at the end of generation."""

    def phases(self, record: PrefillRecord | None) -> Phases:
        first_token, last_token = self._tokens_at[1], self._tokens_at[-1]
        vision, prefill = self._spent["vision"], self._spent["decoder"]
        selection = 0.0
        if record is not None:
            # encode() takes longer than the tower alone: the difference counts as selection.
            selection = max(0.0, record.vision_seconds - vision) + record.selection_seconds
            # The decoder's time includes the stages inside it.
            inside = sum(stage.seconds for stage in record.stages if stage.layer is not None)
            prefill = max(0.0, prefill - inside)
        return Phases(
            vision=vision,
            selection=selection,
            prefill=prefill,
            decode=last_token - first_token,
            total=self._ended - self._started,
        )

    def _hook(self, name: str, module: torch.nn.Module) -> None:
        def enter(*_: object) -> None:
            if name not in self._spent:
                self._entered[name] = self._now()

        def leave(*_: object) -> None:
            if name not in self._spent:  # the decoder's later calls are decode steps
                self._spent[name] = self._now() - self._entered[name]

        self._hooks.callback(module.register_forward_pre_hook(enter).remove)
        self._hooks.callback(module.register_forward_hook(leave).remove)

    def _now(self) -> float:
        import torch

        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)
        return time.perf_counter()
