"""``clasp ask --compare``: the names of the rules, and their answers side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from clasp_kernels.cli import picture, report
from clasp_kernels.cli.comparison import Comparison
from clasp_kernels.cli.errors import UsageError
from clasp_kernels.cli.loading import LoadedModel

if TYPE_CHECKING:
    from PIL import Image

# The longer side of each picture on the page, in pixels.
_SIZE = 432


def chosen_rules(rule: str | None, compare: str | None) -> tuple[str, ...] | None:
    """Return the rules of --rule or --compare, which exclude each other; None if neither is given.

    Raises a UsageError if a name is unknown, empty or repeated.
    """
    if compare is None:
        return None if rule is None else (known_rule("--rule", rule),)
    if rule is not None:
        raise UsageError(
            "--rule and --compare exclude each other: --rule selects by one rule, --compare by "
            "several; name all of them in --compare"
        )
    return listed_rules("--compare", compare)


def listed_rules(option: str, text: str) -> tuple[str, ...]:
    """Return the rules of a list with commas.

    Raises a UsageError if a name is unknown, empty or repeated.

    >>> listed_rules("--compare", "clasp, divprune")
    ('clasp', 'divprune')
    """
    names = tuple(name.strip() for name in text.split(","))
    if not any(names):
        got = "only commas" if text.strip() else "an empty argument"
        raise UsageError(f"{option} must name rules, such as clasp,divprune, got {got}")
    for name in names:
        if not name:
            raise UsageError(
                f"{option} must have one name between two commas, got {text!r}; leave out the "
                f"comma too many"
            )
        known_rule(option, name)
        if names.count(name) > 1:
            raise UsageError(f"{option} must name each rule once, but {name} is named twice")
    return names


def known_rule(option: str, name: str) -> str:
    """Return the name of a rule. Raises a UsageError if it is none."""
    from clasp_kernels.rules import rule_names

    if name not in rule_names():
        each = "" if option == "--rule" else "rules, each "
        raise UsageError(f"{option} must be {each}one of {', '.join(rule_names())}, got {name!r}")
    return name


def rules_table(comparisons: Sequence[Comparison]) -> Table:
    """Return a table with a row for all tokens and one for each rule."""
    full = comparisons[0].all_tokens
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("rule", no_wrap=True)
    table.add_column("answer", overflow="fold")
    for heading in ("as all", "tokens", "selection", "first token", "whole answer"):
        table.add_column(heading, justify="right")
    table.add_row(
        "(all tokens)",
        Text(full.answer, style="bold"),
        "",
        f"{full.visual_tokens}",
        "-",
        report.duration(full.seconds.first_token),
        report.duration(full.seconds.total),
    )
    for comparison in comparisons:
        kept = comparison.kept_tokens
        table.add_row(
            comparison.rule,
            Text(kept.answer, style="bold"),
            "yes" if is_same(comparison) else Text("no", style="yellow"),
            report.in_turn(report.stage_counts(comparison)),
            report.duration(kept.seconds.selection),
            report.duration(kept.seconds.first_token),
            report.duration(kept.seconds.total),
        )
    return table


def is_same(comparison: Comparison) -> bool:
    """Return whether the answer with the kept tokens is that with all of them."""
    return comparison.kept_tokens.answer == comparison.all_tokens.answer


def times_in_words(comparisons: Sequence[Comparison]) -> str:
    """Return what the times of ``rules_table`` measure."""
    return (
        f"Times: median of {comparisons[0].timed_runs}, in turn, after a warm-up of every rule. "
        f"First token and whole answer count from the call of generate, with vision and selection."
    )


def rules_dict(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Return the comparisons as JSON data, in bytes and seconds."""
    first = comparisons[0]
    return {
        "question": first.question,
        "category": {"name": first.category, "reason": first.reason},
        "schedule": None if first.schedule is None else str(first.schedule),
        "timed_runs": first.timed_runs,
        "all_tokens": asdict(first.all_tokens),
        "rules": [
            {
                "rule": comparison.rule,
                "same_answer": is_same(comparison),
                **asdict(comparison.kept_tokens),
                "pivots": comparison.num_pivots,
                "mean_visual_tokens": comparison.mean_visual_tokens,
                "indices": list(comparison.indices),
                "is_pivot": list(comparison.is_pivot),
                "stages": report.stages_list(comparison),
            }
            for comparison in comparisons
        ],
    }


def rules_picture(loaded: LoadedModel, comparisons: Sequence[Comparison]) -> Image.Image:
    """Return one page with the image, and what each rule kept of it.

    Raises NoPicture if the model's view is not known.
    """
    from clasp_kernels.visualize import Card, contact_sheet

    first = comparisons[0]
    cards: list[Card] = []
    for comparison in comparisons:
        seen, drawn, _ = picture.overlay(loaded, comparison, _SIZE)
        if not cards:
            full = first.all_tokens
            line = f"{full.visual_tokens} tokens: {full.answer}"
            cards.append(Card(seen.resize(drawn.size), "all tokens", (line,)))
        kept = comparison.kept_tokens
        cards.append(
            Card(
                drawn,
                comparison.rule,
                (
                    f"{report.counts_in_words(comparison)} tokens: {kept.answer}",
                    f"first token {report.duration(kept.seconds.first_token)}, "
                    f"selection {report.duration(kept.seconds.selection)}",
                ),
            )
        )
    heading = f"{first.question}\nCategory {first.category}: {first.reason}"
    is_wide = cards[0].overlay.width > 1.5 * cards[0].overlay.height  # several views in a row
    columns = 2 if is_wide else 4 if len(cards) == 4 or len(cards) > 6 else 3
    stages = [stage.when for stage in first.stages]
    return contact_sheet(cards, heading, columns=columns, stages=stages, kept=picture.LEGEND)
