"""``clasp calibrate``: check the data, have the model answer, and write profile and maps."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clasp_kernels._version import __version__
from clasp_kernels.cli.calibrate_options import Settings
from clasp_kernels.cli.calibrate_stages import (
    applied,
    checked_stages,
    schedule_of,
    schedules_in_words,
    strategies_to_try,
)
from clasp_kernels.cli.errors import CommandError, UsageError, in_one_line, refusing_as
from clasp_kernels.cli.files import check_readable
from clasp_kernels.cli.loading import LoadedModel, load_image
from clasp_kernels.cli.prompt import Prompt, prepare
from clasp_kernels.policy import FALLBACK_CATEGORY, Profile, Router

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

    from clasp_kernels.calibrate import (
        AnswerStore,
        CategoryChoice,
        Grid,
        Prepared,
        Question,
        Sweep,
    )
    from clasp_kernels.models.adapter import Adapter
    from clasp_kernels.policy import Schedule

OnDone = Callable[[int, int], None]


@dataclass(frozen=True)
class Calibration:
    """A checked calibration."""

    settings: Settings
    sweep: Sweep
    questions: tuple[Question, ...]
    manifest: dict[str, Any]
    repeated: int
    """Lines that repeat another, which are asked once."""
    rerouted: int
    """Questions whose category is given, and which the router would send elsewhere."""
    schedules: dict[int | float, set[Schedule]]
    """For each budget, the schedules of the questions: several if their images differ in tokens."""


def read_data(path: str) -> list[Question]:
    """Read the questions. Raises a UsageError that names the lines that cannot be used."""
    from clasp_kernels.calibrate import read_questions

    file = check_readable("DATA", path)
    try:
        with _naming(file):
            return read_questions(file)
    except OSError as error:
        raise CommandError(f"DATA: {path} cannot be read: {in_one_line(error)}") from None


@contextmanager
def _naming(data: Path) -> Iterator[None]:
    """Turn a ValueError about lines of the data into a UsageError that names the file."""
    try:
        yield
    except ValueError as error:
        raise UsageError(f"DATA: {data}: {error}") from None


def checked(
    loaded: LoadedModel,
    settings: Settings,
    questions: Sequence[Question],
    profile: Profile | None,
    on_done: OnDone = lambda done, total: None,
) -> Calibration:
    """Prepare every question once, so that what the model cannot take is named before it answers.

    Raises a CommandError if the model cannot be pruned, and a UsageError for options that do not
    fit it and for questions that it cannot take.
    """
    from clasp_kernels.calibrate import Grid, Sweep, limited
    from clasp_kernels.calibrate.dataset import distinct, refuse
    from clasp_kernels.calibrate.sweep import categories_of

    handle = applied(loaded, profile)
    adapter = handle.adapter
    routed, elsewhere = _routed(questions, handle.profile, settings.data)
    with _naming(settings.data):
        asked = distinct(routed)
    chosen = limited(asked, settings.limit, settings.seed)
    grid = Grid(
        handle.profile,
        strategies_to_try(settings, handle.selector.fuse_into),
        settings.pivot_ratios,
        settings.rules,
    )
    stages = checked_stages(loaded, settings, grid.sweep_profile(categories_of(chosen)), adapter)

    wrong: list[str] = []
    most = 0
    schedules: dict[int | float, set[Schedule]] = {budget: set() for budget in settings.budgets}
    for number, question in enumerate(chosen):
        on_done(number, len(chosen))
        try:
            counts = _prompt_of(question, loaded, adapter).counts
            most = max(most, *counts)
            for budget, found in schedules.items():
                found.add(schedule_of(stages, budget, counts))
        except CommandError as error:
            wrong.append(f"line {question.line}: {error}")
    with _naming(settings.data):
        refuse(wrong)
    for budget in settings.budgets:
        # Inside the decoder, no schedule has such a mean.
        if isinstance(budget, int) and budget >= most:
            raise UsageError(
                f"--budgets must be below {most}, the most visual tokens that {loaded.name} makes "
                f"of an image here, got {budget}, which would prune nothing"
            )
    return Calibration(
        settings,
        Sweep(
            loaded.model,
            loaded.processor,
            grid,
            settings.budgets,
            partial(prepared, loaded=loaded, adapter=adapter),
            settings.max_new_tokens,
            settings.batch_size,
            stages,
        ),
        tuple(chosen),
        _manifest(loaded, settings, chosen, grid),
        repeated=len(routed) - len(asked),
        rerouted=sum(question.line in elsewhere for question in chosen),
        schedules=schedules,
    )


def _prompt_of(question: Question, loaded: LoadedModel, adapter: Adapter) -> Prompt:
    return prepare(loaded, adapter, load_image(question.image), question.text)


def prepared(question: Question, loaded: LoadedModel, adapter: Adapter) -> Prepared:
    """Return a question as ``Sweep`` takes it.

    Raises a CommandError if the model cannot take it.
    """
    from clasp_kernels.calibrate import Prepared

    prompt = _prompt_of(question, loaded, adapter)
    return Prepared(
        prompt.inputs,
        prompt.counts,
        lambda ids: loaded.processor.decode(ids, skip_special_tokens=True).strip(),
    )


def _routed(
    questions: Sequence[Question], profile: Profile, data: Path
) -> tuple[list[Question], set[int]]:
    """Return the questions with a category each, and the lines whose own the router contradicts."""
    from clasp_kernels.calibrate.dataset import refuse, routed

    known = ", ".join(profile.category_names)
    with _naming(data):
        refuse(
            [
                f"line {question.line}: category must be one of {known}, got {question.category!r}"
                for question in questions
                if question.category is not None and question.category not in profile.categories
            ]
        )

    def route(prompts: list[str]) -> list[str]:
        names = Router().route(prompts)
        return [name if name in profile.categories else FALLBACK_CATEGORY for name in names]

    given = [question for question in questions if question.category is not None]
    names = route([question.text for question in given]) if given else []
    elsewhere = {
        question.line
        for question, name in zip(given, names, strict=True)
        if name != question.category
    }
    return routed(questions, route), elsewhere


def _manifest(
    loaded: LoadedModel, settings: Settings, questions: Sequence[Question], grid: Grid
) -> dict[str, Any]:
    """Return what the answers depend on. How they are scored is not in it: that can be changed."""
    return {
        "package version": __version__,
        "model": loaded.name,
        "weights": _fingerprint(loaded.model),
        "dtype": str(loaded.model.dtype),
        "device": loaded.model.device.type,
        "profile": grid.profile.to_dict(),
        "budgets": list(settings.budgets),
        # Left out before the LLM, as it was when there was nothing else: such folders go on.
        **({} if settings.stages == (0,) else {"stages": list(settings.stages)}),
        "rules": list(settings.rules),
        "strategies": list(grid.strategies),
        "pivot ratios": list(settings.pivot_ratios),
        "longest answer": settings.max_new_tokens,
        "batch size": settings.batch_size,
        "number of questions": len(questions),
        "questions": sha256(" ".join(question.key for question in questions).encode()).hexdigest(),
    }


def _fingerprint(model: Any) -> str:
    """Return a hash of a few values of every parameter: other weights have another one."""
    import torch

    digest = sha256()
    for name, parameter in model.named_parameters():
        some = parameter.detach().flatten()[:16].to("cpu", torch.float32)
        digest.update(f"{name} {list(parameter.shape)} {some.tolist()}".encode())
    return digest.hexdigest()


class Stopped(Exception):
    """The user stopped the command. The message says what is kept."""


def answer(calibration: Calibration, store: AnswerStore, on_done: OnDone) -> None:
    """Have the model answer what the store lacks.

    Raises Stopped after Ctrl-C, and a CommandError if the model fails.
    """
    sweep, questions = calibration.sweep, calibration.questions
    total = sweep.size(questions)
    try:
        with refusing_as(
            f"the model cannot answer (what it has answered is kept in {store.folder}; a smaller "
            f"--batch-size needs less memory)"
        ):
            sweep.run(questions, store, lambda done: on_done(done, total))
    except KeyboardInterrupt:
        raise Stopped(
            f"Stopped. {len(store.answers)} of {total} answers are kept in {store.folder}; the "
            f"same command goes on from there."
        ) from None


@contextmanager
def opened_store(calibration: Calibration) -> Iterator[AnswerStore]:
    """Open the answers of this calibration. Raises a CommandError if they are those of another."""
    from clasp_kernels.calibrate import AnswerStore, OtherCalibration

    folder = calibration.settings.folder
    try:
        store = AnswerStore(folder, calibration.manifest)
    except OtherCalibration as error:
        raise CommandError(
            f"{folder} has the answers of another calibration: {error}. Choose another --out, or "
            f"delete that folder"
        ) from None
    except (ValueError, OSError) as error:
        raise CommandError(
            f"the answers cannot be kept in {folder}: {in_one_line(error)}"
        ) from None
    with store:
        yield store


def choices(calibration: Calibration, store: AnswerStore) -> list[CategoryChoice]:
    """Score the answers and decide for each category."""
    from clasp_kernels.calibrate import choose

    settings = calibration.settings
    return choose(
        calibration.questions,
        calibration.sweep.grid,
        settings.budgets,
        store.answers,
        settings.scorer,
        seed=settings.seed,
    )


def write_results(
    calibration: Calibration, choices: Sequence[CategoryChoice], store: AnswerStore
) -> None:
    """Write maps, scores and report, and last the profile."""
    from clasp_kernels.calibrate import calibrated_profile
    from clasp_kernels.calibrate.heatmap import category_page, overview_page
    from clasp_kernels.calibrate.results import write_answers, write_scores

    settings, grid = calibration.settings, calibration.sweep.grid
    stages = calibration.sweep.stages
    profile = calibrated_profile(
        grid,
        choices,
        name=settings.out.stem,
        data=settings.data.name,
        budgets=settings.budgets,
        stages=stages,
        scorer=settings.scorer,
    )
    try:
        write_answers(
            settings.folder / "answers.csv",
            calibration.questions,
            grid,
            settings.budgets,
            store.answers,
            settings.scorer,
        )
        write_scores(settings.folder / "scores.csv", choices, settings.budgets, stages)
        for choice in choices:
            page = category_page(choice, grid, settings.budgets, stages)
            page.save(settings.folder / f"heatmap_{_file_name(choice.category)}.png")
        heading = f"Mean scores of {settings.data.name}, by category"
        overview_page(choices, grid, stages, heading).save(settings.folder / "heatmaps.png")
        report = "\n".join(f"- {line}" for line in summary(calibration, choices)[:-1])
        (settings.folder / "report.md").write_text(
            f"# {profile.name}\n\n{profile.source}.\n\n{report}\n", encoding="utf-8"
        )
        draft = settings.out.with_suffix(".tmp")
        profile.save(draft)
        os.replace(draft, settings.out)
    except OSError as error:
        raise CommandError(
            f"the results cannot be written to {settings.folder}: {in_one_line(error)}"
        ) from None


def _file_name(category: str) -> str:
    return re.sub(r"[^\w-]", "_", category)


def summary(calibration: Calibration, choices: Sequence[CategoryChoice]) -> list[str]:
    """Return the decisions in sentences, what the user should know about the data, and the files.

    A sentence about a category begins with its name.
    """
    from clasp_kernels.calibrate.results import in_words

    settings = calibration.settings
    lines = in_words(choices, calibration.sweep.grid.profile.category_names)
    if calibration.sweep.stages.are_inside:
        lines += schedules_in_words(calibration.sweep, calibration.schedules)
    if calibration.repeated:
        lines.append(f"Lines that repeat another one and were asked once: {calibration.repeated}.")
    if calibration.rerouted:
        lines.append(
            f"Questions for which the router finds another category than the data gives: "
            f"{calibration.rerouted}. In use, such prompts get what was found for the router's "
            f"category."
        )
    lines.append(f"Profile: {settings.out}; maps, scores and answers: {settings.folder}")
    return lines


def choices_table(choices: Sequence[CategoryChoice]) -> Table:
    """Return a table with a row for each category."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("category", no_wrap=True)
    for heading in ("asked", "default", "best", "difference", "95 %"):
        table.add_column(heading, justify="right")
    table.add_column("choice")
    for choice in choices:
        shown = choice.best if choice.is_kept else choice.chosen
        row = [choice.category, f"{choice.questions}"]
        row += [_percent(choice.default.score), _percent(shown.score)]
        if shown is choice.default:
            row += ["", ""]
        else:
            low, high = shown.difference_interval
            row += [f"{100 * shown.difference:+.1f}", f"{100 * low:+.1f} to {100 * high:+.1f}"]
        chosen = Text("default") if choice.is_kept else Text(shown.cell.name, style="bold")
        table.add_row(*row, chosen)
    return table


def _percent(score: float) -> str:
    return f"{100 * score:.1f}"
