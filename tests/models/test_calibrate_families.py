"""``clasp calibrate`` with models of every family: one encoding an image, and true answers."""

from __future__ import annotations

import re
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

from clasp_kernels.calibrate import AnswerStore, Prepared, Question, Sweep
from clasp_kernels.calibrate.store import AnswerKey
from clasp_kernels.cli.calibrate import Calibration, checked
from clasp_kernels.cli.calibrate_options import Settings
from clasp_kernels.cli.calibrate_stages import applied
from clasp_kernels.cli.errors import CommandError, UsageError
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
#: One family for each way in which prompts differ inside the decoder, stages, and a mean that every
#: image can have there.
INSIDE = [
    ("llava", (0, 2), 9),  # mixtures of vision layers matter
    ("qwen3_vl", (2, 3), 45),  # images of other sizes, and features added inside the decoder
    pytest.param("smolvlm", (2,), 7, marks=pytest.mark.deep),  # several images in a prompt
    pytest.param("llava_next", (1, 3), 60, marks=pytest.mark.deep),  # separators between tokens
    pytest.param("gemma3", (2, 3), 7, marks=pytest.mark.deep),  # two kinds of masks
]


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
            "stages": (0,),
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


@pytest.mark.parametrize(("family", "stages", "count"), INSIDE)
def test_inside_the_decoder_answers_are_those_of_a_model_patched_for_the_mean(
    family: str,
    stages: tuple[int, ...],
    count: int,
    model_of: Callable[[str], LoadedModel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded, budgets = model_of(family), (count, 0.8)
    strategies = ("A",) if 0 in stages else None
    calibration = calibration_in(
        tmp_path, loaded, stages=stages, budgets=budgets, strategies=strategies
    )
    grid, questions = calibration.sweep.grid, calibration.questions
    answers, kept_by_rows = Sweep._answers, []

    def watched(sweep: Sweep, handle: ClaspHandle, *arguments: Any) -> list[str]:
        found = answers(sweep, handle, *arguments)
        assert handle.last is not None
        assert tuple(stage.layer or 0 for stage in handle.last.stages) == stages
        by_stage = []
        for stage in handle.last.stages:
            counts = torch.tensor(stage.counts).view(len(found), -1)  # [rows, images]
            assert (counts == counts[0]).all() and (stage.columns >= 0).all()
            by_stage.append(stage.indices.view(*counts.shape, -1).tolist())
        kept_by_rows.extend(map(list, zip(*by_stage, strict=True)))
        return found

    monkeypatch.setattr(Sweep, "_answers", watched)
    encoded: list[int] = []
    tower = loaded.model.get_encoder(modality="image")
    hook = tower.register_forward_pre_hook(lambda *_: encoded.append(1))
    found = answers_of(calibration, tmp_path / "store")
    times = len(encoded)
    kept = dict(zip(found, kept_by_rows, strict=True))
    assert len(set(map(str, kept.values()))) > len(questions) * len(budgets)  # cells differ

    profile = grid.sweep_profile(["counting", "general"])
    num_layers = loaded.model.config.get_text_config().num_hidden_layers
    adapter = applied(loaded, None).adapter
    calls: dict[str, int] = {}
    compared = 0
    for question in questions:
        prompt = prepare(loaded, adapter, load_image(question.image), question.text)
        for budget in budgets:
            schedule = Schedule.progressive(budget, stages, num_layers, prompt.counts[0])
            mean = schedule.average(prompt.counts[0], num_layers)
            assert abs(mean - budget * (prompt.counts[0] if budget is budgets[1] else 1)) <= 0.5
            with apply_clasp(loaded.model, schedule=schedule, profile=profile) as handle:
                for cell in grid.cells(question.category or ""):
                    encoded.clear()
                    ids = loaded.model.generate(
                        **prompt.inputs,
                        categories=[grid.category(question.category or "", cell)],
                        do_sample=False,
                        max_new_tokens=3,
                    )
                    calls[question.image_hash] = len(encoded)
                    new = ids[0, prompt.inputs["input_ids"].shape[1] :]
                    answer = loaded.processor.decode(new, skip_special_tokens=True).strip()
                    key = AnswerKey(question.key, str(budget), cell.name)
                    assert found[key] == answer, (question.text, budget, cell.name)
                    assert handle.last is not None
                    stages_alone = [stage.indices.tolist() for stage in handle.last.stages]
                    assert kept[key] == stages_alone, (question.text, budget, cell.name)
                    compared += 1
    hook.remove()
    assert compared == len(found) == len(questions) * len(budgets) * 4
    assert times == sum(calls.values())


def test_a_mean_that_an_image_cannot_have_is_named_with_the_line(
    model_of: Callable[[str], LoadedModel], tmp_path: Path
) -> None:
    settings = {"stages": (2,), "budgets": (30, 0.6), "strategies": None}
    with pytest.raises(UsageError) as refused:
        calibration_in(tmp_path, model_of("qwen3_vl"), **settings)
    message = str(refused.value)
    assert (
        "line 0: --budgets 30 with --stages 2: average must be in 33..63 visual tokens" in message
    )
    assert "line 2: " in message and "line 1: " not in message  # its mean may be 27 to 51


def test_a_decoder_that_cannot_drop_tokens_inside_is_refused_as_elsewhere(
    model_of: Callable[[str], LoadedModel], tmp_path: Path
) -> None:
    loaded = model_of("qwen3_5")
    with pytest.raises(ValueError, match="layers of linear_attention cannot be pruned") as refused:
        apply_clasp(loaded.model, schedule=Schedule({2: 0.5}))
    with pytest.raises(CommandError, match=re.escape(str(refused.value))):
        calibration_in(tmp_path, loaded, stages=(2,), budgets=(0.8,), strategies=None)


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


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        (Schedule.input(4), r"same decoder layers as Schedule\(\{2: 4\}\), .* Schedule\(\{0: 4"),
        (Schedule.progressive(20, (2,), 4, 30), "solved for 30 visual tokens in 4 decoder layers"),
    ],
)
def test_an_encoded_image_needs_a_schedule_that_the_model_was_patched_for(
    schedule: Schedule, said: str, model_of: Callable[[str], LoadedModel]
) -> None:
    model = model_of("llava").model
    with (
        apply_clasp(model, schedule=Schedule({2: 4})) as handle,
        pytest.raises(ValueError, match=said),
    ):
        handle.on_encoded(None, schedule)


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
        vision = handle.adapter.encode(loaded.model, one)
        with handle.on_encoded(vision):
            assert kept(handle, other) == expected
        with handle.on_encoded(vision, Schedule({0: 5, 2: 3})):
            assert [len(stage[0]) for stage in kept(handle, other)] == [5, 3]
        assert kept(handle, one) == expected  # the schedule was for the block alone


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
