"""Images that are encoded and pruned without the decoder."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families.every_family import CATEGORIES, batch, build, last, patched
from tiny_llava import TOKENS_PER_IMAGE, images, prompts, tiny_llava, tiny_profile

from clasp_kernels.models import apply_clasp
from clasp_kernels.policy import Schedule


def decoder_inputs(model: Any, **inputs: Any) -> torch.Tensor:
    """Return the embeddings that the decoder gets, [rows, columns, text width]."""
    got = []
    hook = model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: got.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    model(**inputs)
    hook.remove()
    return got[0]


# LLaVA-NeXT has newlines between tokens, Idefics 3 text between tiles.
@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl", "idefics3"])
def test_encoded_images_are_what_the_decoder_gets(family: str) -> None:
    model, given = build(family), batch(family)
    with patched(model, "input") as handle:
        embeds = decoder_inputs(model, **given, **CATEGORIES)
        columns = last(handle).columns
        encoded = handle.encode(**given, **CATEGORIES)
        token_ids = handle.adapter.token_ids
    words = given["input_ids"].take_along_dim(columns.clamp_min(0), 1).masked_fill(columns < 0, -1)
    is_visual = torch.isin(words, torch.tensor(token_ids))
    assert torch.equal(torch.cat([image.features for image in encoded]), embeds[is_visual])
    record = last(handle)
    [stage] = record.stages
    for number, image in enumerate(encoded):
        count = stage.counts[number]
        assert torch.equal(image.indices, stage.indices[number, :count])
        assert image.is_pivot is not None
        assert torch.equal(image.is_pivot, stage.is_pivot[number, :count])
        assert image.category == record.categories[image.prompt]
    by_prompt = [image.prompt for image in encoded]
    assert [by_prompt.count(row) for row in range(3)] == list(record.images_per_prompt)
    assert max(image.tokens_before for image in encoded) == stage.tokens_before


def test_categories_keep_different_numbers_of_tokens() -> None:
    given = {**prompts([5, "image", 6], [5, "image", 7]), "pixel_values": images(2)}
    with apply_clasp(tiny_llava(), budget=12, profile=tiny_profile()) as handle:
        encoded = handle.encode(categories=["ocr", "spatial"], **given)
    assert [len(image.features) for image in encoded] == [12, 6]
    assert [image.tokens_before for image in encoded] == [TOKENS_PER_IMAGE] * 2


def test_the_decoder_does_not_run_and_nothing_is_recorded() -> None:
    model = tiny_llava()
    for layer in model.get_decoder().layers:
        layer.forward = None
    given = {**prompts([5, "image", 6]), "pixel_values": images(1)}
    with apply_clasp(model, budget=12, profile=tiny_profile()) as handle:
        [image] = handle.encode("ocr", **given)
        assert handle.last is None
    assert image.features.shape[0] == 12 and not image.features.requires_grad


def test_what_needs_the_decoder_is_refused() -> None:
    given = {**prompts([5, "image", 6]), "pixel_values": images(1)}
    inside = Schedule({0: 0.75, 2: 0.5})
    with (
        apply_clasp(tiny_llava(), schedule=inside, profile=tiny_profile()) as handle,
        pytest.raises(ValueError, match="drops or adds visual tokens inside it"),
    ):
        handle.encode("ocr", **given)
    with (
        apply_clasp(build("qwen3_vl"), budget=0.25) as handle,
        pytest.raises(ValueError, match="without DeepStack"),
    ):
        handle.encode("ocr", **batch("qwen3_vl"))


def test_images_must_be_those_of_the_prompts() -> None:
    with apply_clasp(tiny_llava(), budget=12, profile=tiny_profile()) as handle:
        with pytest.raises(ValueError, match="inputs must hold pixel_values"):
            handle.encode("ocr", **prompts([5, "image", 6]))
        with pytest.raises(ValueError, match="pixel_values holds 2 images"):
            handle.encode("ocr", **prompts([5, "image", 6]), pixel_values=images(2))
