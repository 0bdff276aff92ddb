"""Gemma 3, pruned."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from packed_prompts import build

from clasp_kernels.models import apply_clasp, oracle
from clasp_kernels.models.compat import output_cache
from clasp_kernels.models.specimens import IMAGE_TOKEN, SPECIMENS, tiny_gemma3
from clasp_kernels.policy import Profile, Schedule

pytestmark = pytest.mark.filterwarnings("ignore:the router cannot read the prompts")

FAMILY = "gemma3"
INPUT = Schedule.input(0.25)
INSIDE = Schedule({0: 0.75, 1: 0.5, 2: 0.25, 3: 0.125})
TOKENS = 9  # per image
BEGIN, END = 62, 63
STEPS = {"max_new_tokens": 4, "min_new_tokens": 4, "suppress_tokens": [IMAGE_TOKEN]}


def with_images(model: Any, *rows: int) -> dict[str, torch.Tensor]:
    """Return left-padded prompts with the given numbers of images."""
    prompts = [
        [3 + row, 8, *[BEGIN, *[IMAGE_TOKEN] * TOKENS, END, 7] * count, 12, 13, 14]
        for row, count in enumerate(rows)
    ]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    generator = torch.Generator().manual_seed(2)
    return {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "token_type_ids": (ids == IMAGE_TOKEN).long(),
        **SPECIMENS[FAMILY].images(model, sum(rows), generator),
    }


def masked(
    model: Any,
    batch: dict[str, torch.Tensor],
    ids: torch.Tensor,
    kept: dict[int, torch.Tensor],
    both_ways: bool = True,
) -> torch.Tensor:
    """Return the unpatched model's logits with each layer's mask restricted to kept tokens."""
    new = ids.shape[1] - batch["input_ids"].shape[1]
    mask = torch.nn.functional.pad(batch["attention_mask"], (0, new), value=1)
    causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()

    def narrowed(keep: torch.Tensor) -> Callable[..., Any]:
        def hook(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            seen = kwargs["attention_mask"]
            assert seen.dtype == torch.bool
            keys = torch.nn.functional.pad(keep, (0, new), value=True)
            seen = seen & keys[:, None, None]
            if not both_ways:
                seen = seen & causal
            # The diagonal avoids fully masked rows; the rows of dropped tokens are not compared.
            return args, {**kwargs, "attention_mask": seen | torch.eye(len(causal)).bool()}

        return hook

    with ExitStack() as hooks:
        for number, layer in enumerate(model.model.language_model.layers):
            keep = kept[max(first for first in kept if first <= number)]
            hook = layer.register_forward_pre_hook(narrowed(keep), with_kwargs=True)
            hooks.callback(hook.remove)
        logits: torch.Tensor = model(
            input_ids=ids,
            attention_mask=mask,
            token_type_ids=torch.nn.functional.pad(batch["token_type_ids"], (0, new)),
            position_ids=(mask.cumsum(1) - 1).clamp_min(0),
            pixel_values=batch["pixel_values"],
            use_cache=False,
        ).logits
    return logits


@pytest.mark.parametrize("schedule", [INPUT, INSIDE], ids=["input", "inside"])
def test_what_is_kept_of_an_image_still_sees_itself_both_ways(schedule: Schedule) -> None:
    model = build(FAMILY)
    batch = with_images(model, 2, 0, 1)
    profile = Profile.for_model_type(FAMILY)
    for run in (oracle._prefill, oracle._generate):
        with apply_clasp(model, schedule=schedule, profile=profile) as handle:
            answer = run(model, handle, batch)
            record = handle.last
        assert record is not None
        assert record.images_per_prompt == (2, 0, 1)
        kept = oracle._kept(record, batch)
        assert kept[0].shape == batch["input_ids"].shape
        expected = masked(model, batch, answer.ids, kept)
        assert oracle._largest_difference(answer, expected) < 1e-4
        one_way = masked(model, batch, answer.ids, kept, both_ways=False)
        assert oracle._largest_difference(answer, one_way) > 1e-2


def test_prompts_without_token_types_are_causal_as_they_were() -> None:
    model = build(FAMILY)
    batch = with_images(model, 1)
    types = batch.pop("token_type_ids")
    with apply_clasp(model, schedule=INSIDE) as handle:
        logits = model(**batch).logits
        assert handle.last is not None
        [columns], kept = handle.last.columns, oracle._kept(handle.last, batch)
    batch["token_type_ids"] = types
    expected = masked(model, batch, batch["input_ids"], kept, both_ways=False)
    torch.testing.assert_close(logits[0], expected[0, columns], atol=1e-4, rtol=1e-4)


def test_salience_is_the_attention_that_pooled_patches_get() -> None:
    model, eager = build(FAMILY), tiny_gemma3(attn_implementation="eager")
    batch = with_images(model, 2)
    with apply_clasp(model) as handle:
        found = handle._runtime.adapter.encode(model, batch).salience()

    def reference(layer: int) -> torch.Tensor:
        tower = eager.model.vision_tower
        attentions = tower(batch["pixel_values"], output_attentions=True).attentions
        received = attentions[layer].mean(1).mean(1)
        scores = torch.zeros(2, TOKENS)
        for patch in range(36):
            scores[:, patch // 12 * 3 + patch % 6 // 2] += received[:, patch]
        return scores

    torch.testing.assert_close(found, reference(-1), atol=1e-6, rtol=1e-5)
    assert (found - reference(-2)).abs().max() > 1e-3


def test_a_token_is_the_mean_of_its_patches_and_features_are_the_models() -> None:
    model = build(FAMILY)
    batch = with_images(model, 2)
    tower = model.model.vision_tower
    outputs = tower(batch["pixel_values"], output_hidden_states=True)
    features = model.get_image_features(batch["pixel_values"], return_dict=True).pooler_output
    with apply_clasp(model) as handle:
        adapter = handle._runtime.adapter
        vision = adapter.encode(model, batch)
    assert torch.equal(vision.features, features)
    for layer, state in zip(vision.fused_layers, adapter.layers.states, strict=True):
        patches = outputs.hidden_states[state].unflatten(1, (3, 2, 3, 2))
        torch.testing.assert_close(layer, patches.mean((2, 4)).flatten(1, 2))


@pytest.mark.parametrize("schedule", [INPUT, INSIDE], ids=["input", "inside"])
def test_drafted_tokens_and_steps_without_a_cache_change_no_answer(schedule: Schedule) -> None:
    model = build(FAMILY)
    batch = with_images(model, 2)
    with apply_clasp(model, schedule=schedule):

        def answer(**settings: Any) -> list[int]:
            return model.generate(**batch, **STEPS, do_sample=False, **settings)[0].tolist()

        assert answer(prompt_lookup_num_tokens=2) == answer() == answer(use_cache=False)


@pytest.mark.parametrize("schedule", [INPUT, INSIDE], ids=["input", "inside"])
def test_a_later_turn_sees_what_was_kept(schedule: Schedule) -> None:
    model = build(FAMILY)
    batch = with_images(model, 2)
    steps = {**STEPS, "do_sample": False, "return_dict_in_generate": True}
    with apply_clasp(model, schedule=schedule) as handle:
        first = model.generate(**batch, **steps)
        assert handle.last is not None
        kept = oracle._kept(handle.last, batch)
        ids = torch.cat([first.sequences, torch.tensor([[21, 22, 23]])], 1)
        second = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            token_type_ids=(ids == IMAGE_TOKEN).long(),
            past_key_values=output_cache(first),
            output_logits=True,
            **steps,
        )
        with pytest.raises(ValueError, match="later turn of gemma3 cannot have images"):
            model(**batch, past_key_values=output_cache(second))
    expected = masked(model, batch, second.sequences, kept)[0, ids.shape[1] - 1 : -1]
    torch.testing.assert_close(torch.cat(list(second.logits)), expected, atol=1e-4, rtol=1e-4)


def test_a_budget_of_everything_changes_no_bit_and_nothing_stays_behind() -> None:
    model = build(FAMILY)
    batch = with_images(model, 2, 0, 1)
    before = model(**batch).logits
    with apply_clasp(model, budget=1.0, fuse_into="selection"):
        assert torch.equal(model(**batch).logits, before)
    with apply_clasp(model, budget=0.25):
        assert model(**batch).logits.shape[1] < before.shape[1]
    assert torch.equal(model(**batch).logits, before)


@pytest.mark.parametrize(
    ("change", "error", "problem"),
    [
        ({"pixel_values": torch.zeros(1, 3, 24, 32)}, ValueError, "images of 24 x 24 pixels"),
        ({"pixel_values": torch.zeros(0, 3, 24, 24)}, ValueError, "one or more images"),
        ({"pixel_values": torch.zeros(1, 1, 3, 24, 24)}, TypeError, r"tensor \[images, channels"),
        ({"pixel_values": torch.zeros(2, 3, 24, 24)}, ValueError, "holds 2 images"),
        ({"token_type_ids": torch.zeros(1, 3)}, ValueError, "token_type_ids must have"),
    ],
)
def test_a_call_that_does_not_fit_is_refused(
    change: dict[str, Any], error: type[Exception], problem: str
) -> None:
    model = build(FAMILY)
    batch = {**with_images(model, 1), **change}
    with apply_clasp(model), pytest.raises(error, match=problem):
        model(**batch)


def test_packed_samples_are_refused() -> None:
    model = build(FAMILY)
    batch = with_images(model, 1)
    del batch["attention_mask"]
    positions = torch.arange(batch["input_ids"].shape[1])[None]
    with apply_clasp(model):
        assert model(**batch, position_ids=positions).logits.shape[1] == 10
        positions[:, -3:] = torch.arange(3)
        with pytest.raises(ValueError, match="those of packed samples"):
            model(**batch, position_ids=positions)


def test_a_model_that_does_not_fit_is_refused() -> None:
    model = build(FAMILY)
    with pytest.raises(ValueError, match="pools patches"):
        apply_clasp(model, fuse_into="projector")
    with (
        apply_clasp(tiny_gemma3(window=8)) as handle,
        pytest.raises(ValueError, match="sliding window"),
    ):
        handle.model(**with_images(model, 1))
    model.config.image_token_id = 99
    with pytest.raises(ValueError, match="vocabulary of 64 tokens does not have"):
        apply_clasp(model)
