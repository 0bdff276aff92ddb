"""Every op on the CPU, next to what it is compared with: the cases of ``benchmarks/ops``."""

from __future__ import annotations

from collections.abc import Callable

import ops
import pytest
from case import Case, Implementation


@pytest.mark.parametrize(
    ("case", "implementation"),
    [
        pytest.param(case, implementation, id=f"{op} {case}-{implementation.name}")
        for op, benchmark in ops.load_all().items()
        for case in benchmark.cpu
        for implementation in case.implementations(gpu=False)
    ],
)
def bench_op(case: Case, implementation: Implementation, measure: Callable[..., None]) -> None:
    measure(case, implementation)
