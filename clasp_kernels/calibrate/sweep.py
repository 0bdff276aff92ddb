"""Have a model answer every question with every cell and budget, encoding each image once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from typing import Any

import torch

from clasp_kernels.calibrate.dataset import Question
from clasp_kernels.calibrate.grid import Cell, Grid
from clasp_kernels.calibrate.stages import BEFORE_LLM, Stages
from clasp_kernels.calibrate.store import AnswerKey, AnswerStore
from clasp_kernels.models import ClaspHandle, apply_clasp
from clasp_kernels.models.adapter import VisionOutput
from clasp_kernels.models.generation import GREEDY


@dataclass(frozen=True)
class Prepared:
    """A question as the model takes it."""

    inputs: Mapping[str, Any]
    """The arguments of ``generate`` for one prompt, on the model's device."""
    counts: tuple[int, ...]
    """Visual tokens of each image in the prompt."""
    decode: Callable[[torch.Tensor], str]
    """Turns the ids of an answer [tokens] into text."""


@dataclass(frozen=True)
class Sweep:
    """Answers questions with all cells.

    All cells of a question and a budget keep equally many tokens at every stage, as they share a
    schedule and the category's ``budget_scale``. So they are rows of one batch without padding. An
    image is encoded once for all cells, budgets and questions about it: no cell changes what the
    vision tower computes, only how its layers are mixed and which tokens stay.
    At any time, one image is in memory.
    """

    model: Any
    processor: Any
    grid: Grid
    budgets: tuple[int | float, ...]
    prepare: Callable[[Question], Prepared]
    max_new_tokens: int = 16
    batch_size: int = 8
    """Cells that are answered at once."""
    stages: Stages = BEFORE_LLM
    """The layers after which tokens are dropped. ``Stages.schedule`` must not raise for any budget
    and any question."""

    def size(self, questions: Sequence[Question]) -> int:
        """Return the number of answers to all ``questions``."""
        per_category = {
            category: len(self.grid.cells(category)) for category in categories_of(questions)
        }
        return len(self.budgets) * sum(
            per_category[question.category or ""] for question in questions
        )

    def run(
        self,
        questions: Sequence[Question],
        store: AnswerStore,
        on_done: Callable[[int], None] = lambda done: None,
    ) -> None:
        """Answer what the store lacks. ``on_done`` is told how many answers there are.

        Every batch has the same rows in every run, whatever the store has of it: the answers of a
        run that was stopped and resumed are those of one that was not.
        """
        profile = self.grid.sweep_profile(categories_of(questions))
        done = 0
        with (
            torch.inference_mode(),
            apply_clasp(
                self.model,
                profile=profile,
                processor=self.processor,
                schedule=self.stages.some_schedule,
            ) as handle,
        ):
            groups = groupby(by_image(questions), key=lambda question: question.image_hash)
            for _, group in groups:
                encoded = None
                for question in group:
                    prepared = None
                    for budget, cells in self._batches(question):
                        keys = [_key(question, budget, cell) for cell in cells]
                        if not all(key in store.answers for key in keys):
                            prepared = prepared or self.prepare(question)
                            if encoded is None or not encoded.serves(prepared.inputs):
                                encoded = _Encoded.of(handle, self.model, prepared.inputs)
                            categories = [
                                self.grid.category(question.category or "", cell) for cell in cells
                            ]
                            answers = self._answers(handle, encoded, prepared, categories, budget)
                            store.add(
                                (key, answer)
                                for key, answer in zip(keys, answers, strict=True)
                                if key not in store.answers
                            )
                        done += len(cells)
                        on_done(done)

    def _batches(self, question: Question) -> Iterator[tuple[int | float, list[Cell]]]:
        assert question.category is not None
        cells = self.grid.cells(question.category)
        for budget in self.budgets:
            for start in range(0, len(cells), self.batch_size):
                yield budget, cells[start : start + self.batch_size]

    def _answers(
        self,
        handle: ClaspHandle,
        encoded: _Encoded,
        prepared: Prepared,
        categories: Sequence[str],
        budget: int | float,
    ) -> list[str]:
        times = len(categories)
        inputs = {name: _repeated(value, times) for name, value in prepared.inputs.items()}
        schedule = self.stages.schedule(budget, prepared.counts)
        with handle.on_encoded(encoded.repeated(times), schedule):
            ids = self.model.generate(
                **inputs,
                **GREEDY,
                categories=categories,
                max_new_tokens=self.max_new_tokens,
                tokenizer=getattr(self.processor, "tokenizer", None),  # for stop_strings
            )
        return [prepared.decode(row) for row in ids[:, inputs["input_ids"].shape[1] :]]


@dataclass(frozen=True)
class _Encoded:
    """The vision tower's output for the images of one prompt, and what it was given."""

    pixels: Mapping[str, Any]
    vision: VisionOutput

    @classmethod
    def of(cls, handle: ClaspHandle, model: Any, inputs: Mapping[str, Any]) -> _Encoded:
        vision = handle.adapter.encode(model, inputs)
        pixels = {
            name: inputs[name]
            for name in handle.adapter.visual_arguments
            if inputs.get(name) is not None
        }
        return cls(pixels, replace(vision, salience=cache(vision.salience)))

    def serves(self, inputs: Mapping[str, Any]) -> bool:
        """Return whether ``inputs`` have the same pixels. A processor might look at the text."""
        return all(
            torch.equal(value, inputs[name])
            if isinstance(value, torch.Tensor)
            else value == inputs[name]
            for name, value in self.pixels.items()
        )

    def repeated(self, times: int) -> VisionOutput:
        """Return the output for a batch that repeats the prompt."""
        vision = self.vision
        return replace(
            vision,
            fused_layers=[_repeated(layer, times) for layer in vision.fused_layers],
            features=_repeated(vision.features, times),
            salience=lambda: _repeated(vision.salience(), times),
            counts=vision.counts * times,
            deeper=[_repeated(features, times) for features in vision.deeper],
        )


def _repeated(value: Any, times: int) -> Any:
    """Repeat along the first dimension, in which every argument has prompts, images or patches."""
    if isinstance(value, torch.Tensor):
        return value[None].expand(times, *value.shape).flatten(0, 1)
    return list(value) * times if isinstance(value, (list, tuple)) else value


def _key(question: Question, budget: int | float, cell: Cell) -> AnswerKey:
    return AnswerKey(question.key, str(budget), cell.name)


def categories_of(questions: Sequence[Question]) -> list[str]:
    """Return the categories that are asked about, in the order of their first question."""
    return list(dict.fromkeys(question.category or "" for question in questions))


def by_image(questions: Sequence[Question]) -> list[Question]:
    """Return the questions with those about one image beside each other."""
    first: dict[str, int] = {}
    for number, question in enumerate(questions):
        first.setdefault(question.image_hash, number)
    return sorted(questions, key=lambda question: first[question.image_hash])
