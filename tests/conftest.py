"""Shared by all tests: which backends to test, and memory that cannot look right by accident."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

# Before anything of the package is imported, as Triton reads it once: without a GPU the tests
# interpret its kernels.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from clasp_kernels import backend_report, backends, use_backend

settings.register_profile(
    "clasp",
    max_examples=50,
    deadline=None,
    derandomize=True,
    # The backend fixture holds for a whole test, all its examples included.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("clasp")


def pytest_report_header() -> list[str]:
    return str(backend_report()).splitlines()


def serving(op: str, device: str = "cpu") -> list[str]:
    """Every backend that serves ``op`` on ``device`` here."""
    return [
        name
        for name in backends.NAMES
        if name != "auto" and backends.choose(op, device, name).backend == name
    ]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs a test that asks for ``backend`` on each backend that serves the OP of its module, and
    one that asks for ``served`` on each op with each of its backends."""
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", serving(metafunc.module.OP), indirect=True)
    if "served" in metafunc.fixturenames:
        ops = sorted({row.op for row in backend_report().ops})
        pairs = [(op, name) for op in ops for name in serving(op)]
        metafunc.parametrize("served", pairs, indirect=True, ids="-".join)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the backend that is forced."""
    with use_backend(request.param):
        yield request.param


@pytest.fixture
def served(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of an op that the backend that is forced serves."""
    op, name = request.param
    with use_backend(name):
        yield op


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Fresh allocations hold NaN, or the largest integer, so no unwritten output can pass.

    torch does the filling in its deterministic mode, for C++ as for Python; that mode also turns
    anything nondeterministic into an error.
    """
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
