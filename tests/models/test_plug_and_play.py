"""``apply_clasp(model)`` with default arguments."""

from __future__ import annotations

import inspect
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forking import python_with_torch
from tiny_llava import images, prompts, tiny_llava, tiny_profile
from transformers import AutoProcessor, LlavaForConditionalGeneration

import clasp_kernels
from clasp_kernels.bundled import tiny_vlm_path
from clasp_kernels.models import apply_clasp
from clasp_kernels.policy import CategoryPolicy, Schedule


def one_prompt() -> dict[str, Any]:
    return {**prompts([1, 5, "image", 7, 8]), "pixel_values": images(1)}


def kept(handle: Any) -> tuple[int, ...]:
    return handle.last.stages[0].counts


def test_it_is_at_the_top() -> None:
    assert clasp_kernels.apply_clasp is apply_clasp
    assert "apply_clasp" in clasp_kernels.__all__ and "apply_clasp" in dir(clasp_kernels)


def test_importing_the_package_imports_no_transformers() -> None:
    code = "import sys, clasp_kernels; print('transformers' in sys.modules, end=' ');"
    code += "clasp_kernels.apply_clasp; print('transformers' in sys.modules)"
    done = python_with_torch(code)
    assert done.stdout.split() == ["False", "False"]


def test_a_model_alone_keeps_a_quarter(model: LlavaForConditionalGeneration) -> None:
    assert inspect.signature(apply_clasp).parameters["model"].default is inspect.Parameter.empty
    with pytest.warns(UserWarning) as caught, apply_clasp(model) as handle:
        model.generate(**one_prompt(), max_new_tokens=2)
    [warning] = caught
    assert "every prompt is 'general'" in str(warning.message)
    assert warning.filename == __file__
    assert kept(handle) == (9,)  # of 36 tokens
    assert handle.last.categories == ("general",)


@pytest.mark.parametrize(
    ("budget", "count"),
    [
        (1, 1),
        (8, 8),
        (36, 36),
        (37, 36),
        (10_000, 36),
        (1.0, 36),
        (0.5, 18),
        (1e-9, 1),
        (0.29, 10),  # rounded from 10.44
        (0.375, 14),  # rounded from 13.5
        (np.int64(8), 8),
        (np.float32(0.5), 18),
    ],
)
def test_tokens_or_a_fraction_of_them(
    model: LlavaForConditionalGeneration, budget: float, count: int
) -> None:
    with apply_clasp(model, budget=budget) as handle:
        model(**one_prompt(), categories="general")
    assert kept(handle) == (count,)


def test_an_image_left_whole_changes_nothing(model: LlavaForConditionalGeneration) -> None:
    expected = model(**one_prompt()).logits
    with apply_clasp(model, budget=500) as handle:
        assert torch.equal(model(**one_prompt(), categories="general").logits, expected)
    assert handle.last.prompt_length == handle.last.pruned_length


def test_a_category_stretches_a_fraction_before_it_is_rounded(
    model: LlavaForConditionalGeneration,
) -> None:
    policy = CategoryPolicy((0.0, 0.5, 0.5), 0.5, budget_scale=1.5)
    with apply_clasp(
        model, budget=0.29, profile=tiny_profile(categories={"general": policy})
    ) as handle:
        model(**one_prompt(), categories="general")
    assert kept(handle) == (16,)  # rounded from 15.66


def test_a_schedule_may_say_the_budget(model: LlavaForConditionalGeneration) -> None:
    with apply_clasp(model, schedule=Schedule.input(7)) as handle:
        model(**one_prompt(), categories="general")
    assert kept(handle) == (7,)


@pytest.mark.parametrize("layers", [1, 2, 5, 24])
def test_the_default_profile_fits_every_depth_of_tower(layers: int) -> None:
    model = tiny_llava(vision_layers=layers, decoder_layers=1, vision_feature_layer=-1)
    with apply_clasp(model, budget=4) as handle:
        model(**one_prompt(), categories="ocr")
    assert kept(handle) == (4,)


def test_the_profile_says_what_the_projector_gets(model: LlavaForConditionalGeneration) -> None:
    """The family's profile leaves the projector's input unchanged; ``fuse_into=`` overrides it."""
    logits = {}
    for fuse_into in (None, "selection", "projector"):
        with apply_clasp(model, budget=9, fuse_into=fuse_into) as handle:
            logits[fuse_into] = model(**one_prompt(), categories="general").logits
            assert handle.profile.fuse_into == "selection"
    assert torch.equal(logits[None], logits["selection"])
    assert not torch.equal(logits[None], logits["projector"])
    for profile in (tiny_profile(), tiny_profile(fuse_into="projector")):
        with apply_clasp(model, budget=9, profile=profile):
            ours = model(**one_prompt(), categories="general").logits
        with apply_clasp(model, budget=9, profile=profile, fuse_into="projector"):
            assert torch.equal(model(**one_prompt(), categories="general").logits, ours)


def bundled_question() -> dict[str, Any]:
    from PIL import Image

    processor = AutoProcessor.from_pretrained(tiny_vlm_path())
    return processor(
        images=Image.new("RGB", (96, 96), "red"),
        text="USER: <image>\nHow many red circles are there? ASSISTANT:",
        return_tensors="pt",
    )


def test_the_tokenizer_beside_the_weights_reads_the_prompt() -> None:
    model = LlavaForConditionalGeneration.from_pretrained(tiny_vlm_path())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with apply_clasp(model) as handle:
            model.generate(**bundled_question(), max_new_tokens=2)
    assert handle.last is not None
    assert handle.last.categories == ("counting",)
    assert kept(handle) == (36,)


@pytest.mark.parametrize("damage", ["no tokenizer", "a broken one", "folder gone"])
def test_without_a_tokenizer_prompts_are_general_said_once(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_vlm_path(), folder)
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    if damage == "folder gone":
        shutil.rmtree(folder)
    else:
        for path in folder.glob("tokenizer*"):
            path.unlink()
        if damage == "a broken one":
            (folder / "tokenizer.json").write_text("{")
    inputs = bundled_question()
    with apply_clasp(model) as handle:
        with pytest.warns(UserWarning) as caught:
            model.generate(**inputs, max_new_tokens=2)
            model(**inputs)
        [warning] = caught
        assert "no tokenizer was found on disk" in str(warning.message)
        assert "Pass processor= to apply_clasp()" in str(warning.message)
    assert handle.last is not None
    assert handle.last.categories == ("general",)


def test_given_categories_need_no_tokenizer_and_no_warning(
    model: LlavaForConditionalGeneration,
) -> None:
    with warnings.catch_warnings(), apply_clasp(model) as handle:
        warnings.simplefilter("error")
        model.generate(**one_prompt(), categories="ocr", max_new_tokens=2)
    assert handle.last.categories == ("ocr",)


def test_the_network_is_not_asked_for_a_tokenizer(
    model: LlavaForConditionalGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    def no_network(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network was asked")

    model.config._name_or_path = model.name_or_path = "nobody/has-this-model"
    monkeypatch.setattr(socket.socket, "connect", no_network)
    with apply_clasp(model) as handle, pytest.warns(UserWarning, match="no tokenizer"):
        model(**one_prompt())
    assert handle.last.categories == ("general",)


def test_calls_that_carry_no_images_are_routed_nowhere(
    model: LlavaForConditionalGeneration,
) -> None:
    with warnings.catch_warnings(), apply_clasp(model):
        warnings.simplefilter("error")
        model.generate(**prompts([1, 5, 7]), max_new_tokens=2)
