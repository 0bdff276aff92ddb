"""What is measured: the unpruned model, both ways of pruning it, and the ideal of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from clasp_kernels import apply_clasp
from clasp_kernels.models.compat import cache_name, native_cache, output_cache
from clasp_kernels.models.handle import ClaspHandle
from clasp_kernels.policy import Schedule

from .ideal import Ideal
from .shape import Shape, stage_layers, twin

UNPRUNED, INPUT, PROGRESSIVE = "unpruned", "input", "progressive"


@dataclass(frozen=True)
class Method:
    name: str
    budget: int
    """Visual tokens kept, on average over the decoder layers."""
    ideal: bool = False

    def __str__(self) -> str:
        if self.name == UNPRUNED:
            return self.name
        return f"{self.name} R{self.budget}{' ideal' if self.ideal else ''}"


def methods(shape: Shape) -> list[Method]:
    """All methods, each ideal right after the method that it is compared with."""
    return [
        Method(UNPRUNED, shape.num_tokens),
        *(
            Method(name, budget, ideal)
            for budget in shape.budgets
            for name in (INPUT, PROGRESSIVE)
            for ideal in (False, True)
        ),
    ]


def schedule(shape: Shape, method: Method) -> Schedule | None:
    """The method's schedule, None for the unpruned model."""
    if method.name == UNPRUNED:
        return None
    if method.name == INPUT:
        return Schedule.input(method.budget)
    return Schedule.progressive(
        average=method.budget,
        layers=stage_layers(shape, method.budget),
        num_layers=shape.text.layers,
        num_tokens=shape.num_tokens,
    )


def stages(shape: Shape, method: Method) -> dict[int, int]:
    """The visual tokens that go on, by how many decoder layers have run."""
    found = schedule(shape, method)
    return {} if found is None else {layer: int(tokens) for layer, tokens in found.stages}


class Runner(Protocol):
    """Runs one method on one prompt."""

    def prefill(self) -> tuple[Tensor, Any]:
        """Logits [B, vocabulary] of the last column, and the cache."""

    def step(self, tokens: Tensor, cache: Any, seen: int) -> Tensor:
        """Logits after ``tokens`` [B, 1], one more in each row. ``seen`` counts the columns before
        them: those of the unpruned prompt, and of its answer so far."""

    def selection_seconds(self) -> float:
        """The seconds of the last prefill that went into choosing tokens."""


class WholeModel:
    """A model, pruned or not, called as in a user's own loop."""

    def __init__(
        self,
        model: Any,
        prompt: Mapping[str, Tensor],
        handle: ClaspHandle | None = None,
        **arguments: Any,
    ) -> None:
        """``handle``: of the pruning; None for a model that is not pruned."""
        self._model, self._prompt, self._arguments = model, prompt, arguments
        self._handle = handle
        self._cache_name = cache_name(model, "forward")

    def prefill(self) -> tuple[Tensor, Any]:
        outputs = self._model(
            **self._prompt, use_cache=True, logits_to_keep=1, return_dict=True, **self._arguments
        )
        return outputs.logits[:, -1], output_cache(outputs)

    def step(self, tokens: Tensor, cache: Any, seen: int) -> Tensor:
        past = native_cache({"cache": cache}, self._cache_name)
        outputs = self._model(input_ids=tokens, return_dict=True, **past)
        logits: Tensor = outputs.logits[:, -1]
        return logits

    def selection_seconds(self) -> float:
        last = self._handle.last if self._handle else None
        return last.selection_seconds if last else 0.0


def make_runner(model: Any, shape: Shape, prompt: Mapping[str, Tensor], method: Method) -> Runner:
    """``model`` is not patched: pruning patches a twin that shares its weights."""
    if method.name == UNPRUNED:
        return WholeModel(model, prompt)
    if method.ideal:
        return Ideal(model, shape, prompt, stages(shape, method))
    pruned = twin(model)
    handle = apply_clasp(pruned, schedule=schedule(shape, method))
    # The category is given, as there is no tokenizer to read the prompt with; a router takes less
    # than 50 microseconds.
    return WholeModel(pruned, prompt, handle, categories="general")
