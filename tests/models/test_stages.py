"""Dropping tokens after a decoder layer equals masking them in every later layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from masked_layers import embedded, kept_in_layers, layers_masked
from tiny_llava import IMAGE_TOKEN, images, prompts, tiny_llava, tiny_profile

from clasp_kernels.models import ClaspHandle, PrefillRecord, apply_clasp
from clasp_kernels.policy import Schedule

LAYERS = 5

BATCHES: dict[str, tuple[dict[str, torch.Tensor], int, list[str]]] = {
    "one prompt": (prompts([1, 5, "image", 7, 8, 9]), 1, ["general"]),
    "left padding": (
        prompts([1, 5, "image", 7, 8], [1, "image", 3, 2, 9, 4, 4, 4, 8], [1, "image", 2]),
        3,
        ["ocr", "counting", "spatial"],
    ),
    "images and none": (
        prompts([1, 5, "image", 7, 8], [1, "image", 3, "image", 9], [4, 4, 6, 9]),
        3,
        ["general", "spatial", "general"],
    ),
}

SCHEDULES = {
    "one stage": Schedule({2: 9}),
    "three stages": Schedule({1: 0.6, 2: 0.3, 4: 0.1}),
    "input and two": Schedule({0: 20, 2: 12, 3: 5}),
}

DECODING: dict[str, dict[str, Any]] = {
    "greedy": {},
    "static cache": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
    "beams, two returned": {"num_beams": 3, "num_return_sequences": 2},
    "beams, static cache": {"num_beams": 2, "cache_implementation": "static"},
    "sampling, two returned": {"do_sample": True, "num_return_sequences": 2},
}


@pytest.fixture(params=list(BATCHES))
def batch(request: pytest.FixtureRequest) -> tuple[dict[str, torch.Tensor], list[str]]:
    prompt, count, categories = BATCHES[request.param]
    return {**prompt, "pixel_values": images(count)}, categories


@pytest.fixture(params=list(SCHEDULES))
def schedule(request: pytest.FixtureRequest) -> Schedule:
    return SCHEDULES[request.param]


def pruned(model: Any, schedule: Schedule, **settings: Any) -> ClaspHandle:
    return apply_clasp(
        model,
        schedule=schedule,
        profile=tiny_profile(),
        **{"fuse_into": "selection", **settings},
    )


def last(handle: ClaspHandle) -> PrefillRecord:
    assert handle.last is not None
    return handle.last


def positions(attention_mask: torch.Tensor) -> torch.Tensor:
    return (attention_mask.cumsum(1) - 1).clamp_min(0)


def check_prefill(
    model: Any, prompt: dict[str, torch.Tensor], categories: list[str], schedule: Schedule
) -> float:
    """Compare the logits of all remaining tokens; return the difference if one other were kept."""
    position_ids = positions(prompt["attention_mask"])
    with pruned(model, schedule) as handle:
        logits = model(**prompt, position_ids=position_ids, categories=categories).logits
    record = last(handle)
    kept = kept_in_layers(model, prompt, record)
    with layers_masked(model, kept):
        expected = model(**prompt, position_ids=position_ids, use_cache=False).logits
    compared = 0
    for row, columns in enumerate(record.columns.tolist()):
        for at, column in enumerate(columns):
            if column >= 0:
                torch.testing.assert_close(
                    logits[row, at], expected[row, column], atol=1e-4, rtol=0
                )
                compared += 1
    assert compared == int(kept[-1].sum())
    exchange_one(kept[-1], prompt)
    with layers_masked(model, kept):
        other = model(**prompt, position_ids=position_ids, use_cache=False).logits
    return float((logits[0, -1] - other[0, -1]).abs().max())


def exchange_one(kept: torch.Tensor, prompt: dict[str, torch.Tensor]) -> None:
    is_image = prompt["input_ids"][0] == IMAGE_TOKEN
    inside, outside = (kept[0] & is_image).nonzero()[0], (~kept[0] & is_image).nonzero()[0]
    kept[0, inside], kept[0, outside] = False, True


def check_generation(
    model: Any,
    batch: tuple[dict[str, torch.Tensor], list[str]],
    schedule: Schedule,
    decoding: dict[str, Any],
) -> None:
    prompt, categories = batch
    settings = {
        **decoding,
        "max_new_tokens": 5,
        "output_logits": True,
        "return_dict_in_generate": True,
        "suppress_tokens": [IMAGE_TOKEN],
    }
    with pruned(model, schedule) as handle:
        torch.manual_seed(3)
        ours = model.generate(**prompt, categories=categories, **settings)
    for name in ("cache_implementation", "use_cache"):
        settings.pop(name, None)
    with layers_masked(model, kept_in_layers(model, prompt, last(handle))):
        torch.manual_seed(3)
        expected = model.generate(**embedded(model, prompt), **settings)
    length = prompt["input_ids"].shape[1]
    assert torch.equal(ours.sequences[:, length:], expected.sequences)
    for step, (got, wanted) in enumerate(zip(ours.logits, expected.logits, strict=True)):
        torch.testing.assert_close(
            got, wanted, atol=1e-4, rtol=0, msg=lambda text, step=step: f"step {step}: {text}"
        )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_prefill_logits_of_surviving_tokens(
    batch: tuple[dict[str, torch.Tensor], list[str]], schedule: Schedule, attention: str
) -> None:
    model = tiny_llava(decoder_layers=LAYERS, attn_implementation=attention)
    assert check_prefill(model, *batch, schedule) > 1e-2


@pytest.mark.parametrize("decoding", list(DECODING))
def test_every_generated_step(
    batch: tuple[dict[str, torch.Tensor], list[str]], schedule: Schedule, decoding: str
) -> None:
    check_generation(tiny_llava(decoder_layers=LAYERS), batch, schedule, DECODING[decoding])
