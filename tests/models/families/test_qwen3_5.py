"""Qwen3.5, pruned before its hybrid decoder, and the Qwen families with experts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from packed_prompts import build, differences, reference_salience, with_video

from clasp_kernels.models import apply_clasp, masking
from clasp_kernels.models.specimens import IMAGE_TOKEN, VIDEO_TOKEN
from clasp_kernels.policy import Schedule

pytestmark = pytest.mark.filterwarnings("ignore:the router cannot read the prompts")

HYBRID = ("qwen3_5", "qwen3_5_moe")
FAMILIES = (*HYBRID, "qwen3_vl_moe")
INPUT = Schedule.input(0.25)
STEPS = {
    "max_new_tokens": 4,
    "min_new_tokens": 4,
    "suppress_tokens": [IMAGE_TOKEN, VIDEO_TOKEN],
    "do_sample": False,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_and_a_video_beside_a_row_of_text(family: str) -> None:
    batch = with_video(build(family), (1, 1))
    prefill, generation, record = differences(family, batch, INPUT)
    assert prefill < 1e-4
    assert generation < 1e-4
    assert record.images_per_prompt == (2, 0)
    assert record.stages[0].counts == (2, 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_salience_is_the_attention_that_patches_get_in_their_frame(family: str) -> None:
    model = build(family)
    batch = with_video(model, (1, 1))
    with apply_clasp(model) as handle:
        scores = handle._runtime.adapter.encode(model, batch).salience()
    found = torch.cat([scores[0, :8], scores[1, :16]])
    torch.testing.assert_close(found, reference_salience(model, batch, -1), atol=1e-6, rtol=1e-5)
    assert (found - reference_salience(model, batch, -2)).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_beams_and_steps_without_a_cache_see_the_same_prompt(family: str) -> None:
    model = build(family)
    batch = with_video(model, (1, 1))
    with apply_clasp(model, budget=0.5) as handle:

        def answer(**others: Any) -> tuple[list[list[int]], tuple[int, ...]]:
            ids = model.generate(**batch, **STEPS, **others)
            assert handle.last is not None
            return ids.tolist(), handle.last.stages[0].counts

        greedy, counts = answer()
        assert counts == (4, 8)
        assert answer(use_cache=False) == (greedy, counts)
        _, beams = answer(num_beams=3)
        assert beams == counts


@pytest.mark.parametrize("family", FAMILIES)
def test_a_later_turn_goes_on_from_the_pruned_cache(family: str) -> None:
    """A later turn gives the same logits as one prompt with both turns."""
    model = build(family)
    batch = {name: value for name, value in with_video(model, (1, 1)).items()}
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        batch[name] = batch[name][:1]
    turn = torch.tensor([[21, 22, 23, 24]])
    kinds = torch.zeros_like(turn)
    with apply_clasp(model, budget=0.5):
        first = model.generate(**batch, **STEPS, return_dict_in_generate=True)
        ids = torch.cat([first.sequences, turn], 1)
        more = ids.shape[1] - batch["input_ids"].shape[1]
        whole = {
            **batch,
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": torch.cat(
                [batch["mm_token_type_ids"], kinds.new_zeros(1, more)], 1
            ),
        }
        again = model.generate(**whole, **STEPS, output_logits=True, return_dict_in_generate=True)
        known = {name: whole[name] for name in ("input_ids", "attention_mask")}
        second = model.generate(
            **known,
            past_key_values=first.past_key_values,
            **STEPS,
            output_logits=True,
            return_dict_in_generate=True,
        )
    for found, expected in zip(second.logits, again.logits, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_budget_of_everything_changes_no_bit_and_nothing_stays_behind(family: str) -> None:
    model = build(family)
    batch = with_video(model, (1, 1))
    before = model(**batch).logits
    with apply_clasp(model, budget=1.0, fuse_into="selection"):
        assert torch.equal(model(**batch).logits, before)
    with apply_clasp(model, budget=0.25):
        assert model(**batch).logits.shape[1] < before.shape[1]
    assert torch.equal(model(**batch).logits, before)


@pytest.mark.parametrize("family", HYBRID)
def test_stages_between_recurrent_layers_are_refused(family: str) -> None:
    with pytest.raises(ValueError, match="layers of linear_attention cannot be pruned inside"):
        apply_clasp(build(family), schedule=Schedule({2: 0.5}))


def test_the_balance_of_experts_is_not_counted_over_layers_that_differ() -> None:
    model = build("qwen3_vl_moe")
    batch = with_video(model, (1, 1))
    with (
        apply_clasp(model, schedule=Schedule({2: 0.5})),
        pytest.raises(ValueError, match="output_router_logits must be False"),
    ):
        model(**batch, output_router_logits=True)


@pytest.mark.parametrize("family", ["qwen3_vl_moe", "qwen3_5_moe"])
def test_the_balance_of_experts_is_part_of_the_loss(family: str) -> None:
    model = build(family)
    batch = with_video(model, (1, 1))
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    given = {**batch, "labels": labels, "output_router_logits": True}
    expected = model(**given)
    with apply_clasp(model, budget=1.0):
        found = model(**given)
    assert torch.equal(found.loss, expected.loss)
    assert torch.equal(found.aux_loss, expected.aux_loss)
    with apply_clasp(model, budget=0.5):
        both = model(**given)
        alone = model(**{**given, "output_router_logits": False})
    share = model.config.text_config.router_aux_loss_coef * both.aux_loss
    torch.testing.assert_close(both.loss, alone.loss + share)
    assert not torch.equal(both.aux_loss, expected.aux_loss)


@pytest.mark.parametrize("family", HYBRID)
def test_packed_samples_are_refused(family: str) -> None:
    model = build(family)
    batch = with_video(model, (1, 1))
    ids = batch["input_ids"][:1]
    visuals = {name: value for name, value in batch.items() if "mask" not in name}
    positions = torch.arange(ids.shape[1]).expand(4, 1, -1).clone()
    positions[0, :, -4:] = torch.arange(4)
    given = {**visuals, "input_ids": ids, "mm_token_type_ids": batch["mm_token_type_ids"][:1]}
    with apply_clasp(model), pytest.raises(ValueError, match="give each sample its own row"):
        model(**given, position_ids=positions, use_cache=False)


@pytest.mark.parametrize("family", HYBRID)
def test_recurrent_layers_are_not_told_lengths_for_flash_attention(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recurrent layers would take the lengths for packed samples, and attention layers the gaps in
    the position ids."""
    model = build(family)
    batch = with_video(model, (1, 1))
    one = {
        name: value[:1] if len(value) == 2 and value.ndim == 2 and "grid" not in name else value
        for name, value in batch.items()
    }
    seen: list[dict[str, Any]] = []
    hook = model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True
    )
    text = torch.arange(one["input_ids"].shape[1])[None, None]
    with apply_clasp(model, budget=0.5):
        expected = model(**one).logits
        monkeypatch.setattr(masking, "uses_flash_attention", lambda config: True)
        found = model(**one).logits
        spatial = seen[0]["position_ids"]
        model.model.rope_deltas = None
        all_positions = model.model.get_rope_index(
            one["input_ids"],
            **{name: one[name] for name in ("image_grid_thw", "video_grid_thw")},
            mm_token_type_ids=one["mm_token_type_ids"],
        )[0]
        model(**one, position_ids=torch.cat([text, all_positions]))
    hook.remove()
    assert torch.equal(found, expected)
    for kwargs in seen:
        assert "cu_seq_lens_q" not in kwargs
        assert torch.equal(kwargs["position_ids"], spatial)
