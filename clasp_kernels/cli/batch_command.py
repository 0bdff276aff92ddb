"""The command ``clasp batch``: options, help texts and the order of steps."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from clasp_kernels.cli.errors import UsageError, in_one_line, reported_errors
from clasp_kernels.cli.options import Device, ModelName, ProfileFile
from clasp_kernels.cli.progress import rows_bar, spinner
from clasp_kernels.cli.terminal import result_console


def batch(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN", help="A .parquet or .jsonl file, or a folder of Parquet files or images."
        ),
    ],
    out: Annotated[
        str, typer.Argument(metavar="OUT", help="The folder of the results, in Parquet files.")
    ],
    model: ModelName = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="R",
            help="Visual tokens kept per image: a number, or a fraction such as 0.25.",
            show_default="0.25, without --schedule",
        ),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            metavar="L:R,...",
            help="Instead of --budget: drop tokens inside the LLM. After L of its layers (0: "
            "before the LLM) R of an image's tokens stay, a number or a fraction.",
            show_default=False,
        ),
    ] = None,
    question: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="What to ask about every image.", show_default=False),
    ] = None,
    question_column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Instead of --question: the column with the question of each row.",
            show_default="question",
        ),
    ] = None,
    image_column: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="The column with the images: paths relative to the file or, in Parquet, bytes.",
        ),
    ] = "image",
    rule: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="How tokens are selected.",
            show_default="the profile's, else clasp",
        ),
    ] = None,
    profile: ProfileFile = None,
    engine: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="local: processes of this machine. ray: actors of a Ray cluster."
        ),
    ] = "local",
    workers: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Processes, each with the model; with ray also LEAST:MOST.",
            show_default="one for each GPU, or a few for the CPU",
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, metavar="N", help="Most rows that are answered at once.")
    ] = 8,
    shard_size: Annotated[
        int, typer.Option(min=1, metavar="N", help="Rows of each Parquet file of the results.")
    ] = 64,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Longest answer, in tokens.")
    ] = 32,
    device: Device = "auto",
) -> None:
    """Answer questions about many images, and write the answers as Parquet, shard by shard.

    A row that cannot be answered has an error instead. Stop it at any time, with Ctrl-C or worse:
    the same command goes on, and no row is lost, repeated or half-written.

    [bold]Examples[/]

    clasp batch photos out --question "What does the sign say?"

    clasp batch questions.jsonl out --model llava-hf/llava-1.5-7b-hf --budget 0.25

    clasp batch s3-mirror/ out --question-column prompt --engine ray --workers 2:16
    """
    with reported_errors():
        from clasp_kernels.cli import batch as command
        from clasp_kernels.cli import batch_options as options
        from clasp_kernels.cli.files import as_text
        from clasp_kernels.cli.rules import known_rule

        if question is not None and question_column is not None:
            raise UsageError(
                "--question and --question-column exclude each other: give one question for all "
                "images, or the column with the question of each"
            )
        if question is not None:
            question = as_text("--question", question)
            if not question.strip():
                raise UsageError("--question must hold a word, got only blanks")
        if budget is not None and schedule is not None:
            raise UsageError(
                "--budget and --schedule exclude each other: --budget R prunes once, before the "
                "LLM, as --schedule 0:R does; give one of them"
            )
        kept = None if schedule is not None else options.DEFAULT_BUDGET
        if budget is not None:
            kept = options.parsed_budget(budget)
        name = options.checked_engine(engine)
        processes = options.parsed_workers(workers, name)
        if rule is not None:
            known_rule("--rule", rule)
        folder = options.check_folder(out, source)
        column = question_column or "question"
        rows = command.open_input(source, question, column, image_column)
        with spinner("Checking the model"):
            from clasp_kernels.cli.loading import load_profile
            from clasp_kernels.policy import Schedule

            try:
                stages = None if schedule is None else Schedule.parse(schedule)
            except ValueError as error:
                raise UsageError(f"--schedule: {in_one_line(error)}") from None
            settings = options.ModelSettings(
                options.absolute_model(model),
                None if profile is None else load_profile(profile),
                rule,
                kept,
                stages,
                max_new_tokens,
            )
            checked = command.checked(
                rows,
                settings,
                question=question,
                question_column=column,
                image_column=image_column,
                engine=name,
                device=device,
                batch_size=batch_size,
                shard_size=shard_size,
            )
        with command.opened_output(checked, folder) as output:
            try:
                with rows_bar() as on_done:
                    command.answer(checked, output, processes, on_done)
            except command.Stopped as stopped:
                print(stopped, file=sys.stderr)
                raise typer.Exit(130) from None
            lines = command.summary(output)
        console = result_console()
        for line in lines:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
