"""``clasp calibrate`` with models of every family: one encoding an image, and true answers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from processors import PROCESSORS
from running import SCENE

from clasp_kernels.calibrate import AnswerStore, Prepared, Question
from clasp_kernels.calibrate.store import AnswerKey
from clasp_kernels.cli.calibrate import Calibration, checked
from clasp_kernels.cli.calibrate_options import Settings
from clasp_kernels.cli.loading import LoadedModel, load_image, load_model
from clasp_kernels.cli.prompt import prepare
from clasp_kernels.models import ClaspHandle, apply_clasp
from clasp_kernels.policy import Schedule

#: Families that differ in everything: a grid and a projector, and packed patches in windows.
USUAL = ("llava", "qwen2_5_vl")
FAMILIES = [
    family if family in USUAL else pytest.param(family, marks=pytest.mark.deep)
    for family in PROCESSORS
]
BUDGETS = (3, 0.4)


@pytest.fixture(scope="module")
def model_of(checkpoint: Callable[[str], Path]) -> Callable[[str], LoadedModel]:
    return lambda family: load_model(str(checkpoint(family)), "cpu")


def questions_in(folder: Path) -> list[Question]:
    """Return two questions about one image, and between them one about another."""
    shutil.copy(SCENE, folder / "a.png")
    with Image.open(SCENE) as scene:
        scene.convert("RGB").rotate(90).resize((300, 100)).save(folder / "b.png")
    return [
        Question(number, folder / name, name, text, ("two",), category)
        for number, (name, text, category) in enumerate(
            [
                ("a.png", "what is in the picture", "counting"),
                ("b.png", "how many circles are there", "counting"),
                ("a.png", "how many circles are there", "general"),
            ]
        )
    ]


def calibration_in(folder: Path, loaded: LoadedModel, **changes: Any) -> Calibration:
    settings = Settings(
        data=folder / "data.jsonl",
        out=folder / "profile.json",
        **{
            "budgets": BUDGETS,
            "rules": ("clasp", "cdpruner"),
            "strategies": ("A",),
            "pivot_ratios": (0.0, 1.0),
            "scorer": "exact",
            "limit": None,
            "seed": 0,
            "max_new_tokens": 3,
            "batch_size": 3,
            **changes,
        },
    )
    return checked(loaded, settings, questions_in(folder), None)


def answers_of(calibration: Calibration, folder: Path) -> dict[AnswerKey, str]:
    with AnswerStore(folder, calibration.manifest) as store:
        calibration.sweep.run(calibration.questions, store)
        return dict(store.answers)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_a_patched_model_and_images_are_encoded_once(
    family: str, model_of: Callable[[str], LoadedModel], tmp_path: Path
) -> None:
    loaded = model_of(family)
    calibration = calibration_in(tmp_path, loaded)
    grid, questions = calibration.sweep.grid, calibration.questions
    encoded: list[int] = []
    tower = loaded.model.get_encoder(modality="image")
    tower.register_forward_pre_hook(lambda *_: encoded.append(1))
    found = answers_of(calibration, tmp_path / "store")
    times = len(encoded)
    cells = grid.cells("counting")
    assert len(cells) == 4  # the default, two pivot ratios, and another rule
    assert len(found) == len(questions) * len(BUDGETS) * len(cells)

    profile = grid.sweep_profile(["counting", "general"])
    calls: dict[str, int] = {}  # of the tower for one prompt with an image, which may have tiles
    with apply_clasp(loaded.model, budget=BUDGETS[1], profile=profile) as handle:
        for question in questions:
            prompt = prepare(loaded, handle.adapter, load_image(question.image), question.text)
            for cell in grid.cells(question.category or ""):
                encoded.clear()
                with torch.inference_mode():
                    ids = loaded.model.generate(
                        **prompt.inputs,
                        categories=[grid.category(question.category or "", cell)],
                        do_sample=False,
                        max_new_tokens=3,
                    )
                calls[question.image_hash] = len(encoded)
                new = ids[0, prompt.inputs["input_ids"].shape[1] :]
                answer = loaded.processor.decode(new, skip_special_tokens=True).strip()
                key = AnswerKey(question.key, str(BUDGETS[1]), cell.name)
                assert found[key] == answer, (question.text, cell.name)
    assert times == sum(calls.values())
    assert len(set(found.values())) > 1  # the test would see a wrong selection


def test_pixels_that_a_processor_makes_differently_are_encoded_again(
    model_of: Callable[[str], LoadedModel], tmp_path: Path
) -> None:
    loaded = model_of("llava")
    sweep = calibration_in(tmp_path, loaded).sweep
    questions = [replace(question, category="counting") for question in questions_in(tmp_path)[::2]]
    assert questions[0].image_hash == questions[1].image_hash

    def by_text(question: Question) -> Prepared:
        prepared = sweep.prepare(question)
        if question.text != questions[0].text:
            prepared.inputs["pixel_values"].mul_(-1)
        return prepared

    def answers(questions: list[Question], name: str) -> list[str]:
        with AnswerStore(tmp_path / name, {}) as store:
            replace(sweep, prepare=by_text).run(questions, store)
            return list(store.answers.values())

    apart = [replace(question, image_hash=question.text) for question in questions]
    assert answers(questions, "together") == answers(apart, "apart")


def test_an_encoded_image_needs_a_schedule_before_the_decoder(
    model_of: Callable[[str], LoadedModel],
) -> None:
    model = model_of("llava").model
    with (
        apply_clasp(model, schedule=Schedule({2: 4})) as handle,
        pytest.raises(ValueError, match=r"must be one before the decoder, got Schedule\(\{2: 4"),
    ):
        handle.on_encoded(None, 4)


def test_an_encoded_image_serves_a_schedule_inside_the_decoder(
    model_of: Callable[[str], LoadedModel], tmp_path: Path
) -> None:
    loaded = model_of("llava")
    first, second, _ = questions_in(tmp_path)

    def kept(handle: ClaspHandle, inputs: dict[str, Any]) -> list[Any]:
        loaded.model.generate(**inputs, do_sample=False, max_new_tokens=1)
        assert handle.last is not None
        return [stage.indices.tolist() for stage in handle.last.stages]

    with apply_clasp(loaded.model, schedule=Schedule({0: 6, 2: 4})) as handle:
        one, other = (
            prepare(loaded, handle.adapter, load_image(question.image), first.text).inputs
            for question in (first, second)
        )
        expected = kept(handle, one)
        assert [len(stage[0]) for stage in expected] == [6, 4]
        assert kept(handle, other) != expected
        with handle.on_encoded(handle.adapter.encode(loaded.model, one)):
            assert kept(handle, other) == expected


def test_a_run_that_goes_on_answers_as_one_that_was_not_stopped(
    model_of: Callable[[str], LoadedModel], tmp_path: Path
) -> None:
    loaded = model_of("llava")
    kind = type(loaded.model)
    calibration = calibration_in(tmp_path, loaded, batch_size=2)
    whole = answers_of(calibration, tmp_path / "whole")
    folder = tmp_path / "stopped"

    class Stop(Exception):
        pass

    def stop_after(count: int) -> Callable[[int], None]:
        def on_done(done: int) -> None:
            if done >= count:
                raise Stop

        return on_done

    total = calibration.sweep.size(calibration.questions)
    assert total == len(whole)
    for count in (1, total // 2, total - 1):
        with AnswerStore(folder, calibration.manifest) as store, pytest.raises(Stop):
            calibration.sweep.run(calibration.questions, store, stop_after(count))
    assert type(loaded.model) is kind  # it is not patched any more
    calls: list[int] = []
    with AnswerStore(folder, calibration.manifest) as store:
        calibration.sweep.run(calibration.questions, store, calls.append)
        assert store.answers == whole
    assert calls[-1] == total and calls == sorted(calls)
    lines = (folder / "answers.jsonl").read_text().splitlines()
    assert len(lines) == len(set(lines)) == total  # nothing was answered twice
    # Nothing is left to do, and so nothing is encoded.
    tower = loaded.model.get_encoder(modality="image")
    hook = tower.register_forward_pre_hook(lambda *_: pytest.fail("it was encoded again"))
    assert answers_of(calibration, folder) == whole
    hook.remove()
