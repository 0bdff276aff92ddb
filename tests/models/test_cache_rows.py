"""The history of a cache follows operations on its rows and columns."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_llava import images, prompts, saved_and_loaded, tiny_llava, tiny_profile
from transformers import DynamicCache, StaticCache

from clasp_kernels.models import apply_clasp, remove_clasp
from clasp_kernels.models.compat import output_cache

# Padded on the left by three, one and no columns. The second row loses more tokens.
ROWS = ([1, "image", 5], [1, 4, 6, "image", 5], [1, 2, 3, 4, "image", 5])
CATEGORIES = ["ocr", "spatial", "ocr"]
NEXT = [9, 10]


@pytest.fixture(params=["original", "compact"])
def model(request: pytest.FixtureRequest) -> Any:
    model = tiny_llava()
    apply_clasp(model, budget=8, profile=tiny_profile(), positions=request.param)
    return model


def columns(mask: torch.Tensor, new: int) -> dict[str, torch.Tensor]:
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    return {"attention_mask": mask, "position_ids": positions[:, -new:]}


def prefill(model: Any, **settings: Any) -> tuple[Any, torch.Tensor]:
    """Prefill the batch; return its cache and mask."""
    batch = prompts(*ROWS)
    mask = batch["attention_mask"]
    out = model(
        input_ids=batch["input_ids"],
        **columns(mask, mask.shape[1]),
        pixel_values=images(3),
        categories=CATEGORIES,
        use_cache=True,
        **settings,
    )
    return output_cache(out), mask


def go_on(model: Any, cache: Any, mask: torch.Tensor) -> torch.Tensor:
    mask = torch.cat([mask, mask.new_ones(len(mask), len(NEXT))], 1)
    ids = torch.tensor([NEXT] * len(mask))
    return model(input_ids=ids, past_key_values=cache, **columns(mask, len(NEXT))).logits


def alone(model: Any, row: int) -> torch.Tensor:
    """Return the logits of NEXT after one row without the others."""
    prompt = prompts([*ROWS[row], *NEXT])
    pixels = images(3)[row : row + 1]
    return model(**prompt, pixel_values=pixels, categories=CATEGORIES[row]).logits[:, -len(NEXT) :]


def select(cache: Any) -> list[int]:
    cache.batch_select_indices(torch.tensor([1]))
    return [1]


def reorder(cache: Any) -> list[int]:
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    return [2, 0, 0]


def repeat(cache: Any) -> list[int]:
    cache.batch_repeat_interleave(2)
    return [0, 0, 1, 1, 2, 2]


def all_of_it(cache: Any) -> list[int]:
    return select(cache) and reorder_one(cache)


def reorder_one(cache: Any) -> list[int]:
    cache.batch_repeat_interleave(repeats=2)
    cache.reorder_cache(beam_idx=torch.tensor([1, 0]))
    return [1, 1]


CHANGES = [select, reorder, repeat, all_of_it]


@pytest.mark.parametrize("change", CHANGES)
def test_rows_of_a_cache(model: Any, change: Callable[[Any], list[int]]) -> None:
    cache, mask = prefill(model)
    rows = change(cache)
    logits = go_on(model, cache, mask[rows])
    expected = torch.cat([alone(model, row) for row in rows])
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_rows_of_a_static_cache(model: Any) -> None:
    cache, mask = prefill(model, past_key_values=StaticCache(model.config, max_cache_len=64))
    rows = reorder(cache)
    logits = go_on(model, cache, mask[rows])
    expected = torch.cat([alone(model, row) for row in rows])
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_a_selected_row_goes_on_without_a_mask() -> None:
    """``generate`` drops a mask of ones. The padding of the other rows must not be used instead."""
    model = tiny_llava()
    apply_clasp(model, budget=8, profile=tiny_profile())
    cache, _ = prefill(model)
    cache.batch_select_indices(torch.tensor([2]))
    row = prompts([*ROWS[2], *NEXT])
    settings = {"max_new_tokens": 4, "do_sample": False}
    ids = model.generate(**row, past_key_values=cache, **settings)
    pixels = images(3)[2:]
    assert torch.equal(
        ids, model.generate(**row, pixel_values=pixels, categories=CATEGORIES[2], **settings)
    )


@pytest.mark.parametrize("twin_of", [copy.deepcopy, saved_and_loaded])
def test_a_copied_cache_follows_by_itself(model: Any, twin_of: Callable[[Any], Any]) -> None:
    cache, mask = prefill(model)
    twin = twin_of(cache)
    rows = select(twin)
    torch.testing.assert_close(go_on(model, twin, mask[rows]), alone(model, 1), atol=1e-4, rtol=0)
    expected = torch.cat([alone(model, row) for row in range(3)])
    torch.testing.assert_close(go_on(model, cache, mask), expected, atol=1e-4, rtol=0)


def test_a_cache_cropped_within_the_text_and_filled_again(model: Any) -> None:
    cache, mask = prefill(model)
    held = cache.get_seq_length()
    cache.crop(-1)
    assert cache.get_seq_length() == held - 1
    logits = go_on(model, cache, mask[:, :-1])
    others = [[*row[:-1], *NEXT] for row in ROWS]
    for number, row in enumerate(others):
        pixels = images(3)[number : number + 1]
        out = model(**prompts(row), pixel_values=pixels, categories=CATEGORIES[number])
        expected = out.logits[:, -len(NEXT) :]
        torch.testing.assert_close(logits[number][None], expected, atol=1e-4, rtol=0)


def test_a_cache_cropped_into_an_image_step_by_step(model: Any) -> None:
    cache, mask = prefill(model)
    cache.crop(-1)
    cache.crop(-1)
    with pytest.raises(ValueError, match="cropped into an image"):
        go_on(model, cache, mask[:, :-2])


def test_a_cache_cropped_into_an_image_and_filled_again(model: Any) -> None:
    cache, mask = prefill(model)
    for layer in cache.layers:
        assert layer.keys.shape[2] == 12 + 1  # 8 tokens of the image and the longest row's text
    cache.crop(-3)
    with pytest.raises(ValueError, match="cropped into an image"):
        go_on(model, cache, mask[:, :-3])


def test_an_emptied_cache_forgets(model: Any) -> None:
    cache, _ = prefill(model, past_key_values=StaticCache(model.config, max_cache_len=64))
    cache.reset()
    model(**prompts(*[[1, 2, 3]] * 3), past_key_values=cache)
    assert not [name for name in vars(cache) if name.startswith("_clasp")]
    assert not {"crop", "reorder_cache", "batch_select_indices"} & vars(cache).keys()


def rebuilt(cache: Any) -> Any:
    """Build a new cache from the keys and values, as some callers do to move or store a cache."""
    twin = DynamicCache()
    for number, layer in enumerate(cache.layers):
        twin.update(layer.keys, layer.values, number)
    return twin


def test_a_cache_that_lost_its_history(model: Any) -> None:
    cache, mask = prefill(model)
    with pytest.raises(ValueError, match=r"has 43 columns, but past_key_values holds 13 and 2 are"):
        go_on(model, rebuilt(cache), mask)
    row = prompts([*ROWS[0], *NEXT])
    out = model(**prompts(ROWS[0]), pixel_values=images(1), categories="ocr", use_cache=True)
    with pytest.raises(ValueError, match=r"image placeholders past the 10 columns .* no images"):
        model.generate(**row, past_key_values=rebuilt(output_cache(out)), max_new_tokens=2)
    # A cache without pruned prompts still works.
    text = prompts([1, 2, 3, 4])
    held = rebuilt(output_cache(model(**prompts([1, 2]), use_cache=True)))
    whole = model.generate(**text, max_new_tokens=3)
    assert torch.equal(model.generate(**text, past_key_values=held, max_new_tokens=3), whole)


def test_a_cache_cropped_within_the_padding_on_the_right() -> None:
    model = tiny_llava()
    apply_clasp(model, budget=8, profile=tiny_profile())
    rows = ([1, "image", 7], [1, "image", 7, 3, 4])
    batch = prompts(*rows, padding_side="right")
    settings = {"pixel_values": images(2), "categories": "ocr", "use_cache": True}
    cache = output_cache(model(**batch, **settings))
    cache.crop(-1)  # the last word of the longer row, and padding of the other
    mask = batch["attention_mask"][:, :-1]
    longer = torch.cat([mask, torch.ones(2, 1).long()], 1)
    with pytest.raises(ValueError, match="cropped into an image or the padding"):
        ids = torch.tensor([[5], [5]])
        model(input_ids=ids, past_key_values=cache, attention_mask=longer)
    # With logits_to_keep, the padding on the right stays.
    cache = output_cache(model(**batch, **settings, logits_to_keep=1))
    cache.crop(-1)
    positions = mask.sum(1, keepdim=True)
    logits = model(
        input_ids=torch.tensor([[5], [5]]),
        past_key_values=cache,
        attention_mask=torch.cat([mask, torch.ones(2, 1).long()], 1),
        position_ids=positions,
    ).logits
    for number, row in enumerate(([1, "image", 7, 5], [1, "image", 7, 3, 5])):
        pixels = images(2)[number : number + 1]
        expected = model(**prompts(row), pixel_values=pixels, categories="ocr").logits[:, -1:]
        torch.testing.assert_close(logits[number][None], expected, atol=1e-4, rtol=0)


def by_class(cache: Any) -> Any:
    type(cache).reorder_cache(cache, torch.tensor([2, 0, 0]))
    return cache


def shallow(cache: Any) -> Any:
    twin = copy.copy(cache)
    twin.reorder_cache(torch.tensor([2, 0, 0]))
    return twin


@pytest.mark.parametrize("change", [by_class, shallow])
def test_rows_reordered_in_other_ways(model: Any, change: Callable[[Any], Any]) -> None:
    cache, mask = prefill(model)
    logits = go_on(model, change(cache), mask[[2, 0, 0]])
    expected = torch.cat([alone(model, row) for row in (2, 0, 0)])
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_a_pruned_cache_is_no_unpatched_models(model: Any) -> None:
    cache, mask = prefill(model)
    held = copy.deepcopy(cache)
    ids = torch.tensor([NEXT] * 3)
    with pytest.raises(RuntimeError, match=r"pruned prompt\. Only the model that apply_clasp"):
        model.model(input_ids=ids, past_key_values=cache)
    remove_clasp(model)
    with pytest.raises(RuntimeError, match=r"pruned prompt\. Only the model that apply_clasp"):
        go_on(model, held, mask)
    with pytest.raises(RuntimeError, match=r"pruned prompt\. Only the model that apply_clasp"):
        longer = prompts(*[[*row, *NEXT] for row in ROWS])
        model.generate(**longer, past_key_values=held, max_new_tokens=2)


@pytest.mark.usefixtures("no_collector")
def test_a_cache_is_freed_with_its_last_reference(model: Any) -> None:
    cache, _ = prefill(model)
    alive = weakref.ref(cache)
    del cache
    assert alive() is None
