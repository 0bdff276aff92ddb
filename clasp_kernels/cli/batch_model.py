"""``clasp batch``: the model in one process, which answers rows in batches."""

from __future__ import annotations

import gc
import io
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import BatchFeature

from clasp_kernels.batch import Answer, Prepared, Row, StopsJob
from clasp_kernels.cli.batch_options import ModelSettings
from clasp_kernels.cli.comparison import categorise
from clasp_kernels.cli.errors import CommandError, applying_clasp, first_line, is_out_of_memory
from clasp_kernels.cli.loading import LoadedModel, decode_image, load_image, load_model
from clasp_kernels.cli.prompt import process
from clasp_kernels.models import ClaspHandle, apply_clasp
from clasp_kernels.models.generation import GREEDY


def load_answerer(settings: ModelSettings, device: str) -> ModelAnswerer:
    """Load the model on a device, and prune it.

    Raises StopsJob if that is not possible.
    """
    try:
        loaded = load_model(settings.model, device, settings.revision)
        return ModelAnswerer(loaded, applied(loaded, settings), settings.max_new_tokens)
    except (CommandError, ImportError) as error:
        raise StopsJob(str(error)) from None


def applied(loaded: LoadedModel, settings: ModelSettings) -> ClaspHandle:
    """Prune a model. Raises a CommandError if model and settings do not fit."""
    with applying_clasp(loaded.name):
        return apply_clasp(
            loaded.model,
            budget=settings.budget,
            schedule=settings.schedule,
            profile=settings.profile,
            rule=settings.rule,
            processor=loaded.processor,
        )


class ModelAnswerer:
    """A pruned model as the ``Answerer`` of a ``ShardWorker``."""

    def __init__(self, loaded: LoadedModel, handle: ClaspHandle, max_new_tokens: int) -> None:
        self._loaded = loaded
        self._handle = handle
        self._max_new_tokens = max_new_tokens

    def prepare(self, row: Row) -> Prepared:
        """Prepare a row alone, on the host: what is wrong with it concerns no other."""
        assert row.question is not None  # for the type checker: else the row has an error
        if isinstance(row.content, Path):
            image = load_image(row.content)
        else:
            image = decode_image(io.BytesIO(row.content or b""), f"IMAGE: {row.image}")
        category, _ = categorise(row.question, None, self._handle.profile)
        inputs, counts = process(self._loaded, self._handle.adapter, image, row.question)
        visual = self._handle.adapter.visual_arguments
        kind = tuple((name, _kind(inputs[name])) for name in visual if name in inputs)
        return Prepared(
            (inputs, len(counts)), inputs["input_ids"].shape[1], kind, category, sum(counts)
        )

    def answer(self, batch: Sequence[Prepared]) -> list[Answer]:
        """Answer rows of one kind, greedily. Each row's category is its own."""
        model, tokenizer = self._loaded.model, self._loaded.processor.tokenizer
        inputs = collated(
            [each.inputs[0] for each in batch],
            self._handle.adapter.visual_arguments,
            _padding(tokenizer),
        ).to(model.device, model.dtype)
        with torch.inference_mode():
            output = model.generate(
                **inputs,
                **GREEDY,
                categories=[each.category for each in batch],
                tokenizer=tokenizer,  # for stop_strings
                max_new_tokens=self._max_new_tokens,
            )
        texts = [self._text(ids) for ids in output[:, inputs["input_ids"].shape[1] :].cpu()]
        record = self._handle.last
        assert record is not None  # for the type checker: generate sets it
        kept = record.stages[-1].counts
        answers, first = [], 0
        for each, text in zip(batch, texts, strict=True):
            images = each.inputs[1]
            answers.append(Answer(text, sum(kept[first : first + images])))
            first += images
        return answers

    def _text(self, ids: torch.Tensor) -> str:
        """Return an answer [tokens] as text, without what fills its row up after its end."""
        ends = self._loaded.model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        is_end = torch.zeros_like(ids, dtype=torch.bool)
        for end in ends:
            if end is not None:
                is_end |= ids == end
        after = is_end.cumsum(0) - is_end.long() > 0
        text: str = self._loaded.processor.decode(ids[~after], skip_special_tokens=True)
        return text.strip()

    def explain(self, error: Exception) -> str:
        if isinstance(error, CommandError):
            return str(error)
        if is_out_of_memory(error):
            return f"out of memory, for this row alone: {first_line(error)}"
        return f"{type(error).__name__}: {first_line(error)}"

    def recover(self) -> None:
        """Free what a failed batch has left, and check that the device still works."""
        gc.collect()
        device = self._loaded.model.device
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.ones(1, device=device).item()  # fails after an illegal memory access


def _padding(tokenizer: Any) -> int:
    found = tokenizer.pad_token_id
    return int(tokenizer.eos_token_id or 0) if found is None else int(found)


def _kind(value: Any) -> Hashable:
    """Return what must be equal for values of two rows to be put one after the other."""
    return tuple(value.shape[1:]) if isinstance(value, torch.Tensor) else type(value).__name__


def collated(rows: Sequence[Any], visual: Sequence[str], pad_token_id: int) -> BatchFeature:
    """Return a batch of what a processor made of single rows.

    It is what the processor makes of all of them together, with padding on the left. Arguments
    that have an entry for each column of the prompt are padded; the ``visual`` ones, which have one
    for each image, tile or patch, follow each other.

    Args:
        rows: outputs of the processor for one prompt each. Their visual arguments must be alike
            beyond the first dimension.
        visual: names of the visual arguments.
        pad_token_id: fills ``input_ids``. Masks and token types are filled with 0, labels with
            -100.
    """
    columns = max(row["input_ids"].shape[1] for row in rows)
    fills = {"input_ids": pad_token_id, "labels": -100}  # labels: PaliGemma's processor
    batch: dict[str, Any] = {}
    for name, first in rows[0].items():
        values = [row[name] for row in rows]
        if not isinstance(first, torch.Tensor):
            batch[name] = [each for value in values for each in value]
            continue
        if name not in visual:
            fill = fills.get(name, 0)
            values = [
                torch.nn.functional.pad(value, (columns - value.shape[1], 0), value=fill)
                for value in values
            ]
        batch[name] = torch.cat(values)
    return BatchFeature(batch)
