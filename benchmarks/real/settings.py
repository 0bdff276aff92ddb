"""The models, benchmarks, budgets and methods of the tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from clasp_kernels.bundled import tiny_vlm_path
from clasp_kernels.policy import Schedule
from clasp_kernels.rules import rule_names


@dataclass(frozen=True)
class Task:
    """A task of the harness and how its score is read."""

    label: str
    metrics: tuple[str, ...]
    """Names in the harness's results; the score is their sum."""
    percent: bool = True
    """Whether the harness gives a fraction, which the table shows in percent."""


# By the harness's name.
TASKS = {
    "gqa": Task("GQA", ("exact_match",)),
    "mmbench_en_dev_static": Task("MMBench", ("gpt_eval_score",), percent=False),
    "mme": Task("MME", ("mme_perception_score", "mme_cognition_score"), percent=False),
    "mmvet": Task("MM-Vet", ("gpt_eval_score",), percent=False),
    "pope": Task("POPE", ("pope_accuracy",)),
    "scienceqa_img": Task("ScienceQA", ("exact_match",)),
    "seedbench": Task("SEED", ("seed_image",)),
    "textvqa_val": Task("TextVQA", ("exact_match",)),
    "vizwiz_vqa_val": Task("VizWiz", ("exact_match",)),
    "vqav2_val": Task("VQAv2", ("exact_match",)),
    "clasp_scenes": Task("scenes", ("exact_match",)),
}
# MM-Vet is left out because a GPT judges its answers, and VQAv2 because a row takes a day.
USUAL_TASKS = (
    "gqa",
    "mmbench_en_dev_static",
    "mme",
    "pope",
    "scienceqa_img",
    "seedbench",
    "textvqa_val",
    "vizwiz_vqa_val",
)


@dataclass(frozen=True)
class Model:
    """A model, and the budgets at which it is pruned."""

    pretrained: str
    harness: str
    """The harness's model; with clasp_ before its name, the pruned one."""
    budgets: tuple[int | float, ...]
    """Visual tokens kept per image, or the fraction kept if images differ in tokens."""
    num_layers: int
    """Decoder layers."""
    num_tokens: int = 1
    """Visual tokens per image, to solve for the counts of a schedule; 1 for fractions."""
    stages: tuple[int, ...] = (2, 6, 15)
    tasks: tuple[str, ...] = USUAL_TASKS
    model_args: str = ""
    in_paper: bool = True


# The fractions are those of 66.7, 77.8 and 88.9 % pruned.
_THIRD_TO_NINTH = (0.3333, 0.2222, 0.1111)
MODELS = {
    "llava-1.5-7b": Model(
        "llava-hf/llava-1.5-7b-hf", "llava_hf", (192, 128, 64), num_layers=32, num_tokens=576
    ),
    "llava-next-7b": Model(
        "llava-hf/llava-v1.6-vicuna-7b-hf", "llava_hf", (320,), num_layers=32, num_tokens=2880
    ),
    "qwen2.5-vl-7b": Model(
        "Qwen/Qwen2.5-VL-7B-Instruct", "qwen2_5_vl", _THIRD_TO_NINTH, num_layers=28
    ),
    "qwen3-vl-8b": Model(
        "Qwen/Qwen3-VL-8B-Instruct", "qwen3_vl", _THIRD_TO_NINTH, num_layers=36, in_paper=False
    ),
    "bundled": Model(
        str(tiny_vlm_path()),
        "llava_hf",
        (72, 36),
        num_layers=6,
        num_tokens=144,
        stages=(1, 3),
        tasks=("clasp_scenes",),
        model_args="dtype=float32",
        in_paper=False,
    ),
}


@dataclass(frozen=True)
class Row:
    """A row of a table: one method at one budget."""

    budget: int | float | None
    """None if nothing is pruned."""
    method: str
    harness: str
    """The harness's model."""
    model_args: str
    """The part of ``--model_args`` about pruning."""

    @property
    def name(self) -> str:
        """The name of the row's folder."""
        method = self.method.replace(" ", "-")
        return method if self.budget is None else f"{self.budget}-{method}"


def rows(model: Model) -> Iterator[Row]:
    """Yield the unpruned model, then for each budget CLASP inside the decoder, and every rule
    before it.

    A schedule's mean over the decoder layers is the budget, as in the paper.
    """
    yield Row(None, "unpruned", model.harness, "")
    pruned = f"clasp_{model.harness}"
    for budget in model.budgets:
        schedule = Schedule.progressive(budget, model.stages, model.num_layers, model.num_tokens)
        stages = str(schedule).replace(",", "/")
        yield Row(budget, "clasp inside", pruned, f"schedule={stages}")
        for rule in rule_names():
            yield Row(budget, rule, pruned, f"budget={budget},rule={rule}")
