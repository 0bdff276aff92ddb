"""Rows of ``clasp batch`` with models of every family: alone, and in batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from processors import PROCESSORS
from running import SCENE

from clasp_kernels.batch import Row
from clasp_kernels.batch.work import in_batches
from clasp_kernels.cli.batch_model import ModelAnswerer, applied, collated
from clasp_kernels.cli.batch_options import ModelSettings
from clasp_kernels.cli.loading import LoadedModel, load_model, load_skeleton

#: Families that differ in everything: a grid and a projector, and packed patches in windows.
USUAL = ("llava", "qwen2_5_vl")
FAMILIES = [
    family if family in USUAL else pytest.param(family, marks=pytest.mark.deep)
    for family in PROCESSORS
]
#: Of different lengths and categories. The tiny models' tokenizers know these words alone.
QUESTIONS = [
    "what is in the picture",
    "how many circles are there",
    "what is it",
    "where is the circles on the picture and what is it",
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return three pictures of one shape and one of another."""
    folder = tmp_path_factory.mktemp("pictures")
    with Image.open(SCENE) as scene:
        for number, size in enumerate([(120, 120), (120, 120), (120, 120), (300, 100)]):
            scene.convert("RGB").rotate(90 * number).resize(size).save(folder / f"{number}.png")
    return [folder / f"{number}.png" for number in range(4)]


def answerer(loaded: LoadedModel, **settings: Any) -> ModelAnswerer:
    given = {"rule": None, "budget": None, "schedule": None, "profile": None, **settings}
    return ModelAnswerer(loaded, applied(loaded, ModelSettings(None, max_new_tokens=4, **given)), 4)


def rows(pictures: list[Path]) -> list[Row]:
    return [
        Row(number, str(picture), picture, question)
        for number, (picture, question) in enumerate(zip(pictures, QUESTIONS, strict=True))
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_a_batch_are_answered_as_alone(
    family: str, checkpoint: Any, pictures: list[Path]
) -> None:
    model = answerer(load_model(str(checkpoint(family)), "cpu"), budget=0.4)
    ready = [(row, model.prepare(row)) for row in rows(pictures)]
    alone = {row.position: model.answer([prepared])[0] for row, prepared in ready}
    batches = list(in_batches(ready, 4))
    assert len(batches) < len(ready)
    assert max(len({prepared.category for _, prepared in batch}) for batch in batches) > 1
    for batch in batches:
        answers = model.answer([prepared for _, prepared in batch])
        assert answers == [alone[row.position] for row, _ in batch]
        last = model._handle.last
        assert last is not None
        assert list(last.categories) == [prepared.category for _, prepared in batch]
    for row, prepared in ready:
        assert alone[row.position].tokens_after < prepared.tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_is_what_the_processor_makes_of_its_rows(
    family: str, checkpoint: Any, pictures: list[Path]
) -> None:
    loaded = load_model(str(checkpoint(family)), "cpu")
    model = answerer(loaded)
    three = [model.prepare(row) for row in rows(pictures)[:3]]
    assert len({prepared.kind for prepared in three}) == 1
    tokenizer = loaded.processor.tokenizer
    ours = collated(
        [prepared.inputs[0] for prepared in three],
        model._handle.adapter.visual_arguments,
        tokenizer.pad_token_id,
    )
    texts = [
        loaded.processor.apply_chat_template(
            [
                {
                    "role": "user",
                    "content": [{"type": "image"}, {"type": "text", "text": question}],
                }
            ],
            add_generation_prompt=True,
        )
        for question in QUESTIONS[:3]
    ]
    tokenizer.padding_side = "left"
    theirs = loaded.processor(
        images=[[Image.open(picture)] for picture in pictures[:3]],
        text=texts,
        padding=True,
        return_tensors="pt",
    )
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(ours[name], value), name
        else:
            assert list(ours[name]) == list(value), name


def test_without_weights_a_model_prepares_the_same(checkpoint: Any, pictures: list[Path]) -> None:
    folder = str(checkpoint("qwen2_5_vl"))
    with_weights, without = (
        answerer(load(folder)).prepare(rows(pictures)[3])
        for load in (lambda name: load_model(name, "cpu"), load_skeleton)
    )
    assert (with_weights.length, with_weights.kind, with_weights.tokens) == (
        without.length,
        without.kind,
        without.tokens,
    )


def test_what_follows_the_end_of_an_answer_is_not_part_of_it(checkpoint: Any) -> None:
    loaded = load_model(str(checkpoint("llava")), "cpu")
    model = answerer(loaded)
    words = loaded.processor.tokenizer("what is it")["input_ids"]
    loaded.model.generation_config.eos_token_id = [words[-1], 99999]
    assert model._text(torch.tensor([*words, *words])) == model._text(torch.tensor(words))


def test_an_answerer_explains_what_it_met() -> None:
    model = ModelAnswerer(None, None, 1)  # type: ignore[arg-type]
    assert model.explain(MemoryError()) == "out of memory, for this row alone: MemoryError"
    assert model.explain(KeyError("x")) == "KeyError: 'x'"


def test_settings_can_be_sent_to_other_processes(checkpoint: Any) -> None:
    import pickle

    from clasp_kernels.policy import Profile, Schedule

    settings = ModelSettings(
        None, Profile.for_model_type("llava"), "clasp", None, Schedule({2: 8}), 1
    )
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert json.dumps(settings.profile.to_dict())  # type: ignore[union-attr]
