"""The cache holds the kept columns and their history, so any later call can continue from it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_llava import images, prompts, tiny_llava, tiny_profile
from transformers import DynamicCache, LlavaForConditionalGeneration, StaticCache

from clasp_kernels.models import ClaspHandle, apply_clasp
from clasp_kernels.models.compat import output_cache

WITH_SCORES = {"output_logits": True, "return_dict_in_generate": True, "suppress_tokens": [60]}


@pytest.fixture(params=["original", "compact"])
def handle(request: pytest.FixtureRequest, model: LlavaForConditionalGeneration) -> ClaspHandle:
    return apply_clasp(model, budget=8, profile=tiny_profile(), positions=request.param)


def one_prompt() -> dict[str, Any]:
    batch = prompts([1, 5, "image", 7, 8, 9])
    return {**batch, "pixel_values": images(1), "categories": "ocr"}


def padded_prompts() -> dict[str, Any]:
    """Return rows with one, two and no images, so that they lose different numbers of columns."""
    batch = prompts([1, "image", 7, 8], [1, "image", 5, "image", 9, 3], [1, 4, 4, 6])
    return {**batch, "pixel_values": images(3), "categories": ["ocr", "counting", "general"]}


def test_the_cache_is_smaller_by_what_was_dropped(handle: ClaspHandle) -> None:
    out = handle.model.generate(**one_prompt(), max_new_tokens=5, **WITH_SCORES)
    assert out.sequences.shape[1] == 41 + 5
    assert output_cache(out).get_seq_length() == 13 + 4  # the last token is never fed back
    assert output_cache(out).layers[0].keys.shape[-2] == 17
    record = handle.last
    assert record is not None
    assert (record.prompt_length, record.pruned_length) == (41, 13)


def test_reported_bytes_are_those_of_the_cache(handle: ClaspHandle) -> None:
    for inputs in (one_prompt(), padded_prompts()):
        cache = output_cache(handle.model(**inputs, use_cache=True))
        stored = sum(
            tensor.numel() * tensor.element_size()
            for layer in cache.layers
            for tensor in (layer.keys, layer.values)
        )
        record = handle.last
        assert record is not None
        assert record.kv_cache_bytes == stored
        assert record.kv_cache_bytes_unpruned * record.pruned_length == (
            stored * record.prompt_length
        )


@pytest.mark.parametrize("keyword", ["cache", "past_key_values"])
def test_a_static_cache_may_be_as_small_as_what_is_kept(handle: ClaspHandle, keyword: str) -> None:
    model = handle.model
    expected = model.generate(**one_prompt(), max_new_tokens=5)
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=13 + 5)
    ids = model.generate(**one_prompt(), max_new_tokens=5, **{keyword: cache})
    assert torch.equal(ids, expected)


@pytest.mark.parametrize("keyword", ["cache", "past_key_values"])
@pytest.mark.parametrize("make", [one_prompt, padded_prompts])
def test_decoding_by_hand_is_what_generate_does(
    handle: ClaspHandle, make: Any, keyword: str
) -> None:
    """The history is found under both names of the cache argument, in every transformers."""
    inputs = make()
    model, mask = handle.model, inputs["attention_mask"]
    generated = model.generate(**inputs, max_new_tokens=4, **WITH_SCORES)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    out = model(**inputs, position_ids=positions, use_cache=True)
    for step in range(4):
        torch.testing.assert_close(out.logits[:, -1], generated.logits[step], atol=1e-5, rtol=0)
        token = generated.sequences[:, inputs["input_ids"].shape[1] + step][:, None]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        positions = positions[:, -1:] + 1
        out = model(
            input_ids=token,
            attention_mask=mask,
            position_ids=positions,
            **{keyword: output_cache(out)},
        )


def test_mask_and_positions_may_be_left_out(handle: ClaspHandle) -> None:
    inputs = one_prompt()
    generated = handle.model.generate(**inputs, max_new_tokens=3, **WITH_SCORES)
    del inputs["attention_mask"]
    out = handle.model(**inputs, use_cache=True)
    for step in range(3):
        torch.testing.assert_close(out.logits[:, -1], generated.logits[step], atol=1e-5, rtol=0)
        token = generated.sequences[:, 41 + step][:, None]
        out = handle.model(input_ids=token, past_key_values=output_cache(out))


def test_generations_may_be_interleaved(handle: ClaspHandle) -> None:
    model = handle.model
    prompts_ = [one_prompt(), {**one_prompt(), "pixel_values": images(1, seed=5)}]
    prompts_[1].update(prompts([1, "image", "image", 4]), pixel_values=images(2, seed=5))
    alone = [model.generate(**p, max_new_tokens=3, **WITH_SCORES) for p in prompts_]
    outs = [model(**p, use_cache=True) for p in prompts_]
    for step in range(3):
        for which in (1, 0):
            torch.testing.assert_close(
                outs[which].logits[:, -1], alone[which].logits[step], atol=1e-5, rtol=0
            )
            token = alone[which].sequences[:, prompts_[which]["input_ids"].shape[1] + step]
            outs[which] = model(input_ids=token[:, None], past_key_values=output_cache(outs[which]))


def test_a_copied_cache_goes_on_by_itself(handle: ClaspHandle) -> None:
    model = handle.model
    out = model(**one_prompt(), use_cache=True)
    twin = copy.deepcopy(output_cache(out))
    token = torch.tensor([[11]])
    first = model(input_ids=token, past_key_values=output_cache(out)).logits
    assert torch.equal(model(input_ids=token, past_key_values=twin).logits, first)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_an_emptied_cache_starts_afresh(handle: ClaspHandle, kind: str) -> None:
    model = handle.model
    config = model.config.get_text_config()
    cache = DynamicCache(config=config) if kind == "dynamic" else StaticCache(config, 64)
    text = prompts([1, 2, 3, 4])
    expected = model.generate(**text, max_new_tokens=3)
    model.generate(**one_prompt(), max_new_tokens=3, past_key_values=cache)
    cache.reset()
    if cache.get_seq_length() > 0:
        pytest.skip("this transformers does not empty dynamic caches")
    ids = model.generate(**text, max_new_tokens=3, past_key_values=cache)
    assert torch.equal(ids, expected)


SECOND_TURN = {"text": [], "another image": ["image"]}


@pytest.mark.parametrize("second", list(SECOND_TURN))
@pytest.mark.parametrize("make", [one_prompt, padded_prompts])
def test_a_conversation_goes_on(handle: ClaspHandle, make: Any, second: str) -> None:
    """Two calls with one cache give the same logits as one call with the whole conversation."""
    model, inputs = handle.model, make()
    rows = len(inputs["input_ids"])
    turn = prompts(*[[3, *SECOND_TURN[second], 2 + row] for row in range(rows)])
    new_images = images(rows if second == "another image" else 0, seed=9)

    first = model.generate(**inputs, max_new_tokens=3, **WITH_SCORES)
    whole = {
        "input_ids": torch.cat([first.sequences, turn["input_ids"]], 1),
        "attention_mask": torch.cat(
            [inputs["attention_mask"], torch.ones(rows, 3).long(), turn["attention_mask"]], 1
        ),
        "categories": inputs["categories"],
    }
    later = dict(whole)
    if len(new_images):
        later["pixel_values"] = new_images
    continued = model.generate(
        **later, past_key_values=output_cache(first), max_new_tokens=3, **WITH_SCORES
    )

    # A single call takes the images of each row together.
    counts = images_per_row(inputs)
    old, new = inputs["pixel_values"].split(counts), new_images.split(1) if len(new_images) else ()
    together = [image for row in range(rows) for image in (*old[row], *(new[row] if new else ()))]
    at_once = model.generate(
        **whole, pixel_values=torch.stack(together), max_new_tokens=3, **WITH_SCORES
    )
    assert torch.equal(continued.sequences, at_once.sequences)
    for ours, theirs in zip(continued.logits, at_once.logits, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def images_per_row(inputs: dict[str, Any]) -> list[int]:
    return ((inputs["input_ids"] == 60).sum(1) // 36).tolist()


def test_a_cached_text_prefix_before_the_image(handle: ClaspHandle) -> None:
    model = handle.model
    prefix = prompts([1, 5, 6])
    whole = prompts([1, 5, 6, 3, "image", 7])
    expected = model(**whole, pixel_values=images(1), categories="ocr").logits[:, -1]
    cache = output_cache(model(**prefix, use_cache=True))
    logits = model(
        input_ids=whole["input_ids"][:, 3:],
        attention_mask=whole["attention_mask"],
        pixel_values=images(1),
        categories="ocr",
        past_key_values=cache,
    ).logits
    assert logits.shape[1] == 1 + 8 + 1
    torch.testing.assert_close(logits[:, -1], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["prompt lookup", "assistant model"])
def test_speculative_decoding(handle: ClaspHandle, kind: str) -> None:
    """Speculative decoding crops the cache between steps and gives the ids of greedy search."""
    settings = {"max_new_tokens": 12, "suppress_tokens": [60]}
    batch = prompts([1, 5, 7, 8, 9, "image", 7, 8, 9, 7, 8])
    inputs = {**one_prompt(), **batch}
    expected = handle.model.generate(**inputs, **settings)
    speculation = (
        {"prompt_lookup_num_tokens": 3}
        if kind == "prompt lookup"
        else {"assistant_model": tiny_llava()}
    )
    ids = handle.model.generate(**inputs, **settings, **speculation)
    assert torch.equal(ids, expected)
