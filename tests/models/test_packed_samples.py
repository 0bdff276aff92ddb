"""Several samples packed into one row, separated by position ids that restart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_flash_attention import flash as flash  # a fixture
from tiny_llava import TOKENS_PER_IMAGE, images, prompts, tiny_llava, tiny_profile

from clasp_kernels.models import apply_clasp

SAMPLES = ([1, "image", 5, 6, 7], [1, 4, "image", 8, 9], [1, 3, 2])
LENGTHS = [len(row) + ("image" in row) * (TOKENS_PER_IMAGE - 1) for row in SAMPLES]


def packed() -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.cat([prompts(list(row))["input_ids"] for row in SAMPLES], 1),
        "position_ids": torch.cat([torch.arange(length) for length in LENGTHS])[None],
        "pixel_values": images(2),
    }


def with_attention(attention: str) -> Any:
    model = tiny_llava()
    model.model.language_model.config._attn_implementation = attention
    return model


@pytest.mark.usefixtures("flash")
@pytest.mark.parametrize("attention", ["sdpa", "eager", "flash_attention_2"])
def test_every_token_kept_is_what_the_unpatched_model_gives(attention: str) -> None:
    model = with_attention(attention)
    logits = model(**packed(), use_cache=False).logits
    joined = model(**{**packed(), "position_ids": None}, use_cache=False).logits
    assert (logits - joined).abs().max() > 0.1  # the unpatched model does separate the samples
    with apply_clasp(model, budget=36, profile=tiny_profile(), fuse_into="selection"):
        kept = model(**packed(), use_cache=False, categories="ocr").logits
    torch.testing.assert_close(kept, logits, atol=1e-5, rtol=0)


@pytest.mark.usefixtures("flash")
@pytest.mark.parametrize("attention", ["sdpa", "eager", "flash_attention_2"])
def test_each_sample_is_pruned_as_if_it_stood_alone(attention: str) -> None:
    model = with_attention(attention)
    with apply_clasp(model, budget=8, profile=tiny_profile()):
        together = model(**packed(), use_cache=False, categories="ocr").logits[0]
        start = 0
        for number, row in enumerate(SAMPLES):
            sample = prompts(list(row))
            if "image" in row:
                sample["pixel_values"] = images(2)[number : number + 1]
            alone = model(**sample, use_cache=False, categories="ocr").logits[0]
            stop = start + len(alone)
            torch.testing.assert_close(together[start:stop], alone, atol=1e-5, rtol=0)
            start = stop
    assert start == len(together)


@pytest.mark.usefixtures("flash")
@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_calls_that_say_it_another_way(attention: str) -> None:
    """Rows may share position ids, have padding, or have position ids that do not start at 0."""
    model = with_attention(attention)
    twice = {name: torch.cat([value] * 2) for name, value in packed().items()}
    padded = torch.ones_like(packed()["input_ids"])
    padded[:, 0] = 0
    calls = [
        {**twice, "position_ids": packed()["position_ids"]},
        {**packed(), "attention_mask": padded},
    ]
    if attention == "sdpa":  # FlashAttention's wrapper detects samples by position 0
        calls.append({**packed(), "position_ids": packed()["position_ids"] + 3})
    expected = [model(**call, use_cache=False).logits for call in calls]
    with apply_clasp(model, budget=36, profile=tiny_profile(), fuse_into="selection"):
        for call, logits in zip(calls, expected, strict=True):
            kept = model(**call, use_cache=False, categories="ocr").logits
            # Padding at the start of every row is removed.
            torch.testing.assert_close(kept, logits[:, -kept.shape[1] :], atol=1e-4, rtol=0)


@pytest.mark.parametrize("rows", [1, 2])
def test_rows_that_lose_different_numbers_of_tokens(rows: int) -> None:
    """The second row is one sample with a category that keeps fewer tokens."""
    model = tiny_llava()
    one = prompts([1, "image", *[5] * (sum(LENGTHS) - TOKENS_PER_IMAGE - 1)])["input_ids"]
    both = {
        "input_ids": torch.cat([packed()["input_ids"], one])[:rows],
        "position_ids": torch.cat([packed()["position_ids"], torch.arange(sum(LENGTHS))[None]])[
            :rows
        ],
        "pixel_values": images(3)[: 1 + rows],
    }
    categories = ["ocr", "spatial"][:rows]
    with apply_clasp(model, budget=8, profile=tiny_profile()) as handle:
        logits = model(**both, use_cache=False, categories=categories).logits
        record = handle.last
        assert record is not None
        alone = model(**packed(), use_cache=False, categories="ocr").logits[0]
        torch.testing.assert_close(logits[0][record.columns[0] >= 0], alone, atol=1e-5, rtol=0)
        if rows == 2:
            single = {"input_ids": one, "pixel_values": images(3)[2:]}
            alone = model(**single, use_cache=False, categories="spatial").logits[0]
            kept = record.columns[1] >= 0
            torch.testing.assert_close(logits[1][kept], alone, atol=1e-5, rtol=0)


def test_where_the_unpatched_model_sees_one_sample() -> None:
    """With a cache or a mask, the unpatched model does not look for packed samples."""
    model = tiny_llava()
    ones = torch.ones(1, sum(LENGTHS), dtype=torch.int64)
    calls = [{**packed(), "use_cache": True}, {**packed(), "attention_mask": ones}]
    expected = [model(**call).logits for call in calls]
    with apply_clasp(model, budget=36, profile=tiny_profile(), fuse_into="selection"):
        for call, logits in zip(calls, expected, strict=True):
            kept = model(**call, categories="ocr").logits
            torch.testing.assert_close(kept, logits, atol=1e-5, rtol=0)


@pytest.mark.usefixtures("flash")
def test_lengths_that_the_caller_computed() -> None:
    """Collators that flatten a batch pass lengths; position ids need not restart then."""
    ends = torch.tensor([0, *LENGTHS]).cumsum(0).to(torch.int32)
    lengths = {
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": max(LENGTHS),
        "max_length_k": max(LENGTHS),
    }
    model = with_attention("flash_attention_2")
    with apply_clasp(model, budget=8, profile=tiny_profile()):
        expected = model(**packed(), use_cache=False, categories="ocr").logits
        given = model(**packed(), **lengths, use_cache=False, categories="ocr").logits
    assert torch.equal(given, expected)


def test_lengths_of_the_whole_prompt_do_not_go_on() -> None:
    seen: dict[str, Any] = {}
    model = tiny_llava()
    model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    ends = torch.tensor([0, *LENGTHS]).cumsum(0).to(torch.int32)
    with apply_clasp(model, budget=8, profile=tiny_profile()):
        model(**packed(), use_cache=False, categories="ocr", cu_seq_lens_q=ends, max_length_q=41)
    assert "attention_mask" in seen
    assert not [name for name in seen if name.startswith(("cu_seq", "max_length"))]


def test_gradient_checkpoints_leave_no_cache() -> None:
    model = tiny_llava().train()
    model.gradient_checkpointing_enable()
    with torch.enable_grad():
        logits = model(**packed()).logits
        with apply_clasp(model, budget=36, profile=tiny_profile(), fuse_into="selection"):
            kept = model(**packed(), categories="ocr").logits
    torch.testing.assert_close(kept, logits, atol=1e-5, rtol=0)


def test_what_cannot_be_packed_is_refused() -> None:
    model = tiny_llava()
    call = {**packed(), "use_cache": False, "categories": "ocr"}
    with (
        apply_clasp(model, budget=8, profile=tiny_profile(), positions="compact"),
        pytest.raises(ValueError, match=r"packed samples.* with positions='compact'"),
    ):
        model(**call)
    model.model.language_model.config._attn_implementation = "flex_attention"
    with (
        apply_clasp(model, budget=8, profile=tiny_profile()),
        pytest.raises(ValueError, match=r"packed into a row .* not with 'flex_attention'"),
    ):
        model(**call)
