"""Pruned models for lmms-eval, with a stand-in for the harness's own model.

``test_lmms_eval_harness.py`` has the tests with the harness.
"""

from __future__ import annotations

import gc
import importlib
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from clasp_kernels import apply_clasp
from clasp_kernels.bundled import tiny_vlm_path
from clasp_kernels.integrations.lmms_eval.pruned import GenerationError, Pruned
from clasp_kernels.policy import Profile, Schedule

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
TINY = str(tiny_vlm_path())
PROMPT = "USER: <image>\nHow many circles are there? ASSISTANT:"


class HarnessModel:
    """Stands for a model of the harness: it loads weights and refuses unknown arguments."""

    loaded = 0

    def __init__(self, pretrained: str = TINY, device: str = "cpu", **kwargs: Any) -> None:
        assert kwargs == {}, f"Unexpected kwargs: {kwargs}"
        HarnessModel.loaded += 1
        self._model = LlavaForConditionalGeneration.from_pretrained(pretrained).to(device)
        self.processor = AutoProcessor.from_pretrained(pretrained)

    @property
    def model(self) -> Any:
        return self._model

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    def clean(self) -> None:
        del self._model


class PrunedModel(Pruned, HarnessModel):
    pass


def inputs() -> Any:
    scene = Image.open(tiny_vlm_path().parent / "demo" / "scene_1.png")
    return AutoProcessor.from_pretrained(TINY)(images=scene, text=PROMPT, return_tensors="pt")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"budget": 16}, {"budget": 16}),
        ({"budget": 0.25, "rule": "divprune"}, {"budget": 0.25, "rule": "divprune"}),
        ({"schedule": "2:48/4:8"}, {"schedule": Schedule({2: 48, 4: 8})}),
        ({"schedule": "2:0.5"}, {"schedule": Schedule({2: 0.5})}),
        (
            {"budget": 16, "merge": True, "positions": "compact"},
            {"budget": 16, "merge": True, "positions": "compact"},
        ),
    ],
)
def test_model_args_prune_as_apply_clasp_does(given: Any, meant: Any) -> None:
    ours = LlavaForConditionalGeneration.from_pretrained(TINY)
    handle = apply_clasp(ours, **meant)
    expected = ours.generate(**inputs(), max_new_tokens=4)

    harness = PrunedModel(device="cpu", **given)
    assert torch.equal(harness.model.generate(**inputs(), max_new_tokens=4), expected)
    assert harness.handle.last is not None and handle.last is not None
    stages = [stage.indices.tolist() for stage in harness.handle.last.stages]
    assert stages == [stage.indices.tolist() for stage in handle.last.stages]
    assert harness.handle.last.categories == ("counting",)


def test_the_tokenizer_of_the_harness_reads_the_prompts(monkeypatch: Any) -> None:
    harness = PrunedModel(budget=16)
    read = []
    decode = harness.tokenizer.decode

    def decode_and_note(ids: Any, **kwargs: Any) -> Any:
        read.append(decode(ids, **kwargs))
        return read[-1]

    monkeypatch.setattr(harness.tokenizer, "decode", decode_and_note)
    harness.model.generate(**inputs(), max_new_tokens=1)
    assert any("How many circles" in text for text in read)


def test_a_profile_is_a_path(tmp_path: Path) -> None:
    profile = Profile.for_model_type("llava")
    profile.save(tmp_path / "mine.json")
    assert PrunedModel(budget=16, profile=str(tmp_path / "mine.json")).handle.profile == profile
    assert PrunedModel(budget=16).handle.profile == Profile.load(f"{TINY}/clasp_profile.json")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "budget or schedule must be in model_args"),
        ({"budget": 0}, "budget must be at least 1"),
        ({"budget": 1.5}, "budget as a float"),
        ({"budget": "few"}, "budget must be an int"),
        ({"budget": 16, "rule": "best"}, "rule must be 'clasp' or .* got 'best'"),
        ({"budget": 16, "profile": "absent.json"}, "absent.json"),
        ({"budget": 16, "profile": 7}, "profile must be the path of a JSON file, got 7"),
        ({"budget": 16, "positions": "new"}, "positions must be"),
        ({"budget": 16, "merge": "yes"}, "merge must be True or False"),
        ({"budget": 16, "bugdet": 8}, "Unexpected kwargs: {'bugdet': 8}"),
        ({"schedule": "2:48,4:8"}, "with / between stages, like .* got '2:48,4:8'"),
        ({"schedule": 64}, "with / between stages, like .* got 64"),
        ({"schedule": "2:8/4:48"}, "tokens kept must fall"),
        ({"schedule": "2:48/6:8"}, "the model has 6"),
        ({"schedule": "2:48/4:8", "merge": True}, "merge must be False"),
    ],
)
def test_a_wrong_argument_is_an_error_before_weights_are_loaded(given: Any, message: str) -> None:
    before = HarnessModel.loaded
    with pytest.raises((ValueError, TypeError, OSError, AssertionError), match=message):
        PrunedModel(**given)
    assert HarnessModel.loaded == before


def test_a_profile_of_another_family_is_an_error_before_weights_are_loaded(tmp_path: Path) -> None:
    before = HarnessModel.loaded
    Profile.for_model_type("qwen2_5_vl").save(tmp_path / "qwen.json")
    with pytest.raises(ValueError, match="is for 'qwen2_5_vl' models"):
        PrunedModel(budget=16, profile=str(tmp_path / "qwen.json"))
    assert HarnessModel.loaded == before


def test_an_error_in_generate_gets_past_a_harness_that_catches_exceptions() -> None:
    harness = PrunedModel(budget=16)
    given = dict(inputs())
    given["pixel_values"] = given["pixel_values"].repeat(2, 1, 1, 1)
    with pytest.raises(GenerationError, match=r"generate failed: .*image") as raised:
        try:
            harness.model.generate(**given, max_new_tokens=1)
        except Exception:
            pytest.fail("the harness would score an empty answer")
    assert isinstance(raised.value.__cause__, ValueError)


def test_a_cleaned_model_leaves_memory() -> None:
    harness = PrunedModel(budget=16)
    harness.model.generate(**inputs(), max_new_tokens=1)
    model = weakref.ref(harness.model)
    harness.clean()
    gc.collect()
    assert model() is None


def test_the_entry_point_leads_to_a_function() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [target] = project["entry-points"]["lmms_eval.models"].values()
    module, _, name = target.partition(":")
    assert callable(getattr(importlib.import_module(module), name))
