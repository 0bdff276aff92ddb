"""The bundled model sees: with its image, and with a fraction of its visual tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluate import generate_answers, heldout_examples, prepare, score
from model import PROMPT
from transformers import AutoModelForImageTextToText, AutoProcessor
from words import CATEGORIES

from clasp_kernels.bundled import tiny_vlm_path
from clasp_kernels.models import apply_clasp
from clasp_kernels.policy import Profile

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "cpu"
EXAMPLES = heldout_examples(6)


@pytest.fixture(scope="module")
def bundled() -> tuple[Any, Any]:
    path = tiny_vlm_path()
    return (
        AutoModelForImageTextToText.from_pretrained(path).eval(),
        AutoProcessor.from_pretrained(path),
    )


def overall(bundled: tuple[Any, Any], batches: list[Any]) -> float:
    return score(EXAMPLES, generate_answers(*bundled, batches)).overall


def test_it_is_a_small_llava_with_all_its_parts(bundled: tuple[Any, Any]) -> None:
    config = bundled[0].config
    assert config.model_type == "llava"
    assert config.vision_config.model_type == "clip_vision_model"
    assert config.vision_config.num_hidden_layers >= 5
    assert config.text_config.model_type == "llama"
    assert config.text_config.num_hidden_layers >= 6
    assert config.image_seq_length >= 144
    files = list(Path(tiny_vlm_path()).iterdir())
    assert sum(file.stat().st_size for file in files) <= 8_000_000
    assert [file.name for file in files if file.suffix == ".safetensors"] == ["model.safetensors"]


def test_it_answers_what_it_sees(bundled: tuple[Any, Any]) -> None:
    seen = overall(bundled, prepare(bundled[1], EXAMPLES))
    assert seen >= 0.85
    assert overall(bundled, prepare(bundled[1], EXAMPLES, lambda scene: None)) <= seen - 0.4


def test_pruning_by_its_profile_beats_random_tokens(bundled: tuple[Any, Any]) -> None:
    model, processor = bundled
    batches = prepare(processor, EXAMPLES)
    kept = {}
    for rule in ("clasp", "random"):
        with apply_clasp(model, budget=24, rule=rule, processor=processor) as handle:
            assert handle.profile.name == "tiny_vlm"
            kept[rule] = overall(bundled, batches)
            assert handle.last is not None
            assert handle.last.stages[0].tokens_after == 24
    assert kept["clasp"] >= kept["random"] + 0.1


def test_the_profile_says_where_its_values_come_from() -> None:
    profile = Profile.load(tiny_vlm_path() / "clasp_profile.json")
    assert "this project's own" in profile.source
    assert {*CATEGORIES, "general"} <= set(profile.categories)


def test_the_card_says_what_was_measured() -> None:
    report = json.loads((RESULTS / "tiny_vlm_accuracy.json").read_text())
    assert report["questions"] >= 2000
    columns = ("image", "no image", "grey image", "most frequent answer")
    card = (tiny_vlm_path() / "README.md").read_text()
    for row in ("overall", *CATEGORIES):
        values = [
            report["accuracy"][column]["overall"]
            if row == "overall"
            else report["accuracy"][column]["by_category"][row]
            for column in columns
        ]
        assert f"| {row} | " + " | ".join(f"{value:.3f}" for value in values) + " |" in card


def test_every_category_beats_the_blind_model_by_20_points() -> None:
    accuracy = json.loads((RESULTS / "tiny_vlm_accuracy.json").read_text())["accuracy"]
    assert accuracy["image"]["overall"] >= 0.85
    for category in CATEGORIES:
        blind = max(
            accuracy[column]["by_category"][category] for column in accuracy if column != "image"
        )
        assert accuracy["image"]["by_category"][category] >= blind + 0.2, category


def test_generation_stops_by_itself(bundled: tuple[Any, Any]) -> None:
    model, processor = bundled
    scene, question = EXAMPLES[0]
    inputs = processor(
        images=scene.render(96),
        text=PROMPT.format(question=question.text),
        return_tensors="pt",
    )
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=20)
    assert output.shape[1] - inputs["input_ids"].shape[1] <= 4
    assert output[0, -1] == processor.tokenizer.eos_token_id
