"""The torch-free cores: their results, and that they stay within their memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import checks
import harness


@pytest.fixture(scope="session")
def core() -> ModuleType:
    return checks.load(harness.build("plain"))


@pytest.fixture
def instruction_set(core: ModuleType, request: pytest.FixtureRequest) -> str:
    if request.param not in core.instruction_sets():
        pytest.skip(f"this machine has no {request.param}")
    return request.param


@pytest.mark.parametrize(
    "instruction_set", ["avx512_bf16", "avx512", "avx2", "baseline"], indirect=True
)
@pytest.mark.parametrize("check", checks.CHECKS)
def test_core(core: ModuleType, instruction_set: str, check: str) -> None:
    checks.CHECKS[check](core, instruction_set)


@pytest.mark.parametrize("check", checks.CUDA_CHECKS)
def test_plan_of_cuda_kernels(core: ModuleType, check: str) -> None:
    checks.CUDA_CHECKS[check](core)


MILLISECOND = 1_000_000  # nanoseconds


def test_after_a_long_wait_for_other_threads_the_caller_works_alone(core: ModuleType) -> None:
    lateness = core.Lateness()
    assert not lateness.works_alone(0)
    lateness.observe(5 * MILLISECOND, 6 * MILLISECOND, 10 * MILLISECOND)
    assert lateness.works_alone(10 * MILLISECOND)
    # For long enough that the wait is a twentieth of it.
    assert lateness.works_alone(109 * MILLISECOND)
    assert not lateness.works_alone(110 * MILLISECOND)


def test_waits_that_an_idle_machine_has_are_not_long(core: ModuleType) -> None:
    lateness = core.Lateness()
    lateness.observe(MILLISECOND // 4, MILLISECOND // 4, MILLISECOND)  # waking a thread
    assert not lateness.works_alone(MILLISECOND)


def test_a_larger_share_is_not_late(core: ModuleType) -> None:
    lateness = core.Lateness()
    lateness.observe(20 * MILLISECOND, MILLISECOND // 20, 31 * MILLISECOND)
    assert not lateness.works_alone(31 * MILLISECOND)


def test_a_late_thread_that_nobody_waited_for_costs_nothing(core: ModuleType) -> None:
    lateness = core.Lateness()
    lateness.observe(MILLISECOND // 20, 20 * MILLISECOND, 31 * MILLISECOND)
    assert not lateness.works_alone(31 * MILLISECOND)


@pytest.fixture(scope="session")
def sanitized() -> Path:
    try:
        harness.sanitizer_environment()
    except RuntimeError as missing:
        pytest.skip(str(missing))
    return harness.build("sanitized")


def run_sanitized(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env=harness.sanitizer_environment(),
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.deep  # the build takes minutes
def test_no_sanitizer_report(core: ModuleType, sanitized: Path) -> None:
    done = run_sanitized("checks.py", str(sanitized))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ERROR: " not in done.stderr and "runtime error" not in done.stderr, done.stderr
    others = len(core.instruction_sets()) - 1
    passed = len(checks.CHECKS) + others * len(checks.CHECKS.keys() - checks.ONCE)
    assert done.stdout.count("ok ") == passed + len(checks.CUDA_CHECKS), done.stdout


@pytest.mark.deep
def test_the_sanitizer_is_there(sanitized: Path) -> None:
    code = (
        "import checks, pathlib, sys;"
        "checks.load(pathlib.Path(sys.argv[1])).read_past_the_end([1, 2, 3])"
    )
    done = run_sanitized("-c", code, str(sanitized))
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr, done.stderr
