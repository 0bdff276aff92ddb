"""A plain forward: its other arguments and its outputs."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_llava import IMAGE_TOKEN, image_features, images, prompts, tiny_llava, tiny_profile
from transformers import LlavaForConditionalGeneration, StaticCache
from transformers.generation.streamers import BaseStreamer

from clasp_kernels import select_tokens
from clasp_kernels.models import apply_clasp, selection, stopwatch
from clasp_kernels.models.compat import output_cache


@pytest.fixture
def inputs() -> dict[str, Any]:
    batch = prompts([1, 5, "image", 7, 8], [1, "image", 3, 2, 9, 4])
    return {**batch, "pixel_values": images(2), "categories": ["ocr", "spatial"]}


def test_labels_are_pruned_along(
    model: LlavaForConditionalGeneration, inputs: dict[str, Any]
) -> None:
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    labels = ids.masked_fill((ids == IMAGE_TOKEN) | (mask == 0), -100)
    with apply_clasp(model, budget=8, profile=tiny_profile()) as handle:
        out = model(**inputs, labels=labels)
        assert handle.last is not None
        columns = handle.last.columns
    # Each text token but a row's first is predicted by the previous remaining column.
    losses = []
    for row in range(2):
        for at, column in enumerate(columns[row].tolist()):
            if at > 0 and column >= 0 and labels[row, column] >= 0 and columns[row, at - 1] >= 0:
                scores = out.logits[row, at - 1].log_softmax(-1)
                losses.append(-scores[labels[row, column]])
    assert len(losses) == 3 + 4  # all text tokens but the first of each row
    torch.testing.assert_close(out.loss, torch.stack(losses).mean())


def test_loss_trains_the_projector_and_the_language_model(
    model: LlavaForConditionalGeneration, inputs: dict[str, Any]
) -> None:
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE_TOKEN, -100)
    with apply_clasp(model, budget=8, profile=tiny_profile()), torch.enable_grad():
        model(**inputs, labels=labels).loss.backward()
    assert model.model.multi_modal_projector.linear_1.weight.grad.abs().sum() > 0
    assert model.model.language_model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in model.model.vision_tower.parameters())


def test_prompt_as_embeddings(model: LlavaForConditionalGeneration, inputs: dict[str, Any]) -> None:
    settings = {"max_new_tokens": 4, "suppress_tokens": [60]}
    with apply_clasp(model, budget=8, profile=tiny_profile()) as handle:
        logits = model(**inputs).logits
        ids = model.generate(**inputs, **settings)
        input_ids = inputs.pop("input_ids")
        inputs["inputs_embeds"] = model.get_input_embeddings()(input_ids)
        assert handle.last is not None
        real = handle.last.columns >= 0
        assert torch.equal(model(**inputs).logits[real], logits[real])
        new_ids = model.generate(**inputs, **settings)
    assert torch.equal(new_ids, ids[:, -4:])


def test_image_features_of_the_output_are_the_kept_tokens(
    model: LlavaForConditionalGeneration, inputs: dict[str, Any]
) -> None:
    with apply_clasp(model, budget=8, profile=tiny_profile()):
        out = model(**inputs, output_hidden_states=True)
    assert image_features(out).shape == (8 + 4, 32)
    embedded = out.hidden_states[0]
    assert torch.equal(embedded[0, 2:10], image_features(out)[:8])


def test_image_features_of_the_output_have_the_unpruned_models_form(
    model: LlavaForConditionalGeneration, inputs: dict[str, Any]
) -> None:
    """The field has the type of the installed transformers: a tensor, or a list per image."""
    plain = model(**{name: value for name, value in inputs.items() if name != "categories"})
    with apply_clasp(model, budget=36, profile=tiny_profile(), fuse_into="selection"):
        pruned = model(**{**inputs, "categories": "ocr"})
    assert list(pruned) == list(plain)
    if hasattr(plain, "image_outputs"):
        ours, theirs = (out.image_outputs.pooler_output for out in (pruned, plain))
        assert [tokens.shape for tokens in ours] == [tokens.shape for tokens in theirs]
        assert all(map(torch.equal, ours, theirs))
    else:
        assert torch.equal(pruned.image_hidden_states, plain.image_hidden_states)


@pytest.mark.parametrize("normalize", ["l2", "rms"])
def test_layers_are_normalised_as_the_profile_says(
    model: LlavaForConditionalGeneration, inputs: dict[str, Any], normalize: str
) -> None:
    with apply_clasp(model, budget=8, profile=tiny_profile(normalize=normalize)) as handle:
        given = image_features(model(**inputs))
    states = model.model.vision_tower(inputs["pixel_values"], output_hidden_states=True)
    fused = 0
    for weight, layer in zip((0.6, 0.4), (-4, -3), strict=True):  # the weights of "ocr"
        tokens = states.hidden_states[layer][:1, 1:]
        size = tokens.norm(dim=-1) if normalize == "l2" else (tokens**2).mean(-1).sqrt()
        fused = fused + weight * tokens / size[..., None]
    assert handle.last is not None
    kept = fused[:, handle.last.stages[0].indices[0]]
    torch.testing.assert_close(given[:8], model.model.multi_modal_projector(kept)[0])


def test_only_kept_tokens_are_projected(
    model: LlavaForConditionalGeneration, inputs: dict[str, Any]
) -> None:
    shapes = []
    model.model.multi_modal_projector.register_forward_hook(
        lambda module, args, output: shapes.append(tuple(output.shape))
    )
    with apply_clasp(model, budget=8, profile=tiny_profile()):
        model(**inputs)
    assert shapes == [(2, 8, 32)]


def test_tuple_instead_of_a_dict(
    model: LlavaForConditionalGeneration, inputs: dict[str, Any]
) -> None:
    with apply_clasp(model, budget=8, profile=tiny_profile()):
        expected = model(**inputs, use_cache=False).to_tuple()
        given = model(**inputs, use_cache=False, return_dict=False)
    assert isinstance(given, tuple)
    assert len(given) == len(expected)
    assert torch.equal(given[0], expected[0])


def test_positional_arguments(model: LlavaForConditionalGeneration, inputs: dict[str, Any]) -> None:
    with apply_clasp(model, budget=8, profile=tiny_profile()):
        expected = model(**inputs).logits
        arguments = [inputs[name] for name in ("input_ids", "pixel_values", "attention_mask")]
        assert torch.equal(model(*arguments, categories=inputs["categories"]).logits, expected)


def test_without_a_mask_or_a_cache(
    model: LlavaForConditionalGeneration, inputs: dict[str, Any]
) -> None:
    """Gaps in the position ids are not taken for borders between packed samples."""
    batch = {**prompts([1, 5, "image", 7, 8]), "pixel_values": images(1), "categories": "ocr"}
    with apply_clasp(model, budget=8, profile=tiny_profile()):
        expected = model(**batch).logits
        del batch["attention_mask"]
        torch.testing.assert_close(model(**batch, use_cache=False).logits, expected)


def test_prompts_without_images_pass_through(model: LlavaForConditionalGeneration) -> None:
    text = prompts([1, 2, 3, 4], [1, 2])
    logits = model(**text).logits
    ids = {
        cache: model.generate(**text, max_new_tokens=3, cache_implementation=cache)
        for cache in (None, "static")
    }
    with apply_clasp(model, budget=8, profile=tiny_profile()) as handle:
        assert torch.equal(model(**text).logits, logits)
        for cache, expected in ids.items():
            out = model.generate(**text, max_new_tokens=3, cache_implementation=cache)
            assert torch.equal(out, expected)
        assert handle.last is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(inputs: dict[str, Any], dtype: torch.dtype) -> None:
    """A low-precision model keeps the same tokens as a float32 model with the same rounded weights,
    up to a few near ties."""
    model = tiny_llava().to(dtype)
    with apply_clasp(model, budget=8, profile=tiny_profile()) as handle:
        out = model.generate(**inputs, max_new_tokens=3)
        assert out.shape[1] == inputs["input_ids"].shape[1] + 3
        assert handle.last is not None
        low = handle.last
    with apply_clasp(model.float(), budget=8, profile=tiny_profile()) as handle:
        model(**inputs)
        assert handle.last is not None
        full = handle.last
    assert low.kv_cache_bytes * 2 == full.kv_cache_bytes
    for image, count in enumerate(low.stages[0].counts):
        kept = (set(r.stages[0].indices[image, :count].tolist()) for r in (low, full))
        assert len(set.intersection(*kept)) >= count - 2


def test_inference_mode(model: LlavaForConditionalGeneration, inputs: dict[str, Any]) -> None:
    with apply_clasp(model, budget=8, profile=tiny_profile()):
        expected = model(**inputs).logits
        with torch.inference_mode():
            assert torch.equal(model(**inputs).logits, expected)
            model.generate(**inputs, max_new_tokens=3)


def test_streaming(model: LlavaForConditionalGeneration, inputs: dict[str, Any]) -> None:
    class Collect(BaseStreamer):
        def __init__(self) -> None:
            self.ids: list[int] = []

        def put(self, value: torch.Tensor) -> None:
            self.ids += value.flatten().tolist()

        def end(self) -> None:
            self.ids.append(-1)

    batch = {**prompts([1, "image", 7]), "pixel_values": images(1), "categories": "ocr"}
    streamer = Collect()
    with apply_clasp(model, budget=8, profile=tiny_profile()):
        ids = model.generate(**batch, max_new_tokens=3, streamer=streamer)
    assert streamer.ids == [*ids[0].tolist(), -1]


def test_times_are_told_apart(
    model: LlavaForConditionalGeneration,
    inputs: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a fake clock, each part takes a different, known time."""
    now = 100.0

    def passes(seconds: float) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            nonlocal now
            now += seconds

        return hook

    def slow_select_tokens(*args: Any, **kwargs: Any) -> Any:
        passes(4.0)()
        return select_tokens(*args, **kwargs)

    monkeypatch.setattr(stopwatch, "time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(selection, "select_tokens", slow_select_tokens)
    model.model.vision_tower.register_forward_pre_hook(passes(1.0))
    model.model.language_model.register_forward_pre_hook(passes(2.0))
    model.model.multi_modal_projector.register_forward_pre_hook(passes(8.0))  # counted nowhere
    with apply_clasp(model, budget=8, profile=tiny_profile()) as handle:
        model(**inputs)
    now += 16.0
    record = handle.last
    assert record is not None
    assert (record.vision_seconds, record.prefill_seconds) == (1.0, 2.0)
    assert record.selection_seconds == record.stages[0].seconds == 4.0


def test_a_stopwatch_measures_its_block() -> None:
    with stopwatch.Stopwatch(torch.device("cpu")) as watch:
        time.sleep(0.05)
    seconds = watch.seconds
    assert seconds >= 0.05
    time.sleep(0.01)
    assert watch.seconds == seconds  # the watch has stopped


def test_a_vision_tower_that_is_not_frozen_is_told_once(
    model: LlavaForConditionalGeneration,
) -> None:
    batch = {**prompts([1, "image", 7, 8]), "pixel_values": images(1), "categories": "ocr"}
    labels = batch["input_ids"].masked_fill(batch["input_ids"] == IMAGE_TOKEN, -100)
    model.train()
    with torch.enable_grad(), apply_clasp(model, budget=8, profile=tiny_profile()):
        with pytest.warns(UserWarning, match=r"vision tower require gradients, .* freeze them"):
            model(**batch, labels=labels).loss.backward()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(**batch, labels=labels)
    model.model.vision_tower.requires_grad_(False)
    with (
        torch.enable_grad(),
        apply_clasp(model, budget=8, profile=tiny_profile()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("error")
        model(**batch, labels=labels)


@pytest.mark.parametrize("row", [[5, 6, "image"], ["image"]])
def test_generating_after_a_prompt_that_ends_in_an_image(
    model: LlavaForConditionalGeneration, row: list[int | str]
) -> None:
    batch = {**prompts(row), "pixel_values": images(1)}
    expected = model.generate(**batch, max_new_tokens=3)
    with apply_clasp(model, budget=36, profile=tiny_profile(), fuse_into="selection"):
        assert torch.equal(model.generate(**batch, max_new_tokens=3, categories="ocr"), expected)
    with apply_clasp(model, budget=8, profile=tiny_profile()):
        assert model.generate(**batch, max_new_tokens=3, categories="ocr").shape == expected.shape


def test_a_later_turn_that_gives_its_new_ids_alone(model: LlavaForConditionalGeneration) -> None:
    first, second = prompts([1, 2, 3]), prompts([4, "image", 5])
    whole = {name: torch.cat([first[name], second[name]], 1) for name in first}
    with apply_clasp(model, budget=8, profile=tiny_profile()):
        settings = {"pixel_values": images(1), "categories": "ocr", "max_new_tokens": 3}
        expected = model.generate(**whole, **settings)
        cache = output_cache(model(**first, use_cache=True))
        ids = model.generate(
            input_ids=second["input_ids"],
            attention_mask=whole["attention_mask"],
            past_key_values=cache,
            **settings,
        )
    assert torch.equal(ids[:, -3:], expected[:, -3:])


def test_a_static_mask_of_text(model: LlavaForConditionalGeneration) -> None:
    cache = StaticCache(model.config.get_text_config(), max_cache_len=16)
    mask = torch.zeros(1, 16, dtype=torch.int64)
    mask[:, :4] = 1
    with apply_clasp(model, budget=8, profile=tiny_profile()):
        model(input_ids=torch.tensor([[1, 2, 3]]), past_key_values=cache, attention_mask=mask)
        model(input_ids=torch.tensor([[4]]), past_key_values=cache, attention_mask=mask)


def test_a_cache_position_is_left_out(
    model: LlavaForConditionalGeneration, inputs: dict[str, Any]
) -> None:
    with apply_clasp(model, budget=8, profile=tiny_profile()):
        expected = model(**inputs).logits
        assert torch.equal(model(**inputs, cache_position=torch.arange(41)).logits, expected)
