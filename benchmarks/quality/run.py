"""Run every row, resume what was stopped, and write the results."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from evaluate import Example, frequent_answers
from seeds import PROFILE as PROFILE_SEED
from seeds import RECIPE
from tqdm import tqdm

from clasp_kernels.calibrate.store import AnswerKey, AnswerStore, OtherCalibration
from clasp_kernels.policy import Profile
from quality.names import FREQUENT, NUM_TOKENS, TIMED_BATCH, TIMES
from quality.page import page, read_times
from quality.picture import draw_picture
from quality.questions import FIRST_SEED, digest, draw, labels, num_cells
from quality.records import (
    QUESTIONS,
    correct_path,
    mean_of,
    read_correct,
    with_random,
    write_correct,
    write_labels,
)
from quality.report import judged_bed
from quality.rows import RULES, Choices, Row, choose, rows, training_rows
from quality.times import interleaved

if TYPE_CHECKING:
    from quality.answering import Answerer

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "quality"
PROFILE = "clasp_profile.json"
ROWS = "rows.json"
PACKAGES = ("torch", "transformers")
MIN_QUESTIONS = 5000


@dataclass(frozen=True)
class Job:
    """The answers of one row at one budget, to all questions of a split."""

    split: str
    row: Row
    budget: int

    @property
    def key(self) -> AnswerKey:
        return AnswerKey(self.split, str(self.budget), self.row.name)


@dataclass(frozen=True)
class Model:
    """A model, and the numbers of questions that it is asked."""

    folder: Path
    profile: Profile
    per_cell: dict[str, int]
    """The number of questions in each cell, by split."""

    @property
    def name(self) -> str:
        return self.folder.resolve().name


def jobs(split: str, of: Sequence[Row]) -> list[Job]:
    """Return the jobs of rows, the longest first, so that processes end together."""
    found = [Job(split, row, budget) for row in of for budget in row.budgets]
    return sorted(found, key=lambda job: -job.budget)


_answerers: dict[str, Answerer] = {}
"""The answerer that this process has loaded, by its split."""


def start(threads: int) -> None:
    """Prepare a worker process."""
    import torch

    torch.set_num_threads(threads)


def answer(model: Model, job: Job) -> str:
    """Run a job in a worker process. Return its answers, as JSON."""
    from quality.answering import Answerer

    split = job.split
    if split not in _answerers:
        _answerers.clear()  # one split's images are in memory at a time
        _answerers[split] = Answerer(model.folder, model.profile, split, model.per_cell[split])
    return json.dumps(_answerers[split].answers(job.row, job.budget))


def run_jobs(
    wanted: Sequence[Job], store: AnswerStore, of: Callable[[Job], Any], workers: Any
) -> None:
    """Run the jobs that the store lacks. A kill loses those that are running."""
    missing = [job for job in wanted if job.key not in store.answers]
    with tqdm(total=len(wanted), initial=len(wanted) - len(missing), desc=wanted[0].split) as bar:
        futures = {workers.submit(of, job): job for job in missing}
        for future in as_completed(futures):
            store.add([(futures[future].key, future.result())])
            bar.update()


def measured(model: Model, folder: Path, workers: int) -> tuple[Any, AnswerStore]:
    """Run every row of a model. Return what was chosen and the store with all answers."""
    examples = {split: draw(split, count) for split, count in model.per_cell.items()}
    manifest = {
        "weights": sha256((model.folder / "model.safetensors").read_bytes()).hexdigest(),
        "profile": sha256(repr(model.profile).encode()).hexdigest(),
        "questions": {split: digest(each) for split, each in examples.items()},
        "versions": versions(),
    }
    with AnswerStore(folder, manifest) as store:
        ask = partial(answer, model)
        with _pool(workers) as pool:
            run_jobs(jobs("train", training_rows(model.profile)), store, ask, pool)
            found = choose(model.profile, _accuracy(store, "train", examples["train"]))
            run_jobs(jobs("heldout", rows(model.profile, found)), store, ask, pool)
    return found, store


def timed(model: Model, choices: Choices, rounds: int) -> dict[str, Any]:
    """Time the selection of every row in a worker process. Return the content of `times.json`."""
    import machine

    from quality.answering import Answerer

    answerer = Answerer(model.folder, model.profile, "heldout", model.per_cell["heldout"])
    pruned = [row for row in rows(model.profile, choices) if row.kind == "pruned"]
    return {
        "model": model.name,
        "batch": TIMED_BATCH,
        "rounds": rounds,
        "environment": machine.environment() | {"command": "python -m benchmarks.quality --times"},
        "microseconds": interleaved(pruned, rounds, answerer.seconds),
    }


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    # The environment is read when a worker imports torch.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    pool = ProcessPoolExecutor(workers, get_context("spawn"), start, (1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _accuracy(
    store: AnswerStore, split: str, examples: Sequence[Example]
) -> Callable[[Row], float]:
    """Return what gives a row's accuracy, the mean over its budgets."""

    def accuracy(row: Row) -> float:
        return float(np.mean([right(store, job, examples) for job in jobs(split, [row])]))

    return accuracy


def right(store: AnswerStore, job: Job, examples: Sequence[Example]) -> list[bool]:
    """Return for each question whether the job's answer equals the expected one."""
    answers = json.loads(store.answers[job.key])
    return [
        answer == question.answer for answer, (_, question) in zip(answers, examples, strict=True)
    ]


def versions() -> dict[str, str]:
    return {package: version(package) for package in PACKAGES}


def report_of(models: Sequence[Model], out: Path, work: Path, workers: int) -> dict[str, Any]:
    """Run all models, write which answers were right, and return the report."""
    split = "heldout"
    examples = draw(split, models[0].per_cell[split])
    marks = labels(examples)
    write_labels(out / QUESTIONS, marks)
    guessed = [
        guess == question.answer
        for guess, (_, question) in zip(frequent_answers(examples), examples, strict=True)
    ]
    reports, tables, chosen = [], [], []
    for model in models:
        choices, store = measured(model, folder_of(work, model), workers)
        chosen.append(choices)
        every = rows(model.profile, choices)
        correct = {
            (job.row.name, job.budget): right(store, job, examples)
            for row in every
            for job in jobs(split, [row])
        }
        correct[FREQUENT, NUM_TOKENS] = guessed
        write_correct(correct_path(out, model.name), correct)
        table = with_random(read_correct(correct_path(out, model.name), len(examples)))
        tables.append(table)
        reports.append(
            {
                "name": model.name,
                "profile": model.profile.source,
                "choices": asdict(choices),
                "versions": versions(),
                **judged_bed(marks, table, choices),
            }
        )
    mean = reports[0]
    if len(models) > 1:  # models may have chosen other layers; the mean takes the first's
        mean = judged_bed(marks, mean_of(tables), chosen[0])
    return {
        "questions": len(examples),
        "questions_per_cell": models[0].per_cell[split],
        "cells": num_cells(),
        "training_questions": models[0].per_cell["train"] * num_cells(),
        "first_seed": FIRST_SEED | {"recipe": RECIPE, "profile": PROFILE_SEED},
        "rules": RULES,
        "models": reports,
        "mean": mean,
    }


def folder_of(work: Path, model: Model) -> Path:
    counts = "-".join(str(model.per_cell[split]) for split in ("train", "heldout"))
    return work / f"{model.name}-{counts}"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    models = [_model(folder, options) for folder in options.model]
    if len({model.name for model in models}) < len(models):
        _stop("--model must be folders of different names, which name the results")
    options.out.mkdir(parents=True, exist_ok=True)
    if options.times:
        report = write_times(models[0], options.out, options.rounds)
    else:
        try:
            report = report_of(models, options.out, options.work, options.workers)
        except OtherCalibration as difference:
            _stop(f"{options.work} has answers of another run: {difference}; choose another --work")
        (options.out / ROWS).write_text(json.dumps(report, indent=1) + "\n")
    times = read_times(options.out)
    if report["mean"]["rows"]:
        draw_picture(report, times, options.out / "quality.png")
    print(page(report, times, "quality.png"))
    if report["questions"] < MIN_QUESTIONS:
        print(f"A trial: the plan asks for at least {MIN_QUESTIONS} questions.")
    return 0


def write_times(model: Model, out: Path, rounds: int) -> dict[str, Any]:
    """Measure the times alone and write `times.json`. Return the report that is there."""
    path = out / ROWS
    if not path.is_file():
        _stop(f"--times needs the answers' results, and there is no {path}: run without it first")
    report: dict[str, Any] = json.loads(path.read_text())
    judged = {each["name"]: Choices(**each["choices"]) for each in report["models"]}
    if model.name not in judged:
        _stop(f"--model must be one of {', '.join(judged)}, of which {path} is, got {model.name}")
    with _pool(1) as pool:
        found = pool.submit(timed, model, judged[model.name], rounds).result()
    (out / TIMES).write_text(json.dumps(found, indent=1) + "\n")
    return report


def _model(folder: Path, options: argparse.Namespace) -> Model:
    if not (folder / "model.safetensors").is_file():
        _stop(f"--model must be a folder with model.safetensors, got {folder}")
    path = options.profile or folder / PROFILE
    if not path.is_file():
        _stop(f"there is no {path}: make it with training/tiny_vlm/choose_profile.py")
    counts = {"train": options.per_training_cell, "heldout": options.per_cell}
    return Model(folder, Profile.load(path), counts)


def _stop(message: str) -> None:
    raise SystemExit(f"benchmarks/quality: {message}")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality",
        description="Measure what each part of CLASP buys, on held-out questions of the test bed.",
    )
    parser.add_argument(
        "--model", type=Path, nargs="+", required=True, help="folders, one a training seed"
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder for the results")
    parser.add_argument(
        "--work", type=Path, default=WORK, help="where answers are kept (default: build/quality)"
    )
    parser.add_argument(
        "--profile", type=Path, help=f"for every model (default: the model's own {PROFILE})"
    )
    parser.add_argument(
        "--per-cell", type=_positive, default=230, help="held-out questions (default: 230)"
    )
    parser.add_argument(
        "--per-training-cell",
        type=_positive,
        default=40,
        help="training questions, for the choices (default: 40)",
    )
    parser.add_argument(
        "--times",
        action="store_true",
        help=f"only measure how long selecting takes, into {TIMES}, on a machine with nothing else "
        "to do",
    )
    parser.add_argument(
        "--rounds", type=_positive, default=30, help="how often --times is to time (default: 30)"
    )
    parser.add_argument("--workers", type=_positive, default=2, help="processes (default: 2)")
    return parser
