"""How much memory a call takes beyond its inputs and outputs, at its peak.

    python benchmarks/peak_memory.py                 # all cases -> benchmarks/results/cpu
    python benchmarks/peak_memory.py --match fuse    # some, printed only

Each case runs in a process of its own, in which ``count_malloc.py`` counts what malloc gives out.
The process calls the op on few tokens of the same width, so that threads and whatever is set up
once are there, and then on all of them. The peak of live bytes during that call, less what was live
before and less the outputs, is what the call took.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import bench_attention_salience
import bench_fuse_layers
import bench_gather_merge
import bench_select_tokens
import eager_gather_merge
import eager_select_tokens
import torch
from count_malloc import counting, result_and_peak
from machine import ROOT, environment
from rich.console import Console
from rich.table import Table
from rows import OURS
from table import size
from torch import Tensor

from clasp_kernels import backends, use_backend

RECORDED = ROOT / "benchmarks" / "results" / "cpu" / "peak_memory.json"
FEW_TOKENS = 16


@dataclass(frozen=True)
class Measured:
    op: str
    case: str
    implementation: str
    peak_bytes: int
    """Beyond inputs and outputs."""
    limit_bytes: int | None
    """What the op promises, where it promises something."""


def eager_gram(features: Tensor, salience: Tensor, budget: int, num_pivots: int) -> Tensor:
    return eager_select_tokens.select_tokens(
        features, salience, budget, num_pivots, eager_select_tokens.gram
    )


def eager_merge(tokens: Tensor, indices: Tensor) -> Tensor:
    return eager_gather_merge.merge_embedding_bag_native(tokens, tokens, indices)


FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    ("select_tokens", OURS): bench_select_tokens.our_select,
    ("select_tokens", "eager-gram"): eager_gram,
    ("fuse_layers", OURS): bench_fuse_layers.our_fuse,
    ("attention_salience", OURS): bench_attention_salience.our_salience,
    ("merge_tokens", OURS): bench_gather_merge.our_merge,
    ("merge_tokens", "eager-embedding-bag-native"): eager_merge,
}
CASES: dict[str, list[Any]] = {
    "select_tokens": [case for case in bench_select_tokens.CASES if case.features == "random"],
    "fuse_layers": [case for case in bench_fuse_layers.CASES if case.batch == 8],
    "attention_salience": [
        case
        for case in bench_attention_salience.CASES
        if case.rows in (1, 64) and case.keys == 4096 and case.key_heads == 8
    ],
    "merge_tokens": [
        case for case in bench_gather_merge.MERGE_CASES if case.num_tokens in (576, 2880)
    ],
}


def limit(op: str, case: Any) -> int | None:
    """``select_tokens`` keeps no N x N matrix: 8 bytes x B x N x P at most."""
    if op != "select_tokens":
        return None
    return 8 * case.batch * case.num_tokens * case.num_pivots


def _few(op: str, case: Any) -> Any:
    if op == "attention_salience":
        return replace(case, keys=case.rows, key_range=(0, case.rows))
    if op == "select_tokens":
        return replace(case, num_tokens=FEW_TOKENS, budget=8, num_pivots=4)
    return replace(case, num_tokens=FEW_TOKENS)


def measure_call(function: Callable[[], Any]) -> int:
    """The peak of what ``function`` takes beyond what it returns, in bytes; in a process started
    with :func:`counting`."""
    result, peak = result_and_peak(function)
    outputs = [result] if isinstance(result, Tensor) else list(result)
    returned = sum(output.untyped_storage().nbytes() for output in outputs)
    return max(peak - returned, 0)


def _measure_here(op: str, name: str, implementation: str) -> int:
    case = next(case for case in CASES[op] if str(case) == name)
    function = FUNCTIONS[op, implementation]
    inputs = case.inputs()
    with torch.no_grad(), use_backend("cpu" if implementation == OURS else "auto"):
        function(*_few(op, case).inputs())
        function(*_few(op, case).inputs())
        return measure_call(lambda: function(*inputs))


def in_fresh_process(*arguments: str) -> int:
    done = subprocess.run(
        [sys.executable, __file__, "--here", *arguments],
        env=counting(),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"peak_memory {' '.join(arguments)} failed:\n{done.stderr}")
    return int(done.stdout)


def measure(match: str = "") -> list[Measured]:
    """Two processes at a time: unlike times, peaks do not mind."""
    wanted = [
        (op, case, implementation)
        for (op, implementation) in FUNCTIONS
        for case in CASES[op]
        if match in f"{op} {case} {implementation}"
    ]
    with ThreadPoolExecutor(2) as pool:
        peaks = list(pool.map(lambda it: in_fresh_process(it[0], str(it[1]), it[2]), wanted))
    return [
        Measured(op, str(case), implementation, peak, limit(op, case))
        for (op, case, implementation), peak in zip(wanted, peaks, strict=True)
    ]


def make_table(measured: list[Measured]) -> Table:
    table = Table(
        title="Peak memory beyond inputs and outputs",
        caption="Limit of select_tokens: 8 bytes x B x N x P.",
    )
    for name in ("op", "case", "implementation"):
        table.add_column(name)
    for name in ("peak", "limit"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in measured:
        over = row.limit_bytes is not None and row.peak_bytes > row.limit_bytes
        colour = "red" if over and row.implementation == OURS else "default"
        peak = f"[{colour}]{size(row.peak_bytes)}[/{colour}]"
        table.add_row(row.op, row.case, row.implementation, peak, size(row.limit_bytes))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--match", default="", help="only the cases whose names have this in them")
    parser.add_argument("--here", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        print(_measure_here(*arguments.here))
        return
    for op in CASES:
        choice = backends.choose(op, "cpu", "cpu")
        if choice.backend is None and arguments.match in op:
            sys.exit(f"the cpu backend does not serve {op}: {choice.reason}")
    counting()  # once, before the threads
    measured = measure(arguments.match)
    if not arguments.match:
        rows = [asdict(row) for row in measured]
        content = {"environment": environment(), "rows": rows}
        RECORDED.write_text(json.dumps(content, indent=2) + "\n")
    Console(width=None if sys.stdout.isatty() else 140).print(make_table(measured))


if __name__ == "__main__":
    main()
