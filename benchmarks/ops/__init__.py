"""The benchmarks of the ops, a file an op, which is found by the name that the table has of it.

    BENCHMARK = Benchmark(cpu=[...], gpu=[...], telling=(...))

is what a file has to have; :mod:`case` says what of.
"""

from __future__ import annotations

import importlib

from case import Benchmark

from clasp_kernels.backends.table import OPS


def load(op: str) -> Benchmark:
    benchmark: Benchmark = importlib.import_module(f"{__name__}.{op}").BENCHMARK
    return benchmark


def load_all() -> dict[str, Benchmark]:
    """By op, in the order of the table."""
    return {op: load(op) for op in OPS}
