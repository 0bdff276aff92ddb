"""Every family's tiny model, its prompts, and its outputs without any wrapper or change."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch

from clasp_kernels.models import ClaspHandle, PrefillRecord, apply_clasp, oracle
from clasp_kernels.models.decoder import refusal
from clasp_kernels.models.specimens import SPECIMENS
from clasp_kernels.policy import Schedule

Batch = dict[str, torch.Tensor]

SCHEDULES = {"input": Schedule.input(0.25), "inside": Schedule({1: 0.5, 3: 0.25})}
#: Words before, between and after the images of each prompt, for one, two and no images.
ROWS = ((2, 3), (1, 2, 5), (4,))
CATEGORIES = {"categories": ["ocr", "counting", "general"]}
NEW_TOKENS = 4

#: The families that differ most: newlines between tokens; DeepStack features and 3D position ids;
#: bidirectional attention within images; a recurrent decoder.
TELLING = ("llava_next", "qwen3_vl", "gemma3", "qwen3_5")
telling_families = pytest.mark.parametrize("family", TELLING)
#: The others only run in `make test-deep`.
every_family = pytest.mark.parametrize(
    "family",
    [
        family if family in TELLING else pytest.param(family, marks=pytest.mark.deep)
        for family in SPECIMENS
    ],
)
every_schedule = pytest.mark.parametrize("where", list(SCHEDULES))


def build(family: str, **settings: Any) -> Any:
    return SPECIMENS[family].build(**settings)


def patched(model: Any, where: str) -> ClaspHandle:
    family = model.config.model_type
    skip_what_is_refused(model, where)
    return apply_clasp(
        model,
        schedule=SCHEDULES[where],
        profile=oracle._profile(family),
        fuse_into="selection",
    )


def skip_what_is_refused(model: Any, where: str) -> None:
    """Skip the test if the schedule prunes inside a decoder that does not support it."""
    problem = refusal(model.config.get_text_config())
    if problem and any(SCHEDULES[where].layers):
        pytest.skip(problem)


@cache
def batch(family: str, rows: tuple[tuple[int, ...], ...] = ROWS) -> Batch:
    """Return left-padded prompts. They are cached, so do not modify them."""
    with torch.no_grad():
        return oracle._batch(family, build(family), rows)


def negated(prompts: Batch) -> Batch:
    """Return the same prompts with different images."""
    return {name: -value if value.is_floating_point() else value for name, value in prompts.items()}


def together(family: str, *prompts: Batch) -> Batch:
    """Join prompts of one row each to one left-padded batch."""
    width = max(prompt["input_ids"].shape[1] for prompt in prompts)
    joined: Batch = {}
    for name, value in prompts[0].items():
        parts = [prompt[name] for prompt in prompts]
        if name in oracle._BY_COLUMN:
            assert value.ndim == 2
            parts = [torch.nn.functional.pad(part, (width - part.shape[1], 0)) for part in parts]
        joined[name] = torch.cat(parts)
    return joined


def greedy(model: Any) -> dict[str, Any]:
    """Return greedy settings of ``generate`` that never generate a placeholder."""
    return {
        "max_new_tokens": NEW_TOKENS,
        "do_sample": False,
        "suppress_tokens": no_words(model),
    }


def no_words(model: Any) -> list[int]:
    around = SPECIMENS[model.config.model_type].around(model.config)
    return sorted({*oracle._no_words(model.config), *around[0], *around[1]})


def last(handle: ClaspHandle) -> PrefillRecord:
    assert handle.last is not None
    return handle.last


def answers(model: Any, prompts: Batch, pruned: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits of a forward, and generated ids."""
    categories = CATEGORIES if pruned else {}
    logits = model(**prompts, **categories).logits
    return logits, model.generate(**prompts, **categories, **greedy(model))


@cache
def expected(family: str, where: str | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the answers of a fresh model, pruned at ``where``, or unpruned if that is None."""
    model = build(family)
    with torch.no_grad():
        if where is None:
            return answers(model, batch(family), pruned=False)
        with patched(model, where):
            return answers(model, batch(family))


def assert_prunes(model: Any, family: str, where: str, atol: float = 0.0) -> None:
    """Check that a model answers like a fresh patched model."""
    assert_answers(model, batch(family), expected(family, where), atol)


def assert_as_it_was(model: Any, family: str, atol: float = 0.0) -> None:
    assert_answers(model, batch(family), expected(family, None), atol, pruned=False)


def assert_answers(
    model: Any,
    prompts: Batch,
    wanted: Sequence[torch.Tensor],
    atol: float = 0.0,
    pruned: bool = True,
) -> None:
    logits, ids = answers(model, prompts, pruned)
    torch.testing.assert_close(logits.float(), wanted[0], atol=atol, rtol=0.0)
    assert torch.equal(ids, wanted[1])


def oracle_logits(model: Any, prompts: Batch, ids: torch.Tensor, record: PrefillRecord) -> Any:
    """Return an unpatched model's logits [rows, columns, vocabulary] with dropped tokens masked."""
    return oracle._oracle(model, prompts, ids, oracle._kept(record, prompts))
