"""``clasp demo``: ask the bundled model the bundled questions about the bundled scenes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from clasp_kernels.bundled import bundled_path
from clasp_kernels.cli import report
from clasp_kernels.cli.comparison import Comparison, compare
from clasp_kernels.cli.errors import CommandError
from clasp_kernels.cli.loading import LoadedModel, load_image, load_model
from clasp_kernels.cli.picture import overlay
from clasp_kernels.policy import Schedule

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class DemoAnswer:
    """One bundled question: the true answer and the model's answers."""

    truth: str
    comparison: Comparison


@dataclass(frozen=True)
class DemoResults:
    """Every answer of one demo."""

    loaded: LoadedModel
    answers: tuple[DemoAnswer, ...]

    def contact_sheet(self) -> Image.Image:
        """Return one page with the picture of every question."""
        from clasp_kernels.visualize import Card, contact_sheet

        cards = []
        for answer in self.answers:
            comparison = answer.comparison
            _, drawn, _ = overlay(self.loaded, comparison, size=432)
            full, kept = comparison.all_tokens, comparison.kept_tokens
            cards.append(
                Card(
                    overlay=drawn,
                    title=comparison.question,
                    lines=(
                        f"{full.visual_tokens} tokens: {full.answer}",
                        f"{report.counts_in_words(comparison)} tokens: {kept.answer}   "
                        f"(truth: {answer.truth})",
                        f"{comparison.category}: {comparison.reason}",
                    ),
                )
            )
        first = self.answers[0].comparison
        heading = (
            f"clasp_kernels: {report.counts_in_words(first)} of "
            f"{first.all_tokens.visual_tokens} visual tokens kept"
        )
        return contact_sheet(cards, heading, stages=[stage.when for stage in first.stages])

    def summary(self) -> str:
        """Return a sentence with the number of right answers, with all and with kept tokens."""
        total = len(self.answers)
        full = sum(a.comparison.all_tokens.answer == a.truth for a in self.answers)
        kept = sum(a.comparison.kept_tokens.answer == a.truth for a in self.answers)
        return f"Right (+): {full} of {total} with all tokens, {kept} of {total} with those kept."


def run_demo(keep: int | Schedule, device: str, on_step: Callable[[str], None]) -> DemoResults:
    """Ask every bundled question with all visual tokens and with those that ``keep`` keeps."""
    loaded = load_model(None, device)
    try:
        folder = bundled_path("demo")
    except FileNotFoundError as error:
        raise CommandError(str(error)) from None
    entries = json.loads((folder / "questions.json").read_text(encoding="utf-8"))
    answers = []
    for number, entry in enumerate(entries, start=1):
        image = load_image(folder / entry["image"])
        prefix = f"Question {number} of {len(entries)}: "

        def step(text: str, prefix: str = prefix) -> None:
            on_step(prefix + text)

        comparison = compare(loaded, image, entry["question"], keep=keep, on_step=step)
        answers.append(DemoAnswer(entry["answer"], comparison))
    return DemoResults(loaded, tuple(answers))


def demo_table(results: DemoResults) -> Table:
    """Return a table with two rows per question: all visual tokens, and kept tokens."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("question")
    table.add_column("tokens", justify="right")
    table.add_column("answer")
    table.add_column("KV cache", justify="right")
    table.add_column("prefill", justify="right")
    for answer in results.answers:
        comparison = answer.comparison
        about = Text(f"  {comparison.category}, truth: {answer.truth}", style="dim")
        full, kept = comparison.all_tokens, comparison.kept_tokens
        for first, run, tokens in (
            (Text(comparison.question), full, f"{full.visual_tokens}"),
            (about, kept, report.in_turn(report.stage_counts(comparison))),
        ):
            table.add_row(
                first,
                tokens,
                _marked(run.answer, answer.truth),
                report.size(run.kv_cache_bytes),
                report.duration(run.seconds.prefill),
            )
        table.add_section()
    return table


def _marked(answer: str, truth: str) -> Text:
    right = answer == truth
    return Text(f"{answer} {'+' if right else 'x'}", style="green" if right else "red")
