"""``clasp doctor``: a report of the installation, and advice on what is missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clasp_kernels.bundled import tiny_vlm_path
from clasp_kernels.cli.environment import PREFIX, Report, collect

_TO_RUN_MODELS = ("transformers", "pillow", "safetensors")


@dataclass(frozen=True)
class Advice:
    """A problem and its fix."""

    problem: str
    remedy: str
    blocking: bool
    """Whether the problem keeps the ops from running."""


@dataclass(frozen=True)
class Examination:
    """The report and the advice derived from it."""

    report: Report
    advice: tuple[Advice, ...]

    @property
    def usable(self) -> bool:
        return not any(item.blocking for item in self.advice)

    def to_dict(self) -> dict[str, Any]:
        return {
            "usable": self.usable,
            "advice": [vars(item) for item in self.advice],
            "report": self.report,
        }


def examine() -> Examination:
    """Collect the report and find what is missing."""
    report = collect()
    return Examination(report, tuple(find_advice(report)))


def find_advice(report: Report) -> list[Advice]:
    """Return advice for the problems in a report, blocking problems first."""
    advice = []
    torch = report.get("torch", {})
    extension = report.get("extension", {})
    if "version" not in torch or torch["version"].startswith("error"):
        status = torch.get("status") or torch.get("version", "no answer")
        advice.append(
            Advice(
                f"torch does not work: {status}",
                "install it from https://pytorch.org, then clasp-kernels again",
                blocking=True,
            )
        )
    elif "loaded" not in extension:
        status = extension.get("status", "no answer")
        advice.append(
            Advice(
                f"the ops do not work: {status}",
                "set the environment variable right, or not at all"
                if PREFIX in status
                else "reinstall clasp-kernels: pip install --no-build-isolation .",
                blocking=True,
            )
        )
    elif extension["loaded"] != "yes":
        advice.append(
            Advice(
                f"the C++ kernels are not in use, the slow reference is: {extension['reason']}",
                "pip install --no-build-isolation . with a C++ compiler at hand",
                blocking=False,
            )
        )
    if extension.get("cuda loaded") == "no" and torch.get("gpus", "none visible") != "none visible":
        advice.append(
            Advice(
                f"the CUDA kernels are not in use: {extension['cuda reason']}",
                "CLASP_KERNELS_BUILD_CUDA=1 pip install --no-build-isolation . with a CUDA toolkit",
                blocking=False,
            )
        )
    missing = [name for name in _TO_RUN_MODELS if report["packages"].get(name) == "not installed"]
    if missing:
        advice.append(
            Advice(
                f"not installed: {', '.join(missing)}; models cannot be run",
                'pip install "clasp-kernels[hf]"',
                blocking=False,
            )
        )
    elif not any(item.blocking for item in advice):  # the check imports torch
        advice += _release_advice(report["packages"]["transformers"])
    try:
        tiny_vlm_path()
    except FileNotFoundError as error:
        advice.append(
            Advice(
                f"the bundled model is not there: {error}",
                "reinstall clasp-kernels; until then give clasp ask a --model",
                blocking=False,
            )
        )
    return advice


def _release_advice(transformers: str) -> list[Advice]:
    from clasp_kernels.models.compat import INSTALL, is_too_old, release_problem

    problem = release_problem(transformers)
    if not problem:
        return []
    if is_too_old(transformers):
        return [Advice(f"{problem}; models cannot be run", INSTALL, blocking=False)]
    remedy = "clasp doctor --verify tells whether pruning is correct with it"
    return [Advice(problem, remedy, blocking=False)]


def print_examination(examination: Examination, console: Console) -> None:
    """Print the report as tables, then the advice, last so that it is not overlooked."""
    for title, section in examination.report.items():
        console.print(Text(title, style="bold"))
        table = Table(box=None, show_header=False, padding=(0, 1))
        table.add_column(style="cyan", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in section.items():
            table.add_row(Text(name), Text(value.strip()))
        console.print(table)
        console.print()
    if not examination.advice:
        console.print("Nothing is missing.", style="bold green")
    for item in examination.advice:
        style = "bold red" if item.blocking else "bold yellow"
        console.print(Text("Problem: ", style=style) + Text(item.problem), soft_wrap=True)
        console.print(Text("    Fix: ", style=style) + Text(item.remedy), soft_wrap=True)
