"""The commands: their options, help and order of work. What they do is in the other files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from clasp_kernels._version import __version__
from clasp_kernels.cli.errors import CommandError, UsageError, reported_errors

if TYPE_CHECKING:
    from PIL import Image

app = typer.Typer(
    name="clasp",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Keep = Annotated[int, typer.Option(min=1, metavar="R", help="Visual tokens kept per image.")]
Device = Annotated[
    str, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1, ...; auto prefers a GPU.")
]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"clasp_kernels {__version__}")
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
    image: Annotated[Path, typer.Argument(help="A picture: PNG, JPEG, WebP, ...")],
    question: Annotated[str, typer.Argument(help="What to ask about it.")],
    keep: Keep = 16,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="PATH_OR_ID",
            help="Model folder or Hugging Face id; the bundled tiny LLaVA if left out.",
            show_default=False,
        ),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Profile JSON; the model's own or its family's if left out.",
            show_default=False,
        ),
    ] = None,
    category: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Prompt category; the router decides if left out.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="PNG", help="Where to put the picture of what was kept.")
    ] = Path("out/map.png"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON on stdout and nothing else.")
    ] = False,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Longest answer, in tokens.")
    ] = 32,
    device: Device = "auto",
) -> None:
    """Answer a question with all visual tokens and with R of them, and show what was kept.

    [bold]Examples[/]

    clasp ask photo.jpg "What does the sign say?"

    clasp ask photo.jpg "How many dogs are there?" --keep 64 --model llava-hf/llava-1.5-7b-hf

    clasp ask photo.jpg "Where is the cat?" --category spatial --json
    """
    with reported_errors():
        from clasp_kernels.cli import report
        from clasp_kernels.cli.comparison import compare
        from clasp_kernels.cli.loading import load_image, load_model, load_profile
        from clasp_kernels.visualize import selection_picture

        if not question.strip():
            raise UsageError("QUESTION must hold a word, got only blanks")
        _check_writable(out)
        with _progress("Loading the model") as step:
            picture = load_image(image)
            chosen = load_profile(profile) if profile else None
            loaded = load_model(model, device)
            comparison = compare(
                loaded,
                picture,
                question,
                keep=keep,
                profile=chosen,
                category=category,
                max_new_tokens=max_new_tokens,
                on_step=step,
            )
            step("Drawing")
            drawn = report.overlay(loaded, picture, comparison, size=576)
            unwritten = None
            if drawn is not None:
                seen, overlay = drawn
                page = selection_picture(seen, overlay, question, report.caption(comparison))
                try:
                    _save(page, out)
                except CommandError as error:  # reported after the answer, which took long
                    unwritten = error
        if as_json:
            answer = {
                "image": str(image),
                "model": loaded.name,
                "device": str(loaded.model.device),
                **report.comparison_dict(comparison),
                "picture": str(out) if drawn is not None and unwritten is None else None,
            }
            typer.echo(json.dumps(answer, indent=2))
            if unwritten is not None:
                raise unwritten
            return
        console = Console()
        console.print(question, style="bold", markup=False, highlight=False)
        console.print(
            f"Category {comparison.category}: {comparison.reason}", markup=False, highlight=False
        )
        console.print()
        console.print(report.comparison_table(comparison))
        console.print(
            f"Times: median of {comparison.timed_runs} after a warm-up. Model: {loaded.name} on "
            f"{loaded.model.device}.",
            style="dim",
            markup=False,
            highlight=False,
        )
        if unwritten is not None:
            raise unwritten
        if drawn is None:
            console.print("No picture: this model's tokens form no square grid.", style="yellow")
        else:
            console.print(f"Picture: {out}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where pictures go.")] = Path("out"),
    keep: Keep = 16,
    device: Device = "auto",
) -> None:
    """Ask the bundled model about bundled scenes, one question per category.

    [bold]Examples[/]

    clasp demo

    clasp demo --keep 8 --out pictures
    """
    with reported_errors():
        from clasp_kernels.cli.demo import demo_table, run_demo

        sheet = out / "contact_sheet.png"
        _check_writable(sheet)
        with _progress("Loading the model") as step:
            results = run_demo(keep, device, on_step=step)
            step("Drawing")
            _save(results.contact_sheet(), sheet)
        console = Console()
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
            raise UsageError("--model is what --verify checks; give both")
        if device != "auto" and not verify:
            raise UsageError("--device is where --verify runs; give both")
        verification = None
        with _progress("Looking around") as step:
            examination = examine()
            if verify and examination.usable:
                from clasp_kernels.cli.verifying import run_verification

                step("Comparing pruned models with masked ones")
                verification = run_verification(model, device)
        report = examination.to_dict()
        if verification is not None:
            report["verification"] = verification.to_dict()
        if as_json:
            typer.echo(json.dumps(report, indent=2))
        else:
            console = Console()
            print_examination(examination, console)
            if verification is not None:
                from clasp_kernels.cli.verifying import print_verification

                console.print()
                print_verification(verification, console)
        passed = verification is None or verification.passed
        raise typer.Exit(0 if examination.usable and passed else 1)


@contextmanager
def _progress(first_step: str) -> Iterator[Callable[[str], None]]:
    """A spinner on stderr, which leaves stdout to the result; silent where there is no terminal."""
    console = Console(stderr=True)
    with console.status(first_step + " ...") as status:
        yield lambda step: status.update(step + " ...")


def _check_writable(path: Path) -> None:
    """Refuse, before any work, a picture's path that could not be written after it."""
    from clasp_kernels.visualize import check_format

    try:
        check_format(path)
        if path.is_dir():
            raise OSError("it is a folder")
        # What is there already: the file itself, or the first folder above it.
        there = next(place for place in (path, *path.absolute().parents) if place.exists())
        if there != path and not there.is_dir():
            raise OSError(f"{there} is no folder")
        if not os.access(there, os.W_OK):
            raise OSError(f"no permission to write {there}")
    except (OSError, ValueError) as error:
        raise CommandError(f"--out {path} cannot be written: {error}") from None


def _save(picture: Image.Image, path: Path) -> None:
    from clasp_kernels.visualize import save_picture

    try:
        save_picture(picture, path)
    except (OSError, ValueError) as error:  # ValueError: sides that the format cannot hold
        raise CommandError(f"--out {path} cannot be written: {error}") from None
