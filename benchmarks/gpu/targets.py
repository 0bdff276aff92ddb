"""How far our rows are from what the kernels are meant to reach, as markdown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rows import COMPILED, EAGER, LIBRARY
from table import by_case, duration, markdown_table

from .recording import GpuRow

# Each name of a baseline, and the kinds of rows among which the fastest is that baseline.
OVER = {"the best eager and compiled": (EAGER, COMPILED), "the best of others' kernels": (LIBRARY,)}
BY_TORCH, BY_OTHERS = OVER


@dataclass(frozen=True)
class Target:
    op: str
    case: str
    at_most_us: float | None = None
    of_copy: float | None = None
    """The share of the measured copy bandwidth."""
    speedup: float | None = None
    over: str = BY_TORCH
    """The baseline of ``speedup``, a key of ``OVER``."""

    def __str__(self) -> str:
        if self.at_most_us is not None:
            return f"at most {duration(self.at_most_us)}"
        if self.of_copy is not None:
            return f"at least {self.of_copy:.0%} of the copy bandwidth"
        return f"at least {self.speedup:g}x {self.over}"

    def measured(self, rows: dict[str, GpuRow]) -> tuple[str, bool | None]:
        """Return our value as text, and whether it meets the target, None if it is not there."""
        ours = next((row for row in rows.values() if row.kind == "ours"), None)
        if ours is None:
            return "-", None
        if self.at_most_us is not None:
            return duration(ours.median_us), ours.median_us <= self.at_most_us
        if self.of_copy is not None:
            share = 1 / ours.times_floor if ours.times_floor else 0.0
            return f"{share:.0%}", share >= self.of_copy
        others = [row.median_us for row in rows.values() if row.kind in OVER[self.over]]
        if not others or self.speedup is None:
            return "-", None
        ratio = min(others) / ours.median_us
        return f"{ratio:.1f}x", ratio >= self.speedup


SALIENCE = (
    "B1 T64 S16384 bfloat16 H32/32 d128",
    "B1 T1 S16384 bfloat16 H32/32 d128",
    "B1 T32 S4096 bfloat16 H32/8 d128",
)
SELECT = "{}x{}x1024 bfloat16 R{} P{} random"
ONE, MANY = SELECT.format(1, 576, 64, 32), SELECT.format(64, 576, 64, 32)
TARGETS = [
    Target("fuse_layers", "64x576x1024 bfloat16 L4", of_copy=0.85),
    Target("select_pivots", "1x576 float32 k32", at_most_us=10),
    *(Target("attention_salience", case, speedup=3) for case in SALIENCE),
    *(Target("attention_salience", case, speedup=1, over=BY_OTHERS) for case in SALIENCE),
    Target("select_tokens", ONE, at_most_us=60),
    Target("select_tokens", MANY, at_most_us=200),
    *(Target("select_tokens", case, speedup=20) for case in (ONE, MANY)),
    Target("select_tokens", SELECT.format(1, 2880, 320, 160), at_most_us=400),
    Target("complete_tokens", SELECT.format(1, 576, 64, 1), speedup=5, over=BY_OTHERS),
]


def markdown(rows: Iterable[GpuRow]) -> str:
    cases = by_case(rows)
    lines = []
    for target in TARGETS:
        found, enough = target.measured(cases.get((target.op, target.case), {}))
        verdict = {None: "not measured", True: "met", False: "missed"}[enough]
        lines.append([f"`{target.op}` {target.case}", str(target), found, verdict])
    return markdown_table(["case", "target", "measured", "verdict"], lines)
