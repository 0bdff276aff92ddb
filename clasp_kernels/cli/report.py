"""Output of the commands: tables, JSON, and captions of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from clasp_kernels.cli.comparison import Comparison
from clasp_kernels.cli.terminal import shown

_PHASES = ("vision", "selection", "prefill", "decode", "total")


def comparison_table(comparison: Comparison) -> Table:
    """Return a table that compares all tokens with kept tokens: answer, tokens, cache, times."""
    full, kept = comparison.all_tokens, comparison.kept_tokens
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("", no_wrap=True)
    for heading in ("all tokens", "kept tokens", "change"):
        table.add_column(heading, justify="right", overflow="fold")
    same = full.answer == kept.answer
    table.add_row(
        "answer",
        Text(full.answer, style="bold"),
        Text(kept.answer, style="bold"),
        "same" if same else Text("different", style="yellow"),
    )
    table.add_row(
        "visual tokens",
        f"{full.visual_tokens}",
        tokens_kept(comparison),
        change(full.visual_tokens, comparison.mean_visual_tokens),
    )
    table.add_row(
        "KV cache",
        size(full.kv_cache_bytes),
        size(kept.kv_cache_bytes),
        change(full.kv_cache_bytes, kept.kv_cache_bytes),
    )
    for phase in _PHASES:
        before, after = getattr(full.seconds, phase), getattr(kept.seconds, phase)
        unpruned = "-" if phase == "selection" else duration(before)
        table.add_row(
            phase, unpruned, duration(after), "" if phase == "selection" else change(before, after)
        )
    return table


def tokens_kept(comparison: Comparison) -> str:
    """Return the kept tokens as text: the count and its pivots. With a schedule: the count of every
    stage, and the mean over the layers, which determines the cost."""
    if comparison.schedule is None:
        return f"{comparison.kept_tokens.visual_tokens} ({comparison.num_pivots} pivots)"
    return (
        f"{in_turn((comparison.all_tokens.visual_tokens, *stage_counts(comparison)))} "
        f"(mean {comparison.mean_visual_tokens:.1f} over {comparison.num_layers} layers)"
    )


def in_turn(counts: Sequence[int]) -> str:
    """Join counts with arrows.

    >>> in_turn([144]), in_turn([144, 72, 29])
    ('144', '144 → 72 → 29')
    """
    return shown(" → ", otherwise=" -> ").join(map(str, counts))


def stage_counts(comparison: Comparison) -> tuple[int, ...]:
    """Return the number of tokens after each stage."""
    return tuple(stage.tokens_after for stage in comparison.stages)


def counts_in_words(comparison: Comparison) -> str:
    """Return the number of tokens after each stage as text, such as "72, then 29"."""
    return ", then ".join(map(str, stage_counts(comparison)))


def comparison_dict(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison as JSON data, in bytes and seconds."""
    full, kept = comparison.all_tokens, comparison.kept_tokens

    def both(name: str) -> dict[str, Any]:
        return {"all": getattr(full, name), "kept": getattr(kept, name)}

    return {
        "question": comparison.question,
        "category": {"name": comparison.category, "reason": comparison.reason},
        "answer": both("answer"),
        "visual_tokens": {**both("visual_tokens"), "pivots": comparison.num_pivots},
        "mean_visual_tokens": comparison.mean_visual_tokens,
        "new_tokens": both("new_tokens"),
        "kv_cache_bytes": both("kv_cache_bytes"),
        "seconds": {
            name: {phase: getattr(run.seconds, phase) for phase in _PHASES}
            for name, run in (("all", full), ("kept", kept))
        },
        "timed_runs": comparison.timed_runs,
        "indices": list(comparison.indices),
        "is_pivot": list(comparison.is_pivot),
        "rule": comparison.rule,
        "schedule": None if comparison.schedule is None else str(comparison.schedule),
        "stages": stages_list(comparison),
    }


def stages_list(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the stages as JSON data."""
    return [
        {
            "layer": stage.layer,
            "tokens_before": stage.tokens_before,
            "tokens_after": stage.tokens_after,
            "indices": list(stage.indices),
            "is_pivot": list(stage.is_pivot),
        }
        for stage in comparison.stages
    ]


def caption(comparison: Comparison) -> Sequence[str]:
    """Return the lines below a picture."""
    full, kept = comparison.all_tokens, comparison.kept_tokens
    kept_where = f"{kept.visual_tokens} tokens"
    if comparison.schedule is not None:
        kept_where = ", then ".join(f"{one.tokens_after} {one.when}" for one in comparison.stages)
    return (
        f"All {full.visual_tokens} tokens: {full.answer}",
        f"Kept {kept_where}: {kept.answer}",
        f"Category {comparison.category}: {comparison.reason}",
        f"KV cache {size(full.kv_cache_bytes)} to {size(kept.kv_cache_bytes)}, "
        f"prefill {duration(full.seconds.prefill)} to {duration(kept.seconds.prefill)}",
    )


def size(num_bytes: float) -> str:
    """Format a number of bytes.

    >>> size(512), size(460_800), size(3_000_000_000)
    ('512 B', '461 kB', '3.00 GB')
    """
    unit = "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if num_bytes < 999.5 or unit == "TB":  # 999.5 would be rounded to 1000
            break
        num_bytes /= 1000
    return (
        f"{num_bytes:.0f} {unit}" if num_bytes >= 100 or unit == "B" else f"{num_bytes:.2f} {unit}"
    )


def duration(seconds: float) -> str:
    """Format a number of seconds.

    >>> duration(0.0000321), duration(0.0123), duration(2.5)
    ('0.03 ms', '12.3 ms', '2.50 s')
    """
    if seconds >= 0.99995:  # would be rounded to 1000.0 ms
        return f"{seconds:.2f} s"
    milliseconds = seconds * 1e3
    return f"{milliseconds:.1f} ms" if milliseconds >= 0.995 else f"{milliseconds:.2f} ms"


def change(before: float, after: float) -> str:
    """Format a relative change in percent.

    >>> change(576, 64), change(10, 11), change(5, 5)
    ('-89 %', '+10 %', '0 %')
    >>> change(0, 1)  # a one-token answer has no decode time
    '-'
    """
    if before == 0:
        return "-"
    percent = round(100 * (after / before - 1))
    return f"{percent:+d} %" if percent else "0 %"
