"""Shared by all tests: the backends to test, and poisoned memory."""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, is_hypothesis_test, settings

# Without a GPU, the tests run Triton kernels in its interpreter. Set before any import of the
# package, because Triton reads the variable once.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# cuBLAS requires this in torch's deterministic mode, which poisons memory. Set before it starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

from interpreted import make_interpreter_faster
from on_device import ops_on

from clasp_kernels import backend_report, backends, use_backend

if os.environ.get("TRITON_INTERPRET") == "1":
    make_interpreter_faster()

# Divide the processors among the test processes: with more threads than processors, every parallel
# region waits for a thread that is not running.
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
torch.set_num_threads(max(1, torch.get_num_threads() // WORKERS))

settings.register_profile(
    "clasp",
    max_examples=50,
    deadline=None,
    derandomize=True,
    # The backend fixture applies to all examples of a test, so its function scope is fine.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
# For GPUs (`--hypothesis-profile=few`): almost every example has another shape, and so compiles a
# kernel.
settings.register_profile("few", settings.get_profile("clasp"), max_examples=10)
settings.load_profile("clasp")
# In Triton's interpreter an example takes many times as long as on the other backends.
INTERPRETED_EXAMPLES = 8


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--op-device",
        metavar="DEVICE",
        default="cuda" if torch.cuda.is_available() else None,
        help="the ops' tests run once more with their tensors on this device (default: cuda where "
        "there is one); cpu tries out what moves the tensors",
    )
    parser.addoption(
        "--all-combinations",
        action="store_true",
        help="also run the combinations of parameters that are left out for time",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out some combinations, unless --all-combinations is given.

    Every test runs, and so does every dtype in Triton's interpreter and every family in slow tests,
    but not each with each: of three dtypes, or of three to five families of a test, one is run.
    Tests by Hypothesis have fewer examples in the interpreter.
    """
    if config.getoption("--all-combinations"):
        return
    groups: dict[tuple[str, int], list[pytest.Item]] = {}
    for item in items:
        if group := combinations_of(item):
            groups.setdefault(group, []).append(item)
    left_out = {
        item
        for (name, one_of), members in groups.items()
        for place, item in enumerate(members, start=zlib.crc32(name.encode()))
        if len(members) >= 3 and place % min(one_of, len(members))
    }
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]


def is_interpreted(item: pytest.Item) -> bool:
    return "triton" in item.nodeid and os.environ.get("TRITON_INTERPRET") == "1"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Draw few examples in the interpreter. Backends share the test, and its settings with it."""
    test = getattr(item, "obj", None)
    few = is_interpreted(item) and not item.config.getoption("--all-combinations")
    if not (few and is_hypothesis_test(test)):
        return (yield)
    own = test._hypothesis_internal_use_settings
    few_examples = min(INTERPRETED_EXAMPLES, own.max_examples)
    test._hypothesis_internal_use_settings = settings(own, max_examples=few_examples)
    try:
        return (yield)
    finally:
        test._hypothesis_internal_use_settings = own


def combinations_of(item: pytest.Item) -> tuple[str, int] | None:
    """Return the name that an item shares with its combinations, and of how many of them one runs.

    None if all of them run.
    """
    if (callspec := getattr(item, "callspec", None)) is None:
        return None
    params: dict[str, object] = callspec.params
    if is_interpreted(item):
        varied, one_of = [n for n, value in params.items() if isinstance(value, torch.dtype)], 3
    elif item.get_closest_marker("deep"):
        varied, one_of = [name for name in params if name == "family"], 5
    else:
        return None
    if not varied:
        return None
    # By the test's id, on which all test processes agree.
    group = item.nodeid
    for name in varied:
        group = group.replace(str(params[name]), "*")
    return group, one_of


def pytest_report_header() -> list[str]:
    return str(backend_report()).splitlines()


# The designs of the CUDA extension. For the small images of these tests, "auto" chooses "matrix".
CUDA_DESIGN = "CLASP_KERNELS_CUDA_DESIGN"
CUDA_DESIGNS = ("auto", "steps")


class Served(NamedTuple):
    """A backend, the device that tensors are moved to for it (or None), and its CUDA design."""

    backend: str
    device: str | None = None
    design: str | None = None

    def __str__(self) -> str:
        return "-".join(filter(None, self))


def serving(op: str, device: str = "cpu") -> list[str]:
    """Return every backend that supports ``op`` on ``device`` on this machine."""
    return [
        name
        for name in backends.NAMES
        if name != "auto" and backends.choose(op, device, name).backend == name
    ]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise tests by backend.

    A test with the fixture ``backend`` runs on each backend that supports the OP of its module. A
    test with ``served`` runs for each op on each of its backends. Both run on the CPU and, unless
    marked cpu_tensors, on the device of --op-device.
    """
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
            # Check values on a GPU like values on the CPU.
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.setenv("CLASP_KERNELS_STRICT", "1")
            if how.design is not None:
                patch.setenv(CUDA_DESIGN, how.design)
        yield


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Force a backend and return its name."""
    with forced(request.param, request):
        yield request.param.backend


@pytest.fixture
def served(request: pytest.FixtureRequest) -> Iterator[str]:
    """Force a backend and return the name of an op that it supports."""
    op, how = request.param
    with forced(how, request):
        yield op


@pytest.fixture
def own_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the selection rules that a test registers, as other tests share the process."""
    from clasp_kernels.rules import registry

    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Fill fresh allocations with NaN, or the largest integer, so unwritten outputs are detected.

    torch's deterministic mode does so, for allocations in C++ and Python. It also makes
    nondeterministic operations an error.
    """
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """End a pytest-xdist worker whose GPU context is broken.

    After an illegal memory access, every later GPU test of the process would fail. pytest-xdist
    replaces the worker.
    """
    if report.failed and "PYTEST_XDIST_WORKER" in os.environ and torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            os._exit(1)
