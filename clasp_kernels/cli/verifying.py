"""``clasp doctor --verify``: run the masking oracle and print its report as a table."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clasp_kernels.cli.errors import CommandError, in_one_line, refusing_as
from clasp_kernels.cli.loading import load_weights, pick_device

if TYPE_CHECKING:
    from clasp_kernels.models import Verification


def run_verification(model: str | None, device: str) -> Verification:
    """Run the oracle on tiny models of every family, or on the given model."""
    from clasp_kernels.models import verify

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if model is None:
            return verify(device=pick_device(device))
        loaded = load_weights(model, device)
        try:
            with refusing_as(f"--model {model}"):
                return verify(loaded)
        except (TypeError, RuntimeError) as error:  # the model is not supported
            raise CommandError(f"--model {model}: {in_one_line(error)}") from None


def print_verification(verification: Verification, console: Console) -> None:
    """Print one row per check, and a sentence at the end."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name, align in (
        ("family", "left"),
        ("check", "left"),
        ("attention", "left"),
        ("difference", "right"),
        ("allowed", "right"),
        ("control", "right"),
        ("", "left"),
    ):
        table.add_column(name, justify=align)  # type: ignore[arg-type]
    for check in verification.checks:
        table.add_row(
            check.family,
            check.name,
            check.attention,
            *map(_number, (check.difference, check.tolerance, check.control)),
            Text("ok", style="green") if check.passed else Text("FAILED", style="bold red"),
        )
    console.print(table)
    console.print(
        "Difference: of the logits, from the unpatched model with the dropped tokens masked. "
        "Control: the difference if other tokens are masked.",
        style="dim",
    )
    failed = [check for check in verification.checks if not check.passed]
    for check in failed:
        about = f"{check.family}, {check.name}, {check.attention}: "
        console.print(Text(about, style="bold red") + Text(check.problem), soft_wrap=True)
    release = f"transformers {verification.transformers}"
    if verification.passed:
        tested = "" if verification.tested else ", which is not among the tested releases"
        console.print(
            f"Pruning is correct with {release}{tested} (torch {verification.torch}, "
            f"{verification.dtype} on {verification.device}).",
            style="bold green",
            highlight=False,
        )
    else:
        console.print(
            f"{len(failed)} of {len(verification.checks)} checks failed with {release}: do not "
            f"rely on pruned models here, and please report it.",
            style="bold red",
            highlight=False,
        )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"
