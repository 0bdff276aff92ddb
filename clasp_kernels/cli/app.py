"""The commands: options, help texts and the order of steps. The other modules do the work."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clasp_kernels._version import __version__
from clasp_kernels.cli.batch_command import batch
from clasp_kernels.cli.errors import CommandError, UsageError, in_one_line, reported_errors
from clasp_kernels.cli.files import as_text, check_writable, save, save_page
from clasp_kernels.cli.options import Device, ModelName, ProfileFile
from clasp_kernels.cli.progress import bar, spinner
from clasp_kernels.cli.terminal import result_console

if TYPE_CHECKING:
    from clasp_kernels.policy import Schedule

app = typer.Typer(
    name="clasp",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_KEEP = 16
Keep = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="R",
        help=f"Visual tokens kept per image; {_KEEP} without --schedule.",
        show_default=False,
    ),
]
ScheduleText = Annotated[
    str | None,
    typer.Option(
        "--schedule",
        metavar="L:R,...",
        help="Instead of --keep: drop tokens inside the LLM. After L of its layers (0: before "
        "the LLM) R of an image's tokens stay, a number or a fraction.",
        show_default=False,
    ),
]
ImageFile = Annotated[str, typer.Argument(help="A picture: PNG, JPEG, WebP, ...")]


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"clasp_kernels {__version__}")
        raise typer.Exit


@app.callback()
def clasp(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    """Ask multimodal models about images with a fraction of their visual tokens."""


@app.command()
def ask(
    image: ImageFile,
    question: Annotated[str, typer.Argument(help="What to ask about it.")],
    keep: Keep = None,
    schedule: ScheduleText = None,
    model: ModelName = None,
    profile: ProfileFile = None,
    category: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Prompt category; the router decides if left out.",
            show_default=False,
        ),
    ] = None,
    rule: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="How tokens are selected: clasp, or for comparison clasp_clusters, attention, "
            "divprune, cenprune, cdpruner, scope, dart, visionzip, random, uniform or pool.",
            show_default="the profile's, else clasp",
        ),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare",
            metavar="NAME,...",
            help="Instead of --rule: answer with each of these rules, and compare them.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        str, typer.Option(metavar="PNG", help="Where to put the picture of what was kept.")
    ] = "out/map.png",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON on stdout and nothing else.")
    ] = False,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Longest answer, in tokens.")
    ] = 32,
    device: Device = "auto",
) -> None:
    """Answer a question with all visual tokens and with few of them, and show which were kept.

    [bold]Examples[/]

    clasp ask photo.jpg "What does the sign say?"

    clasp ask photo.jpg "How many dogs are there?" --keep 64 --model llava-hf/llava-1.5-7b-hf

    clasp ask photo.jpg "Where is the cat?" --category spatial --json

    clasp ask photo.jpg "What is on the table?" --schedule 2:0.5,4:0.2

    clasp ask photo.jpg "What is on the table?" --rule divprune

    clasp ask photo.jpg "What is on the table?" --compare clasp,divprune,random
    """
    with reported_errors():
        from clasp_kernels.cli.comparison import compare_rules
        from clasp_kernels.cli.loading import load_image, load_model, load_profile
        from clasp_kernels.cli.picture import NoPicture, answer_picture
        from clasp_kernels.cli.report import comparison_dict, comparison_table
        from clasp_kernels.cli.rules import (
            chosen_rules,
            rules_dict,
            rules_picture,
            rules_table,
            times_in_words,
        )

        question = as_text("QUESTION", question)
        if not question.strip():
            raise UsageError("QUESTION must hold a word, got only blanks")
        kept = _what_to_keep(keep, schedule)
        path = check_writable(out, not_over=(image, profile))
        rules = chosen_rules(rule, compare)
        with spinner("Loading the model") as step:
            picture = load_image(image)
            chosen = load_profile(profile) if profile is not None else None
            loaded = load_model(model, device)
            comparisons = compare_rules(
                loaded,
                picture,
                question,
                rules=rules,
                keep=kept,
                profile=chosen,
                category=category,
                max_new_tokens=max_new_tokens,
                on_step=step,
            )
            comparison = comparisons[0]
            step("Drawing")
            undrawn = unwritten = None
            try:
                if compare is None:
                    page = answer_picture(loaded, comparison)
                else:
                    page = rules_picture(loaded, comparisons)
                save(page, path)
            except NoPicture as error:
                undrawn = f"No picture: {error}."
            except CommandError as error:  # reported after the answer, so that it is not lost
                unwritten = error
        if as_json:
            answer = {
                "image": image,
                "model": loaded.name,
                "device": str(loaded.model.device),
                **(comparison_dict(comparison) if compare is None else rules_dict(comparisons)),
                "picture": out if undrawn is None and unwritten is None else None,
            }
            print(json.dumps(answer, indent=2))
            if undrawn is not None:
                print(undrawn, file=sys.stderr)
        else:
            console = result_console()
            console.print(question, style="bold", markup=False, highlight=False)
            console.print(
                f"Category {comparison.category}: {comparison.reason}",
                markup=False,
                highlight=False,
            )
            console.print()
            if compare is None:
                console.print(comparison_table(comparison))
                times = f"Times: median of {comparison.timed_runs} after a warm-up."
            else:
                console.print(rules_table(comparisons))
                times = times_in_words(comparisons)
            console.print(
                f"{times} Model: {loaded.name} on {loaded.model.device}.",
                style="dim",
                markup=False,
                highlight=False,
            )
            if undrawn is not None:
                console.print(undrawn, style="yellow", markup=False, highlight=False)
            elif unwritten is None:
                console.print(f"Picture: {path}", markup=False, highlight=False, soft_wrap=True)
        if unwritten is not None:
            raise unwritten


@app.command()
def explore(
    image: ImageFile,
    question: Annotated[
        str | None,
        typer.Argument(
            help="What to ask about it; a general prompt if left out.", show_default=False
        ),
    ] = None,
    model: ModelName = None,
    profile: ProfileFile = None,
    rules: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="The rules on the page; all if left out.",
            show_default=False,
        ),
    ] = None,
    input_only: Annotated[
        bool,
        typer.Option(
            "--input-only",
            help="Leave out schedules inside the LLM. It then runs once at most, for rules that "
            "compare tokens with the prompt.",
        ),
    ] = False,
    out: Annotated[
        str, typer.Option(metavar="HTML", help="Where to put the page.")
    ] = "out/explore.html",
    device: Device = "auto",
) -> None:
    """Make a page on which you see what every rule keeps of an image, at any budget.

    The page is one HTML file. It needs no network: open it in a browser, or send it to somebody.

    [bold]Examples[/]

    clasp explore photo.jpg "What does the sign say?"

    clasp explore photo.jpg --rules clasp,divprune --out page.html

    clasp explore photo.jpg --model llava-hf/llava-1.5-7b-hf --input-only
    """
    with reported_errors():
        from clasp_kernels.cli.explore import ANY_QUESTION, explore_page
        from clasp_kernels.cli.loading import load_image, load_model, load_profile
        from clasp_kernels.cli.report import size
        from clasp_kernels.cli.rules import listed_rules
        from clasp_kernels.rules import rule_names

        asked = ANY_QUESTION if question is None else as_text("QUESTION", question)
        if not asked.strip():
            raise UsageError("QUESTION must hold a word, got only blanks")
        path = check_writable(out, not_over=(image, profile), page=True)
        names = rule_names() if rules is None else listed_rules("--rules", rules)
        with spinner("Loading the model"):
            picture = load_image(image)
            chosen = load_profile(profile) if profile is not None else None
            loaded = load_model(model, device)
        with bar("Selecting") as on_done:
            page = explore_page(
                loaded,
                picture,
                image,
                asked,
                rules=names,
                profile=chosen,
                progressive=not input_only,
                on_done=on_done,
            )
        save_page(page, path)
        console = result_console()
        console.print(
            f"Page: {path} ({size(len(page.encode()))}, {len(names)} rules)",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


@app.command()
def calibrate(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA.jsonl",
            help="A line for each question: image, question, answer, and if you like category.",
        ),
    ],
    model: ModelName = None,
    profile: ProfileFile = None,
    budgets: Annotated[
        str,
        typer.Option(
            metavar="R,...", help="Tokens kept per image: numbers, or fractions between 0 and 1."
        ),
    ] = "0.33,0.22,0.11",
    stages: Annotated[
        str,
        typer.Option(
            metavar="L,...",
            help="Drop tokens after L of the LLM's layers (0: before the LLM). With other layers "
            "than 0, a budget is the mean over all layers.",
        ),
    ] = "0",
    rules: Annotated[
        str, typer.Option(metavar="NAME,...", help="Selection rules to try.")
    ] = "clasp",
    strategies: Annotated[
        str | None,
        typer.Option(
            metavar="LETTER,...",
            help="Mixtures of vision layers to try.",
            show_default="A,B,C,D,E where they matter",
        ),
    ] = None,
    ratios: Annotated[
        str, typer.Option(metavar="P,...", help="Pivot ratios to try with the rule clasp.")
    ] = "0,0.25,0.5,0.75,1",
    score: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="How answers are scored: exact, vqa, relaxed (numbers within 5 %) or anls.",
        ),
    ] = "exact",
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="At most N questions of each category, drawn at random; all if left out.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Seed of --limit and of the statistics.")
    ] = 0,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Longest answer, in tokens.")
    ] = 16,
    batch_size: Annotated[
        int, typer.Option(min=1, metavar="N", help="Ways to select that are answered at once.")
    ] = 8,
    out: Annotated[
        str,
        typer.Option(
            metavar="JSON", help="Where to put the profile; maps and scores go beside it."
        ),
    ] = "out/profile.json",
    device: Device = "auto",
) -> None:
    """Find the profile that your own questions prefer: for each category, how to select.

    Every question is answered with every mixture of vision layers, pivot ratio and rule. A category
    gets the best of them if it is significantly better than what the model's profile has now, and
    keeps that otherwise. Stop with Ctrl-C at any time; the same command goes on.

    [bold]Examples[/]

    clasp calibrate questions.jsonl --model llava-hf/llava-1.5-7b-hf

    clasp calibrate questions.jsonl --budgets 64,128 --rules clasp,cenprune --out mine.json

    clasp calibrate questions.jsonl --stages 2,6,15 --budgets 0.33,0.22

    clasp calibrate chartqa.jsonl --score relaxed --limit 100
    """
    with reported_errors():
        from clasp_kernels.cli import calibrate as command
        from clasp_kernels.cli import calibrate_options as options
        from clasp_kernels.cli.rules import listed_rules

        settings = options.Settings(
            data=Path(data),
            out=options.check_profile_path(out, not_over=(data, profile)),
            budgets=options.parsed_budgets(budgets),
            stages=options.parsed_stages(stages),
            rules=listed_rules("--rules", rules),
            strategies=None if strategies is None else options.parsed_strategies(strategies),
            pivot_ratios=options.parsed_ratios(ratios),
            scorer=options.checked_scorer(score),
            limit=limit,
            seed=seed,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
        )
        questions = command.read_data(data)
        from clasp_kernels.cli.loading import load_model, load_profile

        with spinner("Loading the model"):
            chosen = load_profile(profile) if profile is not None else None
            loaded = load_model(model, device)
        with bar("Checking the questions") as on_done:
            calibration = command.checked(loaded, settings, questions, chosen, on_done)
        with command.opened_store(calibration) as store:
            try:
                with bar("Answering") as on_done:
                    command.answer(calibration, store, on_done)
            except command.Stopped as stopped:
                print(stopped, file=sys.stderr)
                raise typer.Exit(130) from None
            with spinner("Comparing"):
                choices = command.choices(calibration, store)
                command.write_results(calibration, choices, store)
        console = result_console()
        console.print(command.choices_table(choices))
        for line in command.summary(calibration, choices):
            console.print(line, markup=False, highlight=False, soft_wrap=True)


app.command()(batch)


@app.command()
def demo(
    out: Annotated[str, typer.Option(metavar="FOLDER", help="Where pictures go.")] = "out",
    keep: Keep = None,
    schedule: ScheduleText = None,
    device: Device = "auto",
) -> None:
    """Ask the bundled model about bundled scenes, one question per category.

    [bold]Examples[/]

    clasp demo

    clasp demo --keep 8 --out pictures

    clasp demo --schedule 2:72,4:16
    """
    with reported_errors():
        from clasp_kernels.cli.demo import demo_table, run_demo

        if not out:
            raise UsageError("--out must name a folder, got an empty argument")
        kept = _what_to_keep(keep, schedule)
        sheet = check_writable(os.path.join(out, "contact_sheet.png"))
        with spinner("Loading the model") as step:
            results = run_demo(kept, device, on_step=step)
            step("Drawing")
            save(results.contact_sheet(), sheet)
        console = result_console()
        console.print(demo_table(results))
        console.print(results.summary(), markup=False, highlight=False)
        console.print(f"Picture: {sheet}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def doctor(
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Also check that pruned models are right here: the masking oracle."
        ),
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="PATH_OR_ID",
            help="With --verify: the model to check; tiny random ones of each family if left out.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON on stdout and nothing else.")
    ] = False,
    device: Device = "auto",
) -> None:
    """Say which versions and backends are in use and why, and what is missing and how to get it.

    Exits with 1 if the ops cannot run here at all, or if a check of --verify fails.

    [bold]Examples[/]

    clasp doctor

    clasp doctor --json > report.json

    clasp doctor --verify

    clasp doctor --verify --model llava-hf/llava-1.5-7b-hf
    """
    from clasp_kernels.cli.doctor import examine, print_examination

    with reported_errors():
        if model is not None and not verify:
            raise UsageError("--model needs --verify")
        if device != "auto" and not verify:
            raise UsageError("--device needs --verify")
        verification = None
        with spinner("Looking around") as step:
            examination = examine()
            if verify and examination.usable:
                from clasp_kernels.cli.verifying import run_verification

                step("Comparing pruned models with masked ones")
                verification = run_verification(model, device)
        answer = examination.to_dict()
        if verification is not None:
            answer["verification"] = verification.to_dict()
        if as_json:
            print(json.dumps(answer, indent=2))
        else:
            console = result_console()
            print_examination(examination, console)
            if verification is not None:
                from clasp_kernels.cli.verifying import print_verification

                console.print()
                print_verification(verification, console)
        passed = verification is None or verification.passed
        raise typer.Exit(0 if examination.usable and passed else 1)


def _what_to_keep(keep: int | None, schedule: str | None) -> int | Schedule:
    """Return the value of --keep or --schedule, which exclude each other."""
    if schedule is None:
        return _KEEP if keep is None else keep
    if keep is not None:
        raise UsageError(
            "--keep and --schedule exclude each other: --keep R prunes once, before the LLM, as "
            "--schedule 0:R does; give one of them"
        )
    from clasp_kernels.policy import Schedule

    try:
        return Schedule.parse(schedule)
    except ValueError as error:
        raise UsageError(f"--schedule: {in_one_line(error)}") from None
