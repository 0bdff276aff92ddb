"""Arguments with an entry per column are pruned with the prompt, or refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_llava import IMAGE_TOKEN, images, prompts, tiny_llava, tiny_profile
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration

from clasp_kernels.models import ClaspHandle, apply_clasp

ROWS = ([1, 5, "image", 6, 7, 9], [1, "image", 3])


def labelled(side: str, rows: Any = ROWS) -> dict[str, torch.Tensor]:
    batch = prompts(*rows, padding_side=side)
    ignored = (batch["input_ids"] == IMAGE_TOKEN) | (batch["attention_mask"] == 0)
    labels = batch["input_ids"].masked_fill(ignored, -100)
    return {**batch, "pixel_values": images(len(rows)), "labels": labels}


def shifted(labels: torch.Tensor) -> torch.Tensor:
    return F.pad(labels, (0, 1), value=-100)[:, 1:]


@pytest.mark.parametrize("side", ["left", "right"])
def test_loss_with_every_token_kept(model: LlavaForConditionalGeneration, side: str) -> None:
    """The label of a padded row's first token counts exactly if it counts in the unpatched model.

    The padding before it predicts it, so the padding must be the prompt's own.
    """
    call = labelled(side)
    call["input_ids"] = call["input_ids"].masked_fill(call["attention_mask"] == 0, 33)
    expected = model(**call)
    with apply_clasp(model, budget=36, profile=tiny_profile(), fuse_into="selection"):
        kept = model(**call, categories="ocr")
    torch.testing.assert_close(kept.loss, expected.loss, atol=1e-6, rtol=0)
    torch.testing.assert_close(kept.logits, expected.logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_of_our_own_predicts_nothing(
    model: LlavaForConditionalGeneration, side: str
) -> None:
    """Of two rows of the same length, the one that keeps fewer tokens gets added padding."""
    rows = ([1, "image", 6, 7], [1, "image", 3, 4])
    call = labelled(side, rows)
    with apply_clasp(model, budget=8, profile=tiny_profile()):
        logits = model(**call, categories=["ocr", "spatial"]).logits
        loss = model(**call, categories=["ocr", "spatial"]).loss
    assert logits.shape[1] == 11
    # (row, column, label): the last kept image token predicts the first word, that the second.
    asked = [(0, 8, 6), (0, 9, 7), (1, 8, 3), (1, 9, 4)]
    expected = torch.stack([F.cross_entropy(logits[r, c], torch.tensor(t)) for r, c, t in asked])
    torch.testing.assert_close(loss, expected.mean())


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("categories", ["ocr", ["spatial", "ocr"]])
def test_labels_that_are_shifted_already(
    model: LlavaForConditionalGeneration, side: str, categories: Any
) -> None:
    call = labelled(side)
    with apply_clasp(model, budget=10, profile=tiny_profile()):
        loss = model(**call, categories=categories).loss
        after = model(**call, shift_labels=shifted(call["labels"]), categories=categories).loss
    torch.testing.assert_close(after, loss)
    assert loss > 0


def test_a_last_label_that_is_the_next_processs_first(model: LlavaForConditionalGeneration) -> None:
    call = labelled("left", ROWS[:1])
    shift = shifted(call["labels"])
    with apply_clasp(model, budget=10, profile=tiny_profile()):
        logits = model(**call, categories="ocr").logits
        without = model(**call, shift_labels=shift, categories="ocr").loss
        shift[0, -1] = 11
        with_it = model(**call, shift_labels=shift, categories="ocr").loss
    counted = int((shift != -100).sum())
    expected = (
        without * (counted - 1) + F.cross_entropy(logits[0, -1], torch.tensor(11))
    ) / counted
    torch.testing.assert_close(with_it, expected)


@pytest.fixture
def handle(model: LlavaForConditionalGeneration) -> ClaspHandle:
    return apply_clasp(model, budget=10, profile=tiny_profile())


@pytest.mark.parametrize(
    "value",
    [
        torch.ones(2, 41),
        torch.ones(41),
        torch.ones(82, 1),
        torch.ones(2, 1, 41, 41),
        np.ones((2, 41)),
        [[1] * 41] * 2,
        [[1, 2]] * 41,
        [1.0] * 41,
        {"inner": [torch.ones(2, 41)]},
    ],
)
def test_an_unknown_argument_by_column_is_refused(handle: ClaspHandle, value: Any) -> None:
    call = {**labelled("left"), "categories": "ocr"}
    with pytest.raises(ValueError, match=r"loss_mask has shape .* each of the prompt's 41 col"):
        handle.model(**call, loss_mask=value)


@pytest.mark.parametrize("value", [torch.tensor(7), 7, 0.5, torch.ones(3), [1, 2], "mean", None])
def test_other_arguments_go_on(handle: ClaspHandle, value: Any) -> None:
    seen = {}
    hook = handle.model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    handle.model(**labelled("left"), categories="ocr", something_else=value)
    hook.remove()
    assert seen["something_else"] is value


def test_token_types_follow(handle: ClaspHandle) -> None:
    seen = {}
    handle.model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    call = labelled("left")
    types = (call["input_ids"] == IMAGE_TOKEN).long()
    handle.model(**call, categories=["ocr", "spatial"], mm_token_type_ids=types)
    record = handle.last
    assert record is not None
    columns = record.columns
    expected = types.gather(1, columns.clamp_min(0)).masked_fill(columns < 0, 0)
    assert torch.equal(seen["mm_token_type_ids"], expected)


@pytest.mark.parametrize("name", ["labels", "shift_labels", "token_type_ids"])
def test_the_wrong_number_of_columns(handle: ClaspHandle, name: str) -> None:
    call = {**labelled("left"), "categories": "ocr", name: torch.ones(2, 40, dtype=torch.int64)}
    with pytest.raises(ValueError, match=rf"{name} must have the prompt's shape \[2, 41\], got "):
        handle.model(**call)


@pytest.mark.parametrize("shape", [(2, 40), (3, 41), (41,), (3, 2, 41)])
def test_positions_of_another_shape(handle: ClaspHandle, shape: tuple[int, ...]) -> None:
    positions = torch.zeros(shape, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"position_ids must be \[2, 41\] or \[1, 41\], got "):
        handle.model(**labelled("left"), categories="ocr", position_ids=positions)


def test_labels_are_left_as_they_were(handle: ClaspHandle) -> None:
    call = labelled("left")
    call["shift_labels"] = shifted(call["labels"])
    before = {name: value.clone() for name, value in call.items()}
    handle.model(**call, categories="ocr")
    assert all(torch.equal(before[name], call[name]) for name in call)


def test_a_tiny_model_without_padding_tokens() -> None:
    """The longest row has no padding before its first token."""
    model = tiny_llava()
    call = labelled("left", ROWS[:1])
    loss = model(**call).loss
    with apply_clasp(model, budget=36, profile=tiny_profile(), fuse_into="selection"):
        torch.testing.assert_close(model(**call, categories="ocr").loss, loss)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_last_columns_stay_the_last(model: LlavaForConditionalGeneration, side: str) -> None:
    """Padding that all rows share on the right stays, because ``logits_to_keep`` counts it."""
    batch = {**prompts(*ROWS, padding_side=side), "pixel_values": images(2)}
    batch["input_ids"] = torch.nn.functional.pad(batch["input_ids"], (0, 2))
    batch["attention_mask"] = torch.nn.functional.pad(batch["attention_mask"], (0, 2))
    tail = (
        batch["input_ids"].shape[1]
        - int((batch["input_ids"] == IMAGE_TOKEN).nonzero()[:, 1].max())
        - 1
    )
    unpruned = model(**batch).logits
    with apply_clasp(model, budget=36, profile=tiny_profile(), fuse_into="selection"):
        kept = model(**batch, categories="ocr", logits_to_keep=20).logits
        torch.testing.assert_close(kept, unpruned[:, -20:], atol=1e-5, rtol=0)
    with apply_clasp(model, budget=8, profile=tiny_profile()) as handle:
        every = model(**batch, categories=["ocr", "spatial"]).logits
        assert handle.last is not None
        where = handle.last.columns
        last = model(**batch, categories=["ocr", "spatial"], logits_to_keep=tail).logits
        columns = handle.last.columns[:, -tail:]
        for row, at in (columns >= 0).nonzero().tolist():
            [found] = (where[row] == columns[row, at]).nonzero().flatten().tolist()
            torch.testing.assert_close(last[row, at], every[row, found], atol=1e-5, rtol=0)
        shown = torch.arange(batch["input_ids"].shape[1])[-tail:].expand(2, -1)
        real = batch["attention_mask"][:, -tail:] == 1
        assert torch.equal(columns[real], shown[real])
        with pytest.raises(
            ValueError, match=rf"logits_to_keep is {tail + 1}, but .* before the last {tail} "
        ):
            model(**batch, categories="ocr", logits_to_keep=tail + 1)
