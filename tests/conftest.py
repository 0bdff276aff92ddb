"""Shared by all tests: which backends to test, and memory that cannot look right by accident."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, settings

# Before anything of the package is imported, as Triton reads it once: without a GPU the tests
# interpret its kernels.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# Before cuBLAS starts: in torch's deterministic mode, which poisons memory, it insists on this.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

from on_device import ops_on

from clasp_kernels import backend_report, backends, use_backend

# Processes that share the tests share the processors: with more threads than there are of those,
# every parallel region waits for a thread that does not run.
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
torch.set_num_threads(max(1, torch.get_num_threads() // WORKERS))

settings.register_profile(
    "clasp",
    max_examples=50,
    deadline=None,
    derandomize=True,
    # The backend fixture holds for a whole test, all its examples included.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
# On a GPU a kernel is compiled for nearly every example, as each has another shape:
# `--hypothesis-profile=few`.
settings.register_profile("few", settings.get_profile("clasp"), max_examples=10)
settings.load_profile("clasp")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--op-device",
        metavar="DEVICE",
        default="cuda" if torch.cuda.is_available() else None,
        help="the ops' tests run once more with their tensors on this device (default: cuda where "
        "there is one); cpu tries out what moves the tensors",
    )


def pytest_report_header() -> list[str]:
    return str(backend_report()).splitlines()


# Of the CUDA extension; "auto" chooses by shape, for images as small as these tests have "matrix".
CUDA_DESIGN = "CLASP_KERNELS_CUDA_DESIGN"
CUDA_DESIGNS = ("auto", "steps")


class Served(NamedTuple):
    """A backend, and the device that tensors go to for it, if they do."""

    backend: str
    device: str | None = None
    design: str | None = None

    def __str__(self) -> str:
        return "-".join(filter(None, self))


def serving(op: str, device: str = "cpu") -> list[str]:
    """Every backend that serves ``op`` on ``device`` here."""
    return [
        name
        for name in backends.NAMES
        if name != "auto" and backends.choose(op, device, name).backend == name
    ]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs a test that asks for ``backend`` on each backend that serves the OP of its module, and
    one that asks for ``served`` on each op with each of its backends; both on the CPU and on the
    device of --op-device, unless they are marked cpu_tensors."""
    device = metafunc.config.getoption("--op-device", default=None)
    if metafunc.definition.get_closest_marker("cpu_tensors"):
        device = None

    def served(op: str) -> list[Served]:
        here = [Served(name) for name in serving(op)]
        there = serving(op, torch.device(device).type) if device else []
        for name in there:
            designs = CUDA_DESIGNS if name == "cuda" else (None,)
            here += [Served(name, device, design) for design in designs]
        return here

    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", served(metafunc.module.OP), indirect=True, ids=str)
    if "served" in metafunc.fixturenames:
        ops = sorted({row.op for row in backend_report().ops})
        pairs = [(op, how) for op in ops for how in served(op)]
        ids = [f"{op}-{how}" for op, how in pairs]
        metafunc.parametrize("served", pairs, indirect=True, ids=ids)


@contextlib.contextmanager
def forced(how: Served, request: pytest.FixtureRequest) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(use_backend(how.backend))
        if how.device is not None:
            stack.enter_context(ops_on(how.device, request.module))
            # With it values on a GPU are checked as those on the CPU are.
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.setenv("CLASP_KERNELS_STRICT", "1")
            if how.design is not None:
                patch.setenv(CUDA_DESIGN, how.design)
        yield


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the backend that is forced."""
    with forced(request.param, request):
        yield request.param.backend


@pytest.fixture
def served(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of an op that the backend that is forced serves."""
    op, how = request.param
    with forced(how, request):
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


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A kernel that reads where it must not leaves its process without a GPU, and all tests after
    it would fail. Under pytest-xdist the process ends instead, and a new one goes on."""
    if report.failed and "PYTEST_XDIST_WORKER" in os.environ and torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            os._exit(1)
