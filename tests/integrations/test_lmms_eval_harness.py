"""Pruned models in lmms-eval itself: `make test-engines` installs it beside the environment."""

from __future__ import annotations

import base64
import importlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from harness_task import NAME, write_task
from PIL import Image
from processors import save_checkpoint
from real.settings import TASKS
from transformers import AutoProcessor, AutoTokenizer, LlavaForConditionalGeneration

from clasp_kernels import apply_clasp
from clasp_kernels.bundled import tiny_vlm_path
from clasp_kernels.cli.processor import load_processor
from clasp_kernels.integrations.lmms_eval.pruned import GenerationError
from clasp_kernels.policy import Schedule

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed: make test-engines")

from lmms_eval import models
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager

TINY = str(tiny_vlm_path())
ON_CPU = f"pretrained={TINY},dtype=float32,device_map=cpu"
QUESTIONS = 5


@pytest.fixture(scope="module")
def task(tmp_path_factory: Any) -> Path:
    """A folder with the task and its questions."""
    folder: Path = tmp_path_factory.mktemp("scenes")
    write_task(folder, QUESTIONS)
    return folder


@pytest.fixture(autouse=True)
def no_cache_of_others(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path / "cache"))


def load(name: str, model_args: str, simple: bool = False) -> Any:
    return models.get_model(name, force_simple=simple).create_from_arg_string(
        model_args, {"batch_size": 1, "device": "cpu"}
    )


def evaluated(model: Any, task: Path) -> tuple[float, list[str]]:
    """Return the accuracy and the answers, in the order of the questions."""
    manager = TaskManager("ERROR", include_path=str(task), include_defaults=False)
    results = simple_evaluate(model, tasks=[NAME], task_manager=manager, bootstrap_iters=0)
    samples = sorted(results["samples"][NAME], key=lambda sample: sample["doc_id"])
    answers = [sample["filtered_resps"][0] for sample in samples]
    return results["results"][NAME]["exact_match,none"], answers


def our_answers(task: Path, **settings: Any) -> tuple[float, list[str]]:
    """Return the same with `generate`, without the harness."""
    model = LlavaForConditionalGeneration.from_pretrained(TINY)
    processor = AutoProcessor.from_pretrained(TINY)
    if settings:
        apply_clasp(model, **settings)
    answers, right = [], []
    for line in (task / "questions.jsonl").read_text().splitlines():
        asked = json.loads(line)
        prompt = f"USER: <image>\n{asked['question']} ASSISTANT:"
        inputs = processor(images=Image.open(asked["image"]), text=prompt, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=5)
        answer = processor.decode(
            output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        answers.append(answer)
        right.append(answer.strip() == asked["answer"])
    return sum(right) / len(right), answers


def test_the_harness_finds_the_models_by_name() -> None:
    names = {"clasp_llava_hf", "clasp_qwen2_5_vl", "clasp_qwen3_vl"}
    assert names <= set(models.list_available_models())
    for name in names:
        own = name.removeprefix("clasp_")
        for simple in (False, True):
            pruned = models.get_model(name, force_simple=simple)
            assert issubclass(pruned, models.get_model(own, force_simple=simple))
            assert pruned.is_simple == simple


def test_the_tables_name_tasks_and_metrics_of_the_harness() -> None:
    index = TaskManager("ERROR").task_index
    for name, table_task in TASKS.items():
        if name != NAME:  # the local one
            described = Path(index[name]["yaml_path"]).read_text()
            for metric in table_task.metrics:
                assert f"metric: {metric}\n" in described, (name, metric)


@pytest.mark.parametrize(
    ("simple", "args", "settings", "kept"),
    [
        (False, "budget=36", {"budget": 36}, [36]),
        (False, "schedule=2:48/4:8", {"schedule": Schedule({2: 48, 4: 8})}, [48, 8]),
        (True, "budget=0.1,rule=divprune", {"budget": 0.1, "rule": "divprune"}, [14]),
    ],
    ids=["chat-budget", "chat-schedule", "simple-rule"],
)
def test_a_task_is_answered_as_by_our_own_generate(
    simple: bool, args: str, settings: Any, kept: list[int], task: Path
) -> None:
    model = load("clasp_llava_hf", f"{ON_CPU},{args}", simple)
    handle = model.handle
    accuracy, answers = evaluated(model, task)
    assert (accuracy, answers) == our_answers(task, **settings)
    assert [stage.tokens_after for stage in handle.last.stages] == kept


def test_pruning_changes_answers_of_the_harness_s_own_model(task: Path) -> None:
    accuracy, answers = evaluated(load("llava_hf", ON_CPU), task)
    assert (accuracy, answers) == our_answers(task)
    _, pruned = evaluated(load("clasp_llava_hf", f"{ON_CPU},budget=1"), task)
    assert len(pruned) == QUESTIONS and pruned != answers
    _, whole = evaluated(load("clasp_llava_hf", f"{ON_CPU},budget=1.0"), task)
    assert whole == answers


def test_an_error_ends_the_evaluation_instead_of_scoring_nothing(task: Path) -> None:
    model = load("clasp_llava_hf", f"{ON_CPU},budget=36")

    def fail(choice: Any) -> None:
        raise RuntimeError("out of memory")

    with (
        model.handle.watched(fail),
        pytest.raises(GenerationError, match="generate failed: out of memory"),
    ):
        evaluated(model, task)


def test_llava_next_is_pruned(task: Path, tmp_path: Path) -> None:
    save_checkpoint("llava_next", tmp_path)
    model = load("clasp_llava_hf", f"pretrained={tmp_path},device_map=cpu,budget=20")
    handle = model.handle
    _, answers = evaluated(model, task)
    assert len(answers) == QUESTIONS
    [stage] = handle.last.stages
    assert stage.tokens_before > stage.tokens_after == 20


def images_of(conversations: Any, return_video_kwargs: bool = False, **_: Any) -> Any:
    """Stand for ``qwen_vl_utils.process_vision_info``, which imports torchvision, without
    videos."""
    images = []
    for messages in conversations:
        for message in messages:
            if isinstance(message["content"], str):
                continue
            for part in message["content"]:
                if part["type"] == "image" and isinstance(part["image"], str):
                    data = base64.b64decode(part["image"].partition("base64,")[2])
                    images.append(Image.open(io.BytesIO(data)))
                elif part["type"] == "image":
                    images.append(part["image"])
    images = [image.resize((32, 32)) for image in images]
    return (images, None, {}) if return_video_kwargs else (images, None)


@pytest.mark.parametrize("simple", [False, True], ids=["chat", "simple"])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_qwen_is_pruned(
    family: str, simple: bool, task: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    save_checkpoint(family, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.eos_token = "<s>"
    tokenizer.save_pretrained(tmp_path)
    # transformers loads this processor with torchvision, and so without videos here.
    own = importlib.import_module(f"lmms_eval.models.simple.{family}")
    monkeypatch.setattr(
        own.AutoProcessor, "from_pretrained", lambda name, **_: load_processor(name)
    )
    for form in ("simple", "chat"):
        module = importlib.import_module(f"lmms_eval.models.{form}.{family}")
        monkeypatch.setattr(module, "process_vision_info", images_of)

    args = f"pretrained={tmp_path},device_map=cpu,budget=0.25,rule=uniform"
    model = load(f"clasp_{family}", args, simple)
    handle = model.handle
    _, answers = evaluated(model, task)
    assert len(answers) == QUESTIONS
    [stage] = handle.last.stages
    assert (stage.tokens_before, stage.tokens_after) == (16, 4)
