"""Invalid arguments raise explanatory errors before anything is patched."""

from __future__ import annotations

import inspect
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_llava import images, prompts, tiny_llava, tiny_profile
from transformers import (
    DynamicCache,
    GenerationConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
)

from clasp_kernels.models import ClaspHandle, apply_clasp
from clasp_kernels.models.compat import output_cache
from clasp_kernels.models.patching import AttributePatches, Patch
from clasp_kernels.policy import CategoryPolicy, Router, Schedule


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": 0}, r"budget must be at least 1 visual token per image, got 0"),
        ({"budget": -3}, r"budget must be at least 1 visual token per image, got -3"),
        (
            {"budget": 8.0},
            r"above 0 and at most 1, got 8.0; .* give an int",
        ),
        ({"budget": 0.0}, r"above 0 and at most 1, got 0.0"),
        ({"budget": -0.5}, r"above 0 and at most 1, got -0.5"),
        ({"budget": float("nan")}, r"above 0 and at most 1, got nan"),
        ({"budget": True}, r"budget must be an int, .*, or a float, .*, got True"),
        ({"budget": "0.25"}, r"budget must be an int, .*, or a float, .*, got '0.25'"),
        ({"fuse_into": "llm"}, r"fuse_into must be 'projector' or 'selection', got 'llm'"),
        ({"positions": "new"}, r"positions must be 'original' or 'compact', got 'new'"),
        ({"merge": 1}, r"merge must be True or False, got 1"),
        ({"profile": "llava.json"}, r"profile must be a .*Profile, got str; Profile.load"),
        (
            {"profile": tiny_profile(model_type="qwen2_vl")},
            r"profile 'tiny' is for 'qwen2_vl' models, but this one is 'llava'",
        ),
        (
            {
                "profile": tiny_profile(
                    layers=(-6, -2), categories={"general": CategoryPolicy((1.0, 1.0), 0.5)}
                )
            },
            r"profile 'tiny' fuses layer -6, but the vision tower has 5 layers: -5..-1 are",
        ),
        (
            {"profile": tiny_profile(salience_layer=-6)},
            r"takes salience from layer -6, but the vision tower has 5 layers: -5..-1 are",
        ),
        (
            {"router": "rules.json"},
            r"router must be callable with a list of prompts, .* got 'rules",
        ),
        ({"processor": 3}, r"processor must be the model's processor or tokenizer, got int"),
        ({"schedule": {2: 8}}, r"schedule must be a .*Schedule, got dict"),
        (
            {"schedule": Schedule({2: 8})},
            r"Schedule\(\{2: 8\}\) keeps 22 of 36 visual tokens on average over 4 decoder layers, "
            r"but budget is 8; they must agree within half a token, or budget may be left out",
        ),
        ({"schedule": Schedule.input(4)}, r"Schedule\(\{0: 4\}\) keeps 4 of 36 .* budget is 8"),
        (
            {"schedule": Schedule({0: 8, 4: 4}), "budget": None},
            r"once 4 decoder layers have run, but the model has 4 .* layers must be in 0..3",
        ),
        (
            {"schedule": Schedule({2: 8}), "budget": 22, "positions": "compact"},
            r"positions must be 'original' if a schedule drops tokens inside.*got 'compact'",
        ),
        (
            {"schedule": Schedule({0: 8, 2: 4}), "budget": 6, "merge": True},
            r"merge must be False if a schedule drops tokens inside the decoder",
        ),
        ({"salience_rows": "all"}, r"salience_rows must be 'last' or 'instruction', got 'all'"),
        ({"completion_on": "keys"}, r"completion_on must be 'hidden' or 'fused', got 'keys'"),
    ],
)
def test_bad_argument(
    model: LlavaForConditionalGeneration, arguments: dict[str, Any], message: str
) -> None:
    before = dict(vars(model))
    with pytest.raises((ValueError, TypeError), match=message):
        apply_clasp(model, **{"budget": 8, "profile": tiny_profile(), **arguments})
    assert vars(model) == before


def test_schedule_that_prunes_the_input(model: LlavaForConditionalGeneration) -> None:
    with apply_clasp(model, budget=8, profile=tiny_profile(), schedule=Schedule.input(8)):
        pass


@pytest.mark.parametrize("wrong", [SimpleNamespace(config=SimpleNamespace(model_type="gpt2")), 3])
def test_unsupported_model_lists_the_supported(wrong: object) -> None:
    with pytest.raises(
        ValueError, match=r"supported config.model_type, 'llava' or .*; got (None|'gpt2')"
    ):
        apply_clasp(wrong, budget=8)


def test_model_without_a_head(model: LlavaForConditionalGeneration) -> None:
    with pytest.raises(TypeError, match="must be a LlavaForConditionalGeneration, got LlavaModel"):
        apply_clasp(model.model, budget=8, profile=tiny_profile())


class Wrapper(torch.nn.Module):
    """Forwards attribute reads to a model, as PEFT and data-parallel wrappers do."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


@pytest.mark.parametrize("wrap", [Wrapper, partial(torch.compile, backend="eager")])
def test_wrapped_model(model: LlavaForConditionalGeneration, wrap: Any) -> None:
    wrapper = wrap(model)
    before, before_wrapper = dict(vars(model)), dict(vars(wrapper))
    with pytest.raises(TypeError, match=r"got \w+\. .* pass the inner model \(model._orig_mod of"):
        apply_clasp(wrapper, budget=8, profile=tiny_profile())
    assert vars(model) == before
    assert vars(wrapper) == before_wrapper
    with apply_clasp(model, budget=8, profile=tiny_profile()):
        pass


@pytest.mark.parametrize("handed_on", ["second", "third"])
def test_an_object_that_does_not_keep_what_is_set(handed_on: str) -> None:
    inner = SimpleNamespace()

    class HandsOn:
        def __setattr__(self, name: str, value: object) -> None:
            object.__setattr__(inner if name == handed_on else self, name, value)

        def __delattr__(self, name: str) -> None:
            object.__delattr__(inner if name == handed_on else self, name)

    target = HandsOn()
    vars(target)["first"] = "its own"
    with pytest.raises(TypeError, match=f"HandsOn cannot be patched: .* '{handed_on}' is set to"):
        AttributePatches([Patch(target, name, 1) for name in ("first", "second", "third")])
    assert vars(target) == {"first": "its own"}
    assert vars(inner) == {}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"vision_feature_layer": [-3, -2]}, r"layers \[-3, -2\] side by side .*'selection'"),
        (
            {"vision_feature_layer": 0},
            "vision_feature_layer=0 is the embedding, which no attention",
        ),
    ],
)
def test_model_whose_features_do_not_fit(
    model: LlavaForConditionalGeneration, config: dict[str, Any], message: str
) -> None:
    for name, value in config.items():
        setattr(model.config, name, value)
    with pytest.raises(ValueError, match=message):
        apply_clasp(model, budget=8, profile=tiny_profile())


def test_vision_tower_without_cls(model: LlavaForConditionalGeneration) -> None:
    model.config.vision_config = SiglipVisionConfig()
    with pytest.raises(ValueError, match=r"must be clip_vision_model, .* has 'siglip_vision_mod"):
        apply_clasp(model, budget=8, profile=tiny_profile())


def test_double_precision(model: LlavaForConditionalGeneration) -> None:
    with pytest.raises(ValueError, match=r"model's dtype must be torch.float32 or .*torch.float64"):
        apply_clasp(model.double(), budget=8, profile=tiny_profile())


def test_entering_a_removed_handle(handle: ClaspHandle) -> None:
    handle.remove()
    with pytest.raises(RuntimeError, match="the handle was removed"), handle:
        pass


def test_apply_twice(model: LlavaForConditionalGeneration) -> None:
    handle = apply_clasp(model, budget=8, profile=tiny_profile())
    patched = dict(vars(model))
    with pytest.raises(ValueError, match=r"patched already; remove\(\) its handle .* remove_clasp"):
        apply_clasp(model, budget=4, profile=tiny_profile())
    assert vars(model) == patched
    handle.remove()


@pytest.fixture
def handle(model: LlavaForConditionalGeneration) -> ClaspHandle:
    return apply_clasp(model, budget=8, profile=tiny_profile())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"categories": "poetry"}, r"unknown category 'poetry'; .* general, ocr, counting"),
        ({"categories": ["ocr"]}, r"one category per prompt: got 1 for 2 prompts"),
        ({"categories": 3}, r"categories must be a category name or a list of them, .* got int"),
        ({"categories": [["ocr"], "ocr"]}, r"categories must hold .* got \['ocr'\] for prompt 0"),
        ({"categories": ["ocr", None]}, r"categories must hold .* got None for prompt 1"),
        ({"pixel_values": images(1)}, r"pixel_values holds 1 images, .* placeholders for 2, at 36"),
        ({"attention_mask": torch.ones(2, 1, 41, 41)}, r"attention_mask must be 2D .* got 4D"),
        (
            {"attention_mask": torch.ones(2, 7)},
            r"attention_mask must be \[2, 41\], .* got \[2, 7\]",
        ),
        ({"vision_feature_layer": -1}, r"vision_feature_layer is -2, as .* got -1: remove\(\)"),
        ({"vision_feature_select_strategy": "full"}, r"is 'default', as .* got 'full'"),
        ({"image_sizes": torch.ones(2, 2)}, r"image_sizes is for vision towers that keep"),
        ({"logits_to_keep": torch.tensor([1])}, r"logits_to_keep must be an integer when images"),
        (
            {"labels": torch.ones(2, 7)},
            r"labels must have the prompt's shape \[2, 41\], got \[2, 7",
        ),
        ({"input_ids": None}, r"pass exactly one of input_ids and inputs_embeds"),
    ],
)
def test_bad_forward_argument(handle: ClaspHandle, arguments: dict[str, Any], message: str) -> None:
    batch = prompts([1, 5, "image", 7, 8], [1, "image", 3, 2, 9, 4])
    inputs = {**batch, "pixel_values": images(2), "categories": "ocr"}
    with pytest.raises((ValueError, TypeError), match=message):
        handle.model(**{**inputs, **arguments})


def test_generate_still_catches_typos(handle: ClaspHandle) -> None:
    with pytest.raises(ValueError, match="category"):
        handle.model.generate(
            **prompts([1, "image", 7]), pixel_values=images(1), categories="ocr", category="ocr"
        )


def test_part_of_an_image(handle: ClaspHandle) -> None:
    batch = prompts([1, 2, "image", 7])
    with pytest.raises(ValueError, match="prompt 0 has 20 image placeholders, which is not a mult"):
        handle.model(input_ids=batch["input_ids"][:, :22], pixel_values=images(1), categories="ocr")


def test_chunked_prefill(handle: ClaspHandle) -> None:
    batch = prompts([1, 2, "image", 7])
    with pytest.raises(ValueError, match="prefill_chunk_size"):
        handle.model.generate(
            **batch,
            pixel_values=images(1),
            categories="ocr",
            prefill_chunk_size=8,
            max_new_tokens=2,
        )


@pytest.mark.parametrize("set_in", ["argument", "generation_config", "the model's own"])
def test_chunked_prefill_of_a_later_turn(handle: ClaspHandle, set_in: str) -> None:
    """Chunks would start at the length of the pruned cache, so images would be fed as text."""
    model = handle.model
    batch = prompts([1, 2, "image", 7])
    cache = DynamicCache()
    ids = model.generate(
        **batch, pixel_values=images(1), categories="ocr", cache=cache, max_new_tokens=3
    )
    later = torch.cat([ids, torch.tensor([[3, 4, 5, 6]])], 1)
    settings: dict[str, Any] = {"max_new_tokens": 2}
    if set_in == "argument":
        settings["prefill_chunk_size"] = 2
    elif set_in == "generation_config":
        settings["generation_config"] = GenerationConfig(prefill_chunk_size=2)
    else:
        model.generation_config.prefill_chunk_size = 2
    with pytest.raises(ValueError, match=r"prefill_chunk_size must be None .* before, got 2"):
        model.generate(later, cache=cache, **settings)
    text = prompts([1, 2, 3, 4, 5])
    assert model.generate(**text, **settings).shape[1] > 5  # chunks are fine without images


def test_arguments_of_prepare_by_position(handle: ClaspHandle) -> None:
    ids = torch.tensor([[1, 2, 3]])
    cache = DynamicCache()
    expected = tiny_llava().prepare_inputs_for_generation(ids, 2, cache)["input_ids"]
    prepared = handle.model.prepare_inputs_for_generation(ids, 2, cache)
    assert torch.equal(prepared["input_ids"], expected)


@pytest.mark.parametrize("main", ["plain", "patched", "itself"])
def test_patched_assistant(handle: ClaspHandle, main: str) -> None:
    batch = {**prompts([1, 2, "image", 7]), "pixel_values": images(1), "max_new_tokens": 4}
    model = handle.model if main == "itself" else tiny_llava()
    if main == "patched":
        apply_clasp(model, budget=8, profile=tiny_profile())
    if main != "plain":
        batch["categories"] = "ocr"
    with pytest.raises(ValueError, match=r"an assistant model cannot be pruned; remove\(\) its"):
        model.generate(**batch, assistant_model=handle.model)


def test_patched_assistant_drafts_text(handle: ClaspHandle) -> None:
    text = prompts([1, 2, 3, 4])
    model = tiny_llava()
    expected = model.generate(**text, max_new_tokens=4)
    ids = model.generate(**text, max_new_tokens=4, assistant_model=handle.model)
    assert torch.equal(ids, expected)


def test_images_that_are_encoded_already(handle: ClaspHandle) -> None:
    if "mm_encoder_outputs" not in inspect.signature(type(handle.model).forward).parameters:
        pytest.skip("this transformers does not encode images ahead of the prefill")
    batch = prompts([1, 2, "image", 7])
    encoded = {"image": handle.model.get_image_features(images(1))}
    for call in (handle.model, handle.model.generate):
        with pytest.raises(ValueError, match="encoded already, too late to prune"):
            call(**batch, mm_encoder_outputs=encoded)


def test_embeddings_have_no_text_to_route(model: LlavaForConditionalGeneration) -> None:
    class Tokenizer:
        def decode(self, ids: list[int]) -> str:
            return "unread"

    batch = prompts([1, 2, "image", 7])
    embeds = model.get_input_embeddings()(batch["input_ids"])
    with (
        apply_clasp(model, budget=8, profile=tiny_profile(), processor=Tokenizer()),
        pytest.raises(ValueError, match="inputs_embeds have no text to route; pass categories="),
    ):
        model(inputs_embeds=embeds, pixel_values=images(1))


def test_images_without_placeholders(handle: ClaspHandle) -> None:
    with pytest.raises(ValueError, match="holds 1 images, but the prompts have placeholders for 0"):
        handle.model(**prompts([1, 2, 3]), pixel_values=images(1), categories="ocr")


def test_decoding_with_a_mask_of_the_wrong_length(handle: ClaspHandle) -> None:
    batch = prompts([1, 2, "image", 7])
    out = handle.model(**batch, pixel_values=images(1), categories="ocr", use_cache=True)
    with pytest.raises(ValueError, match=r"attention_mask must be \[1, 40\], one column for every"):
        handle.model(
            input_ids=torch.tensor([[5]]),
            past_key_values=output_cache(out),
            attention_mask=torch.ones(1, 39),
        )


def test_cache_cropped_into_the_image(handle: ClaspHandle) -> None:
    batch = prompts([1, 2, 3], [1, "image", 7])
    out = handle.model(**batch, pixel_values=images(1), categories="ocr", use_cache=True)
    output_cache(out).crop(-3)
    with pytest.raises(ValueError, match=r"cropped into an image .* holds 7 columns"):
        handle.model(input_ids=torch.tensor([[5], [5]]), past_key_values=output_cache(out))


@pytest.mark.parametrize("mask", [torch.ones(4, 39), None])
def test_rows_repeated_behind_the_caches_back(
    handle: ClaspHandle, mask: torch.Tensor | None
) -> None:
    batch = prompts([1, 2, 3], [1, "image", 7])
    out = handle.model(**batch, pixel_values=images(1), categories="ocr", use_cache=True)
    for layer in output_cache(out).layers:
        layer.batch_repeat_interleave(2)
    with pytest.raises(ValueError, match=r"holds 2 pruned rows, but the batch has 4: .*cache's"):
        handle.model(
            input_ids=torch.full((4, 1), 5),
            past_key_values=output_cache(out),
            attention_mask=mask,
        )


def test_a_setting_changed_after_patching(handle: ClaspHandle) -> None:
    handle.model.config.vision_feature_layer = -1
    with pytest.raises(ValueError, match=r"vision_feature_layer is -2, .* got -1: remove\(\) the"):
        handle.model(**prompts([1, "image", 7]), pixel_values=images(1), categories="ocr")


def test_image_features_of_the_models_own(model: LlavaForConditionalGeneration) -> None:
    own = model.model.get_image_features
    model.model.get_image_features = lambda *args, **kwargs: own(*args, **kwargs)
    with pytest.raises(TypeError, match="get_image_features is overridden, but pruning does not"):
        apply_clasp(model, budget=8, profile=tiny_profile())
    del model.model.get_image_features
    apply_clasp(model, budget=8, profile=tiny_profile())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pixel_values": images(2).numpy()}, r"pixel_values must be a tensor \[.*got ndarray"),
        ({"pixel_values": [images(1)] * 2}, r"pixel_values must be a tensor \[.*got list"),
        ({"pixel_values": images(1)[0]}, r"pixel_values must be a tensor .*got \[3, 24, 24\]"),
        ({"input_ids": torch.ones(41).long()}, r"input_ids must be .* 2 dimensions, .*got \[41\]"),
        ({"input_ids": [[1, 2]]}, r"input_ids must be a tensor of 2 dimensions, .*got list"),
        ({"labels": [[1] * 41] * 2}, "labels must be a tensor, got list"),
        ({"position_ids": [[1] * 41] * 2}, "position_ids must be a tensor, got list"),
        ({"past_key_values": ((1, 2),)}, "past_key_values must be a Cache .* got tuple"),
    ],
)
def test_arguments_of_another_type(
    handle: ClaspHandle, arguments: dict[str, Any], message: str
) -> None:
    batch = prompts([1, 5, "image", 7, 8], [1, "image", 3, 2, 9, 4])
    call = {**batch, "pixel_values": images(2), "categories": "ocr", **arguments}
    with pytest.raises(TypeError, match=message):
        handle.model(**call)
    if not arguments.keys() & {"labels", "past_key_values", "position_ids"}:
        with pytest.raises(TypeError, match=message):
            handle.model.generate(**call, max_new_tokens=2)


def test_settings_of_generate_that_do_not_fit(handle: ClaspHandle) -> None:
    batch = prompts([1, 5, "image", 7, 8], [1, "image", 3, 2, 9, 4])
    call = {**batch, "pixel_values": images(2), "categories": "ocr"}
    with pytest.raises(ValueError, match="cache_implementation must not be 'paged'"):
        handle.model.generate(**call, cache_implementation="paged")
    call["attention_mask"] = call["attention_mask"][:, 1:]
    with pytest.raises(ValueError, match=r"attention_mask must be \[2, 41\], .* got \[2, 40\]"):
        handle.model.generate(**call)


def test_changes_since_patching(handle: ClaspHandle) -> None:
    call = {**prompts([1, "image", 7]), "pixel_values": images(1), "categories": "ocr"}
    handle.model.config.image_token_id = 61
    with pytest.raises(ValueError, match="image_token_id is 61, but was 60 when apply_clasp"):
        handle.model(**call)
    handle.model.config.image_token_id = 60
    handle.model.double()
    with pytest.raises(ValueError, match=r"dtype must be torch.float32 or .* got torch.float64"):
        handle.model(**{**call, "pixel_values": images(1).double()})


def test_the_last_logits_counted_by_another_integer(handle: ClaspHandle) -> None:
    call = {**prompts([1, "image", 7]), "pixel_values": images(1), "categories": "ocr"}
    one = handle.model(**call, logits_to_keep=1).logits
    assert torch.equal(handle.model(**call, logits_to_keep=np.int64(1)).logits, one)


def test_the_class_of_a_router(model: LlavaForConditionalGeneration) -> None:
    with pytest.raises(TypeError, match=r"such as Router\(\), got <class"):
        apply_clasp(model, budget=8, profile=tiny_profile(), router=Router)
