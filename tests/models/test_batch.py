"""A row of a batch gives the same result as the row alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_llava import images, prompts, tiny_profile
from transformers import LlavaForConditionalGeneration

from clasp_kernels.models import apply_clasp

ROWS: list[list[int | str]] = [
    [1, 5, "image", 7, 8],
    [1, "image", 3, "image", 9, 4, 2],
    [1, 4, 6, 9],
    [2, "image", 3],
]
IMAGES = [1, 2, 0, 1]
CATEGORIES = ["ocr", "counting", "general", "spatial"]


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("fuse_into", ["projector", "selection"])
def test_rows_generate_what_they_generate_alone(
    model: LlavaForConditionalGeneration, merge: bool, fuse_into: str
) -> None:
    pixel_values = images(sum(IMAGES))
    settings: dict[str, Any] = {
        "max_new_tokens": 4,
        "output_logits": True,
        "return_dict_in_generate": True,
        "suppress_tokens": [60],
    }
    handle = apply_clasp(model, budget=6, profile=tiny_profile(), merge=merge, fuse_into=fuse_into)
    batch = model.generate(
        **prompts(*ROWS), pixel_values=pixel_values, categories=CATEGORIES, **settings
    )
    record = handle.last
    assert record is not None
    assert record.categories == tuple(CATEGORIES)
    assert record.images_per_prompt == tuple(IMAGES)
    assert record.stages[0].counts == (6, 6, 6, 3)
    assert record.pruned_length == 5 + 2 * 6 + 0  # the longest row without padding

    first = 0
    for row, (tokens, count) in enumerate(zip(ROWS, IMAGES, strict=True)):
        own = pixel_values[first : first + count]
        alone = model.generate(
            **prompts(tokens),
            **({"pixel_values": own} if count else {}),
            categories=CATEGORIES[row],
            **settings,
        )
        assert batch.sequences[row, -4:].tolist() == alone.sequences[0, -4:].tolist()
        for ours, theirs in zip(batch.logits, alone.logits, strict=True):
            torch.testing.assert_close(ours[row], theirs[0], atol=1e-4, rtol=0)
        if count:
            assert handle.last is not None
            kept = handle.last.stages[0]
            for image in range(count):
                number = kept.counts[image]
                expected = record.stages[0].indices[first + image, :number]
                assert torch.equal(kept.indices[image, :number], expected)
        first += count


def test_right_padding_in_a_plain_forward(model: LlavaForConditionalGeneration) -> None:
    """Rows stay padded on the right, and padding that no row needs any more is removed."""
    rows = [[1, 5, "image", 7, 8], [1, "image", 3]]
    batch = prompts(*rows, padding_side="right")
    with apply_clasp(model, budget=6, profile=tiny_profile()) as handle:
        logits = model(**batch, pixel_values=images(2), categories="ocr").logits
        assert logits.shape[1] == 10
        assert handle.last is not None
        assert handle.last.columns[1, -2:].tolist() == [-1, -1]
        for row, width in ((0, 10), (1, 8)):
            pixel_values = images(2)[row : row + 1]
            alone = model(**prompts(rows[row]), pixel_values=pixel_values, categories="ocr").logits
            torch.testing.assert_close(logits[row, :width], alone[0], atol=1e-5, rtol=0)


def test_beams_keep_their_prompts_images(model: LlavaForConditionalGeneration) -> None:
    """Several images per prompt are not mixed up when rows are repeated for beams."""
    rows: list[list[int | str]] = [[1, "image", 5, "image", 7], [1, "image", 3, "image", 2]]
    pixel_values = images(4)
    settings = {"num_beams": 3, "max_new_tokens": 4, "categories": "ocr"}
    with apply_clasp(model, budget=6, profile=tiny_profile()):
        batch = model.generate(**prompts(*rows), pixel_values=pixel_values, **settings)
        for row in range(2):
            own = pixel_values[2 * row : 2 * row + 2]
            alone = model.generate(**prompts(rows[row]), pixel_values=own, **settings)
            assert batch[row].tolist() == alone[0].tolist()


def test_each_image_is_encoded_once_for_all_beams(model: LlavaForConditionalGeneration) -> None:
    seen = []
    model.model.vision_tower.register_forward_hook(
        lambda module, args, output: seen.append(len(output.last_hidden_state))
    )
    with apply_clasp(model, budget=6, profile=tiny_profile()):
        model.generate(
            **prompts([1, "image", 5], [1, "image", 3]),
            pixel_values=images(2),
            categories="ocr",
            num_beams=4,
            max_new_tokens=2,
        )
    assert seen == [2]


@pytest.mark.parametrize("row", [["image", 7, 8], [1, 2, "image"]], ids=["first", "last"])
def test_an_image_masked_up_to_the_edge_of_its_prompt(
    model: LlavaForConditionalGeneration, row: list[int | str]
) -> None:
    """Masked placeholders at the edge of a prompt are not taken for padding."""
    batch = prompts(row)
    columns = batch["input_ids"].shape[1]
    first_token = row.index("image")
    masked = slice(0, 10) if first_token == 0 else slice(columns - 10, columns)
    batch["attention_mask"][0, masked] = 0
    with apply_clasp(model, budget=30, profile=tiny_profile()) as handle:
        logits = model(**batch, pixel_values=images(1), categories="ocr").logits
    record = handle.last
    assert record is not None
    kept = {first_token + token for token in record.stages[0].indices[0].tolist()}
    text = set(range(columns)) - set(range(first_token, first_token + 36))
    assert record.columns[0].tolist() == sorted(kept | text)
    assert logits.shape[1] == 32
