"""The tables of whole models, for the terminal and the README."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from table import duration, markdown_table, size

from .measuring import PrefillRow
from .methods import INPUT, PROGRESSIVE, UNPRUNED
from .shapes import SHAPES

HEADER = [
    "B",
    "R",
    "all tokens",
    "input",
    "ideal / ours",
    "progressive",
    "ideal / ours",
    "each token after: all, input, progressive",
    "KV cache: all, input, progressive",
]
SELECTION = "selection of the time to the first token: input, progressive"


def prefill_table(rows: Iterable[dict[str, Any]]) -> str:
    """A table of recorded rows, with one line for each batch size and budget."""
    ours = [row for row in map(_row, rows) if not row.ideal]
    everything = {row.batch: row for row in ours if row.method == UNPRUNED}
    pruned = {(row.batch, row.budget, row.method): row for row in ours if row.method != UNPRUNED}
    with_selection = any(row.selection_share is not None for row in pruned.values())
    lines = []
    for batch, budget in dict.fromkeys(key[:2] for key in pruned):
        three = [everything[batch], *(pruned[batch, budget, it] for it in (INPUT, PROGRESSIVE))]
        every, at_input, inside = three
        lines.append(
            [
                str(batch),
                str(budget),
                duration(1e6 * every.first_token),
                duration(1e6 * at_input.first_token),
                f"{at_input.ideal_ratio:.2f}",
                duration(1e6 * inside.first_token),
                f"{inside.ideal_ratio:.2f}",
                ", ".join(duration(1e6 * row.per_token) for row in three),
                ", ".join(size(row.kv_bytes) for row in three),
            ]
        )
        if with_selection:
            shares = (it.selection_share for it in (at_input, inside))
            lines[-1].append(", ".join("-" if it is None else f"{it:.1%}" for it in shares))
    return markdown_table(HEADER + [SELECTION] * with_selection, lines)


def whole_model(content: dict[str, Any], where: str) -> str:
    """The README's paragraph and table of one file that ``bench_prefill.py`` recorded."""
    environment, rows = content["environment"], [_row(row) for row in content["rows"]]
    shape = environment["shape"]
    family = SHAPES[environment["shape_name"]].family
    inside = next(row for row in rows if row.method == PROGRESSIVE)
    stages = [str(layer) for layer, _ in inside.stages]
    tokens = next(row for row in rows if row.method == UNPRUNED).budget
    spread = max(row.first_token_iqr / row.first_token for row in rows)
    return (
        f"**{family}'s shape on a CPU** ({where}), cut to "
        f"{environment['parameters'] / 1e6:.0f} M parameters, with random weights in "
        f"{environment['dtype']}: B prompts of {tokens} visual tokens and "
        f"{shape['text_before'] + shape['text_after']} of text. Inside the decoder, tokens are "
        f"dropped once {', '.join(stages[:-1])} and {stages[-1]} of its "
        f"{shape['text']['layers']} layers have run. Medians of {inside.rounds} rounds, between "
        f"which times vary (interquartile range up to {spread:.0%} of the median).\n\n"
        + prefill_table(content["rows"])
    )


# What the tables have in common.
EXPLANATION = (
    "**Whole models.** Time to the first token, vision tower included, with R visual tokens kept "
    "before the language model (input), or R on average over its layers (progressive). Ideal: the "
    "same layers given as many tokens for free. Every round runs each of them once, and ratios "
    "are taken within rounds.\n\n"
)


def _row(recorded: dict[str, Any]) -> PrefillRow:
    return PrefillRow(**recorded)
