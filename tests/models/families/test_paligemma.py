"""PaliGemma, pruned: a prompt sees itself as a whole, and what follows it sees what is before."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
import torch
from packed_prompts import build
from transformers import Gemma2Config, StaticCache

from clasp_kernels.models import PrefillRecord, apply_clasp, oracle
from clasp_kernels.models.specimens import IMAGE_TOKEN, SPECIMENS, tiny_paligemma
from clasp_kernels.policy import Profile, Schedule

pytestmark = pytest.mark.filterwarnings("ignore:the router cannot read the prompts")

FAMILY = "paligemma"
INPUT = Schedule.input(0.25)
INSIDE = Schedule({0: 0.75, 1: 0.5, 2: 0.25, 3: 0.125})
every_schedule = pytest.mark.parametrize("schedule", [INPUT, INSIDE], ids=["input", "inside"])
every_attention = pytest.mark.parametrize("attention", ["sdpa", "eager"])
TOKENS = 36  # of an image
STEPS = {"max_new_tokens": 4, "min_new_tokens": 4, "suppress_tokens": [IMAGE_TOKEN]}
Batch = dict[str, torch.Tensor]


def with_images(model: Any, *rows: int, suffix: int = 0) -> Batch:
    """Prompts padded on the left, each with so many images, and an answer after each."""
    placeholder = model.config.image_token_id
    prompts = [
        [*[placeholder] * TOKENS * count, 1, 3 + row, 8, 12, 13, *range(20, 20 + suffix)]
        for row, count in enumerate(rows)
    ]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    types = torch.zeros_like(ids)
    types[:, width - suffix :] = 1
    return {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "token_type_ids": types,
        **SPECIMENS[FAMILY].images(model, sum(rows), torch.Generator().manual_seed(2)),
    }


def masked(
    model: Any,
    batch: Batch,
    ids: torch.Tensor,
    kept: dict[int, torch.Tensor],
    both_ways: bool = True,
) -> torch.Tensor:
    """The unpatched model's logits where each layer is given a mask that is made by hand here.

    A column sees what is before it and, if both are of the prefix, what is after it; of what a
    layer is to see, just what was kept.
    """
    rows, columns = ids.shape
    new = columns - batch["input_ids"].shape[1]
    is_prefix = torch.nn.functional.pad(batch["token_type_ids"] == 0, (0, new), value=False)
    counts = torch.nn.functional.pad(batch["attention_mask"], (0, new), value=1)
    seen = torch.ones(columns, columns, dtype=torch.bool).tril().expand(rows, -1, -1)
    if both_ways:
        seen = seen | (is_prefix[:, :, None] & is_prefix[:, None])

    def hand_in(keep: torch.Tensor) -> Callable[..., Any]:
        keys = torch.nn.functional.pad(keep, (0, new), value=True) & (counts > 0)
        mask = (seen & keys[:, None]) | torch.eye(columns, dtype=torch.bool)
        added = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)

        def hook(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            return args, {**kwargs, "attention_mask": added[:, None]}

        return hook

    with ExitStack() as hooks:
        for number, layer in enumerate(model.model.language_model.layers):
            keep = kept[max(first for first in kept if first <= number)]
            hook = layer.register_forward_pre_hook(hand_in(keep), with_kwargs=True)
            hooks.callback(hook.remove)
        logits: torch.Tensor = model(
            input_ids=ids,
            position_ids=counts.cumsum(1).clamp_min(1),
            pixel_values=batch["pixel_values"],
            use_cache=False,
        ).logits
    return logits


def record_of(handle: Any) -> PrefillRecord:
    assert handle.last is not None
    return handle.last


def assert_is_masking(
    model: Any, batch: Batch, schedule: Schedule, run: Callable[..., Any]
) -> PrefillRecord:
    with apply_clasp(model, schedule=schedule, profile=Profile.for_model_type(FAMILY)) as handle:
        answer = run(model, handle, batch)
        record = record_of(handle)
    kept = oracle._kept(record, batch)
    expected = masked(model, batch, answer.ids, kept)
    assert oracle._largest_difference(answer, expected) < 1e-4
    one_way = masked(model, batch, answer.ids, kept, both_ways=False)
    assert oracle._largest_difference(answer, one_way) > 1e-2
    return record


@every_attention
@every_schedule
def test_what_is_kept_of_a_prompt_still_sees_itself_as_a_whole(
    schedule: Schedule, attention: str
) -> None:
    model = tiny_paligemma(attn_implementation=attention)
    batch = with_images(model, 2, 0, 1)
    for run in (oracle._prefill, oracle._generate):
        record = assert_is_masking(model, batch, schedule, run)
        assert record.images_per_prompt == (2, 0, 1)


@every_schedule
def test_an_answer_to_be_learned_sees_what_is_before_it(schedule: Schedule) -> None:
    model = build(FAMILY)
    batch = with_images(model, 1, 2, suffix=4)
    assert_is_masking(model, batch, schedule, oracle._prefill)
    labels = batch["input_ids"].masked_fill(batch["token_type_ids"] == 0, -100)
    with apply_clasp(model, schedule=schedule) as handle:
        loss = model(**batch, labels=labels, categories="general").loss
        kept = oracle._kept(record_of(handle), batch)
    logits = masked(model, batch, batch["input_ids"], kept)
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    )
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)


@every_schedule
def test_drafted_tokens_and_steps_without_a_cache_change_no_answer(schedule: Schedule) -> None:
    """They are no part of the prefix, whatever kind a release tells of them."""
    model = build(FAMILY)
    batch = with_images(model, 2)
    with apply_clasp(model, schedule=schedule):

        def answer(**settings: Any) -> list[int]:
            return model.generate(**batch, **STEPS, do_sample=False, **settings)[0].tolist()

        assert answer(prompt_lookup_num_tokens=2) == answer() == answer(use_cache=False)


@pytest.mark.parametrize("alone", [True, False], ids=["nothing else given", "masks given"])
def test_positions_count_from_one(alone: bool) -> None:
    model = build(FAMILY)
    batch = with_images(model, 1)
    if alone:
        del batch["attention_mask"]
    seen: list[torch.Tensor] = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
    )
    with apply_clasp(model) as handle:
        out = model(**batch, use_cache=True)
        [columns] = record_of(handle).columns
        model(input_ids=torch.tensor([[21, 22]]), past_key_values=oracle.output_cache(out))
    hook.remove()
    prompt = batch["input_ids"].shape[1]
    assert torch.equal(seen[0], columns[None] + 1)
    assert seen[1].tolist() == [[prompt + 1, prompt + 2]]


def test_salience_is_the_attention_that_a_patch_gets() -> None:
    model, eager = build(FAMILY), tiny_paligemma(attn_implementation="eager")
    batch = with_images(model, 2)
    with apply_clasp(model) as handle:
        found = handle._runtime.adapter.encode(model, batch).salience()
    attentions = eager.model.vision_tower(batch["pixel_values"], output_attentions=True).attentions
    torch.testing.assert_close(found, attentions[-1].mean((1, 2)), atol=1e-6, rtol=1e-5)
    assert (found - attentions[-2].mean((1, 2))).abs().max() > 1e-3


def test_features_are_the_models() -> None:
    model = build(FAMILY)
    batch = with_images(model, 2)
    outputs = model.model.vision_tower(batch["pixel_values"], output_hidden_states=True)
    features = model.get_image_features(batch["pixel_values"], return_dict=True).pooler_output
    with apply_clasp(model) as handle:
        adapter = handle._runtime.adapter
        vision = adapter.encode(model, batch)
    assert torch.equal(adapter.project(model, vision.features), features)
    for layer, state in zip(vision.fused_layers, adapter.layers.states, strict=True):
        assert torch.equal(layer, outputs.hidden_states[state])


@every_attention
def test_a_budget_of_everything_changes_no_bit_and_nothing_stays_behind(attention: str) -> None:
    model = tiny_paligemma(attn_implementation=attention)
    batch = with_images(model, 2, 0, 1)
    bare = {name: value for name, value in with_images(model, 1).items() if name[0] != "a"}
    before, alone = model(**batch).logits, model(**bare).logits
    with apply_clasp(model, budget=1.0, fuse_into="selection"):
        assert torch.equal(model(**batch).logits, before)
        assert torch.equal(model(**bare).logits, alone)
    with apply_clasp(model, budget=0.25):
        assert model(**batch).logits.shape[1] < before.shape[1]
    assert torch.equal(model(**batch).logits, before)


@every_schedule
def test_placeholders_may_be_none_of_the_vocabulary(schedule: Schedule) -> None:
    model = tiny_paligemma(image_token_index=70)
    batch = with_images(model, 1, 0)
    assert_is_masking(model, batch, schedule, oracle._prefill)
    embeds = model.get_input_embeddings()(batch.pop("input_ids").clamp_max(63))
    with apply_clasp(model), pytest.raises(ValueError, match="inputs_embeds cannot say where"):
        model(**batch, inputs_embeds=embeds)


def paligemma2(window: int = 512) -> Any:
    """Every other layer of the language model has a sliding window. Not all releases have SDPA for
    it, which leaves out that it caps its attention logits."""
    text = partial(Gemma2Config, sliding_window=window, query_pre_attn_scalar=8)
    return tiny_paligemma(text_config=text, attn_implementation="eager")


def test_paligemma_2_is_pruned_before_its_decoder() -> None:
    model = paligemma2()
    batch = with_images(model, 2, 0, 1)
    before = model(**batch).logits
    for run in (oracle._prefill, oracle._generate):
        assert_is_masking(model, batch, INPUT, run)
    assert torch.equal(model(**batch).logits, before)
    with pytest.raises(ValueError, match="caps its attention logits cannot be pruned inside"):
        apply_clasp(model, schedule=INSIDE)


def test_prompts_longer_than_the_window_of_paligemma_2_are_refused() -> None:
    model = paligemma2(window=40)
    batch = with_images(model, 1)
    with apply_clasp(model), pytest.raises(ValueError, match="sliding window of 40 tokens"):
        model(**batch)


@pytest.mark.parametrize(
    ("change", "error", "problem"),
    [
        ({"pixel_values": torch.zeros(1, 3, 24, 32)}, ValueError, "images of 24 x 24 pixels"),
        ({"pixel_values": torch.zeros(1, 1, 3, 24, 24)}, TypeError, r"tensor \[images, channels"),
        ({"pixel_values": torch.zeros(2, 3, 24, 24)}, ValueError, "holds 2 images"),
        ({"token_type_ids": torch.zeros(1, 3)}, ValueError, "token_type_ids must have"),
        ({"token_type_ids": None}, ValueError, "token_type_ids must be given if images of pali"),
    ],
)
def test_a_call_that_does_not_fit_is_refused(
    change: dict[str, Any], error: type[Exception], problem: str
) -> None:
    model = build(FAMILY)
    batch = {**with_images(model, 1), **change}
    with apply_clasp(model), pytest.raises(error, match=problem):
        model(**batch)


def test_a_prompt_without_token_types_is_refused_before_anything_runs() -> None:
    model = build(FAMILY)
    batch = with_images(model, 1)
    del batch["token_type_ids"]
    with apply_clasp(model), pytest.raises(ValueError, match="token_type_ids must be given"):
        model.generate(**batch, **STEPS)


def test_a_cache_that_was_used_before_is_refused() -> None:
    model = build(FAMILY)
    batch = with_images(model, 1)
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=64)
    with apply_clasp(model):
        model(input_ids=torch.tensor([[5, 6, 7]]), past_key_values=cache)
        cache.reset()
        with pytest.raises(ValueError, match="past_key_values must be a new cache"):
            model(**batch, past_key_values=cache)


def test_a_later_turn_with_images_and_packed_samples_are_refused() -> None:
    model = build(FAMILY)
    batch = with_images(model, 1)
    with apply_clasp(model):
        out = model(**batch, use_cache=True)
        with pytest.raises(ValueError, match="later turn of paligemma cannot have images"):
            model(**batch, past_key_values=oracle.output_cache(out))
        del batch["attention_mask"]
        positions = torch.arange(1, batch["input_ids"].shape[1] + 1)[None]
        assert model(**batch, position_ids=positions).logits.shape[1] == 9 + 5
        positions[:, -3:] = torch.arange(3)
        with pytest.raises(ValueError, match="those of packed samples"):
            model(**batch, position_ids=positions)


def test_settings_that_do_not_fit_are_refused() -> None:
    model = build(FAMILY)
    with pytest.raises(ValueError, match="model normalises what it projects"):
        apply_clasp(model, fuse_into="projector")
    with pytest.raises(ValueError, match="salience_rows must be 'last' for 'paligemma' models"):
        apply_clasp(model, schedule=INSIDE, salience_rows="instruction")
    with apply_clasp(model), pytest.raises(ValueError, match="image_token_id is 59, but was 60"):
        model.config.image_token_id = 59
        model(**with_images(model, 1))
