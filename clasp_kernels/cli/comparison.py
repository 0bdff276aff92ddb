"""One question asked twice: with all visual tokens, and with few. Answers, times, memory."""

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

# Timed runs after a warm-up: more of them while they are cheap.
_MAX_RUNS = 5
_SECONDS_FOR_RUNS = 1.0


@dataclass(frozen=True)
class Phases:
    """Where the seconds of one answer went. ``total`` also holds what lies between the phases."""

    vision: float
    selection: float
    prefill: float
    decode: float
    total: float


@dataclass(frozen=True)
class Run:
    """One way of answering: the median of several timed runs."""

    answer: str
    new_tokens: int
    visual_tokens: int
    kv_cache_bytes: int
    seconds: Phases


@dataclass(frozen=True)
class Stage:
    """One point at which visual tokens were dropped, and those that it kept."""

    layer: int | None
    """Decoder layers that had run; None before the first."""
    tokens_before: int
    indices: tuple[int, ...]
    """Of the kept tokens, among all visual tokens of the prompt."""
    is_pivot: tuple[bool, ...]

    @property
    def tokens_after(self) -> int:
        return len(self.indices)

    @property
    def when(self) -> str:
        return "before the LLM" if self.layer is None else f"after layer {self.layer}"


@dataclass(frozen=True)
class Comparison:
    """The same question with all visual tokens and with those that were kept."""

    question: str
    category: str
    reason: str
    all_tokens: Run
    kept_tokens: Run
    stages: tuple[Stage, ...]
    num_layers: int
    timed_runs: int
    schedule: Schedule | None = None
    """Where tokens were to be dropped, if not just before the LLM."""
    views: tuple[View, ...] = field(default=(), repr=False)
    """What the model saw, and where its visual tokens are."""

    @property
    def indices(self) -> tuple[int, ...]:
        """The tokens that every stage kept."""
        return self.stages[-1].indices

    @property
    def is_pivot(self) -> tuple[bool, ...]:
        return self.stages[-1].is_pivot

    @property
    def num_pivots(self) -> int:
        return sum(self.is_pivot)

    @property
    def mean_visual_tokens(self) -> float:
        """The visual tokens that a decoder layer of the pruned model sees, averaged over all."""
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
    max_new_tokens: int = 32,
    on_step: Callable[[str], None] = lambda step: None,
) -> Comparison:
    """Ask with all visual tokens and with ``keep``, each warmed up and then timed.

    ``keep`` is how many tokens stay from before the LLM on, or a schedule of several stages.

    Raises a UsageError if ``question``, ``keep`` or ``category`` is not possible, a CommandError
    if the model is not one that can be pruned.
    """
    model = loaded.model
    # Applied once for its checks, so that an unsuitable model is refused before any work.
    with _applied(loaded, 1, profile) as handle:
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
    # Pruned first, as it needs less memory and time to fail.
    on_step(f"Warming up with {some}")
    with _applied(loaded, keep, profile):
        asker.warm_up(name)
    on_step(f"Warming up with all {num_tokens} visual tokens")
    asker.warm_up()

    # The two take turns, so that a machine that speeds up or slows down treats them alike.
    kept, full = _Answers(), _Answers()
    started = time.perf_counter()
    while not full.phases or (
        len(full.phases) < _MAX_RUNS and time.perf_counter() - started < _SECONDS_FOR_RUNS
    ):
        run = f"run {len(full.phases) + 1}"
        on_step(f"Answering with {some}, {run}")
        with _applied(loaded, keep, profile) as handle:
            asker.ask(kept, name, handle)
            record = handle.last
        on_step(f"Answering with all {num_tokens} visual tokens, {run}")
        asker.ask(full)
    assert record is not None  # for the type checker: each pruned answer leaves one
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
        views=prompt.views,
    )


def _stages(record: PrefillRecord, counts: Sequence[int]) -> tuple[Stage, ...]:
    """The stages of a prompt whose images have so many visual tokens each."""
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


def _applied(loaded: LoadedModel, keep: int | Schedule, profile: Profile | None) -> ClaspHandle:
    from clasp_kernels.models import apply_clasp

    try:
        if isinstance(keep, Schedule):
            return apply_clasp(loaded.model, schedule=keep, profile=profile)
        return apply_clasp(loaded.model, budget=keep, profile=profile)
    # TypeError: another class of model. RuntimeError: a transformers that cannot be followed.
    except (TypeError, ValueError, RuntimeError) as error:
        raise CommandError(f"CLASP cannot be applied to {loaded.name}: {error}") from None


@dataclass
class _Answers:
    """The timed runs of one way of answering; greedy, so the answers are the same."""

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
    """Greedy answers from one prepared prompt, and where their time goes."""

    def __init__(self, loaded: LoadedModel, inputs: Any, max_new_tokens: int) -> None:
        self._loaded = loaded
        self._inputs = inputs
        self._max_new_tokens = max_new_tokens

    def warm_up(self, category: str | None = None) -> None:
        """A short answer: a prefill and a decode step."""
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

        # A model's generation config may ask for other things than one greedy answer.
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
    """Times the vision tower, the first and the later calls of the decoder, and the whole.

    The two modules are hooked, so that both ways of answering are timed at the same places; it is
    also the ``streamer`` of ``generate``, which tells when each token is out.
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
        """A streamer's: first the prompt comes, then each new token."""
        self._tokens_at.append(self._now())

    def end(self) -> None:
        """A streamer's: generation is over."""

    def phases(self, record: PrefillRecord | None) -> Phases:
        first_token, last_token = self._tokens_at[1], self._tokens_at[-1]
        vision, prefill = self._spent["vision"], self._spent["decoder"]
        selection = 0.0
        if record is not None:
            # With the query and key of the salience layer, which only the pruned model needs.
            selection = max(0.0, record.vision_seconds - vision) + record.selection_seconds
            # Stages inside the decoder are in its time as well.
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
