"""One process's model, which answers questions in batches without padding.

The vision tower runs once an image: no row but that of the smaller image changes what it computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from evaluate import Example
from model import IMAGE_SIZE, PATCH_SIZE, PROMPT
from torch import Tensor
from transformers import AutoProcessor, LlavaForConditionalGeneration

from clasp_kernels import Selection, select_tokens
from clasp_kernels.models import ClaspHandle, apply_clasp
from clasp_kernels.models.adapter import VisionOutput
from clasp_kernels.policy import Profile, strategy_weights
from clasp_kernels.rules import register_rule, rule_names
from quality.names import TIMED_BATCH
from quality.questions import batches, draw
from quality.rows import RANDOM_SEEDS, Row, random_name, side

BATCH = 128
MAX_NEW_TOKENS = 5
_GENERATORS: dict[int, torch.Generator] = {}


@dataclass(frozen=True)
class Batch:
    """Questions whose prompts are equally long."""

    numbers: list[int]
    examples: list[Example]
    inputs: dict[str, Tensor]

    @property
    def categories(self) -> list[str]:
        return [question.category for _, question in self.examples]


@dataclass(frozen=True)
class Encoded:
    """The vision tower's output for a batch. It serves every profile with the same layers."""

    states: dict[int, Tensor]
    vision: VisionOutput

    def for_handle(self, handle: ClaspHandle) -> VisionOutput:
        layers = [self.states[state] for state in handle.adapter.layers.states]
        return replace(self.vision, fused_layers=layers)


class Answerer:
    """The model of a process, and the batches of a split of the questions."""

    def __init__(self, model: Path, profile: Profile, split: str, per_cell: int) -> None:
        self.model = LlavaForConditionalGeneration.from_pretrained(model).eval()
        self.processor = AutoProcessor.from_pretrained(model)
        self.profile = profile
        self.examples = draw(split, per_cell)
        register_random_rules()

    def answers(self, row: Row, budget: int) -> list[str]:
        """Return the greedy answer to each question, in their order."""
        found = [""] * len(self.examples)
        with torch.inference_mode():
            for batch, new in self._generated(row, budget):
                texts = self.processor.batch_decode(new, skip_special_tokens=True)
                for number, text in zip(batch.numbers, texts, strict=True):
                    found[number] = text.strip()
        return found

    def seconds(self, row: Row, budget: int) -> float:
        """Return the seconds an image that selecting takes, with scoring and gathering.

        The second of two calls is measured, since the first pays for what is made once.
        """
        batch = self._timed
        with torch.inference_mode(), self._applied(row, budget) as handle:
            with handle.on_encoded(handle.adapter.encode(self.model, batch.inputs)):
                for _ in range(2):
                    self._generate(batch, max_new_tokens=1, categories=batch.categories)
            assert handle.last is not None
            return handle.last.selection_seconds / len(batch.numbers)

    @cached_property
    def _timed(self) -> Batch:
        count = min(TIMED_BATCH, len(self.examples))
        spread = [number * len(self.examples) // count for number in range(count)]
        return self._prepared(spread, IMAGE_SIZE, True)

    def _generated(self, row: Row, budget: int) -> Iterator[tuple[Batch, Tensor]]:
        if row.kind != "pruned":
            size = side(budget) * PATCH_SIZE if row.kind == "smaller" else IMAGE_SIZE
            ask = self._generate_smaller if row.kind == "smaller" else self._generate
            for batch in self._batches(size, row.kind != "blind"):
                yield batch, ask(batch)
            return
        if row.rule is not None and row.rule.startswith("random"):
            restart_random_rules()
        whole = self._encoded  # before the model is patched for the row
        with self._applied(row, budget) as handle:
            for batch, encoded in whole:
                with handle.on_encoded(encoded.for_handle(handle)):
                    yield batch, self._generate(batch, categories=batch.categories)

    def _applied(self, row: Row, budget: int) -> ClaspHandle:
        return apply_clasp(
            self.model,
            schedule=row.schedule(budget),
            profile=row.profile,
            processor=self.processor,
            rule=row.rule,
            **row.settings,
        )

    def _generate(self, batch: Batch, **more: Any) -> Tensor:
        settings = {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": False, **more}
        ids = self.model.generate(**batch.inputs, **settings)
        return ids[:, batch.inputs["input_ids"].shape[1] :]

    def _generate_smaller(self, batch: Batch) -> Tensor:
        """Answer about images of another size, with the tower's positions interpolated."""
        inputs = batch.inputs
        ids, inner = inputs["input_ids"], self.model.model
        seen = inner.get_image_features(inputs["pixel_values"], interpolate_pos_encoding=True)
        features = torch.cat(list(seen.pooler_output))
        places = (ids == self.model.config.image_token_id)[..., None]
        embeddings = self.model.get_input_embeddings()(ids).masked_scatter(places, features)
        # Without input_ids, what is returned has the new tokens alone.
        return self.model.generate(
            inputs_embeds=embeddings,
            attention_mask=inputs["attention_mask"],
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
        )

    def _batches(self, size: int, seeing: bool) -> Iterator[Batch]:
        lengths = [
            len(self.processor.tokenizer(question.text).input_ids) for _, question in self.examples
        ]
        for numbers in batches(lengths, BATCH):
            yield self._prepared(numbers, size, seeing)

    def _prepared(self, numbers: Sequence[int], size: int, seeing: bool) -> Batch:
        examples = [self.examples[number] for number in numbers]
        prompt = PROMPT if seeing else PROMPT.replace("<image>", "")
        images = {
            "images": [picture.render(IMAGE_SIZE) for picture, _ in examples],
            "images_kwargs": {"size": {"height": size, "width": size}},
        }
        inputs = self.processor(
            text=[prompt.format(question=question.text) for _, question in examples],
            return_tensors="pt",
            padding=True,
            **(images if seeing else {}),
        )
        return Batch(list(numbers), examples, dict(inputs))

    @cached_property
    def _encoded(self) -> list[tuple[Batch, Encoded]]:
        """Return all batches with what the vision tower makes of them."""
        found = []
        num_layers = len(self.profile.layers)
        every = {
            f"layer {n}": replace(
                self.profile.categories["general"],
                layer_weights=tuple(float(n == layer) for layer in range(num_layers)),
            )
            for n in range(num_layers)
        }
        general = replace(
            self.profile.categories["general"], layer_weights=strategy_weights("C", num_layers)
        )
        all_layers = replace(self.profile, categories={**every, "general": general})
        with apply_clasp(self.model, profile=all_layers, processor=self.processor) as handle:
            states = handle.adapter.layers.states
            for batch in self._batches(IMAGE_SIZE, True):
                vision = handle.adapter.encode(self.model, batch.inputs)
                layers = dict(zip(states, vision.fused_layers, strict=True))
                scored = replace(vision, salience=partial(torch.clone, vision.salience()))
                found.append((batch, Encoded(layers, scored)))
        return found


def register_random_rules() -> None:
    """Register a rule for each seed of random tokens, in this process.

    The registered rule "random" has one seed, and draws the same tokens in every batch.
    """
    for seed in RANDOM_SEEDS:
        if random_name(seed) not in rule_names():
            _GENERATORS[seed] = torch.Generator()
            register_rule(random_name(seed), uses_salience=False)(_random_rule(_GENERATORS[seed]))


def restart_random_rules() -> None:
    """Have the next draws be the first, so that a row's tokens do not depend on rows before it."""
    for seed, generator in _GENERATORS.items():
        generator.manual_seed(seed)


def _random_rule(generator: torch.Generator) -> Any:
    def random(
        features: Tensor, salience: Tensor, budget: Sequence[int], *, valid: Tensor | None = None
    ) -> Selection:
        scores = torch.rand(features.shape[:2], generator=generator)
        return select_tokens(features, scores, list(budget), list(budget), valid=valid)

    return random
