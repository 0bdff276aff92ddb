"""Compiles every Triton kernel for every supported GPU architecture; needs no GPU.

The launchers of clasp_kernels/triton/ are called with the cases of triton_cases.py under a driver
that launches nothing (triton_stub.py). The compiled kernels must

- need no more shared memory than the architecture has, and no grid beyond the GPU's limits;
- neither spill registers nor use too many (kernel_report.py), unless triton_cases.py has an
  exception. Every Triton version has another compiler, so this only fails with the version that
  triton_cases.py names and is merely printed otherwise;
- access memory 16 bytes at a time in the cases marked as wide.

Every launcher must have cases, and every kernel that a launcher can launch must be in one.

    triton_check.py [CAPABILITY...]    (of 80, 90 and 100)
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.metadata
import importlib.util
import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from kernel_report import CAPABILITIES, Exemption, Report, asked_capabilities
from kernel_resources import Resources, narrow_accesses, read_resources

if TYPE_CHECKING:
    from triton_stub import Launch, StubDriver

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "clasp_kernels" / "triton"
NARROW = "must access memory 16 bytes at a time:"
BATCH = 2  # any value; tests/test_triton_compile.py asserts that it makes no difference


class Task(NamedTuple):
    op: str
    case: int
    capability: int


@dataclass(frozen=True)
class Compiled:
    """A kernel as compiled for one launch."""

    kernel: str
    hash: str
    resources: Resources
    narrow: list[str]
    seconds: float
    """0 if an earlier case has compiled it."""


@dataclass(frozen=True)
class Result:
    task: Task
    title: str
    compiled: list[Compiled]
    error: str
    """The exception, or empty."""


def compile_case(task: Task) -> Result:
    """Calls one launcher. Runs in a worker process."""
    from triton_cases import CASES

    case = CASES[task.op][task.case]
    driver = driver_for(task.capability)
    driver.launches.clear()
    driver.seconds.clear()
    error = ""
    compiled = []
    try:
        launcher = getattr(importlib.import_module(f"clasp_kernels.triton.{task.op}"), task.op)
        with driver.active():
            launcher(*case.arguments(BATCH))
        if not driver.launches:
            raise RuntimeError(f"{task.op} launched nothing.")
        unique = {launch.hash: launch for launch in driver.launches}.values()
        compiled = [examine(launch, driver, case.wide) for launch in unique]
    except Exception as raised:  # whatever a launcher or the compiler raises is reported
        error = explain(raised)
    return Result(task, f"{task.op}({case})", compiled, error)


def explain(error: BaseException) -> str:
    """Returns the place in the package and the innermost exception, which compilers chain."""
    frames = traceback.extract_tb(error.__traceback__)
    where = [
        f"{frame.filename}:{frame.lineno}" for frame in frames if str(PACKAGE) in frame.filename
    ]
    while cause := error.__cause__ or error.__context__:
        error = cause
    return "\n".join([*where[-1:], *traceback.format_exception_only(error)]).rstrip()


@functools.cache
def driver_for(capability: int) -> StubDriver:
    """Returns this process's driver, which caches the compiled kernels."""
    from triton_stub import StubDriver

    return StubDriver(capability)


def examine(launch: Launch, driver: StubDriver, wide: bool) -> Compiled:
    import triton

    return Compiled(
        launch.kernel,
        launch.hash,
        read_resources(
            triton.knobs.nvidia.cuobjdump.path,
            launch.files["cubin"],
            capability=driver.capability,
            shared=launch.shared,
            num_warps=launch.num_warps,
        ),
        narrow_accesses(launch.files["ptx"].read_text()) if wide else [],
        driver.seconds.get(launch.hash, 0.0),
    )


def report(
    results: list[Result],
    exceptions: list[Exemption],
    unjudged: str = "",
    capabilities: Sequence[int] = CAPABILITIES,
) -> bool:
    """Prints the findings. Returns True if nothing is wrong. The last two arguments are those of
    Report."""
    found = Report(exceptions, unjudged, capabilities)
    for result in results:
        architecture = f"sm_{result.task.capability}"
        if result.error:
            found.add_error(result.error, result.title, architecture)
        for kernel in result.compiled:
            found.add(
                short(kernel.kernel),
                kernel.hash,
                result.title,
                architecture,
                kernel.resources,
                seconds=kernel.seconds,
                problems=[(NARROW, access) for access in kernel.narrow],
            )
    unseen = [
        f"{module}.{kernel}: no case of triton_cases.py launches it."
        for module, kernel in launched_kernels()
        if f"{module}.{kernel}" not in found.kernels and found.complete
    ]
    return found.show(unseen)


def short(kernel_name: str) -> str:
    return kernel_name.removeprefix("clasp_kernels.triton.")


def launched_kernels() -> list[tuple[str, str]]:
    """Returns module and name of every kernel in PACKAGE that a function outside kernels uses."""
    kernels = set()
    referred: set[tuple[str, str] | None] = set()
    for path in sorted(PACKAGE.glob("*.py")):
        body = ast.parse(path.read_text()).body
        functions = [node for node in body if isinstance(node, ast.FunctionDef)]
        known = {function.name: (path.stem, function.name) for function in functions}
        for node in body:
            if isinstance(node, ast.ImportFrom) and node.module:
                module = node.module.rpartition(".")[2]
                known |= {alias.asname or alias.name: (module, alias.name) for alias in node.names}
        for function in functions:
            if any(map(is_jit, function.decorator_list)):
                kernels.add((path.stem, function.name))
                continue
            for part in ast.walk(function):
                if isinstance(part, ast.Name):
                    referred.add(known.get(part.id))
                elif isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name):
                    referred.add((part.value.id, part.attr))
    return sorted(kernels & referred)


def is_jit(decorator: ast.expr) -> bool:
    call = decorator.func if isinstance(decorator, ast.Call) else decorator
    return "jit" in (getattr(call, "id", ""), getattr(call, "attr", ""))


def main(arguments: Sequence[str] = ()) -> int:
    capabilities = asked_capabilities((__doc__ or "").splitlines()[0], arguments)
    if importlib.util.find_spec("triton") is None:
        print("not checked: Triton kernels: triton is not installed (pip install triton)")
        return 0
    # Triton settings of the caller must not change what is compiled. Paths of its tools may stay.
    for name in list(os.environ):
        tool = name.endswith("_PATH")
        if name.startswith(("TRITON_", "PTXAS_", "DISABLE_PTXAS_")) and not tool:
            del os.environ[name]
    sys.path.insert(0, str(ROOT))
    from triton_cases import CASES, EXCEPTIONS, JUDGED_WITH

    tasks = [
        Task(op, case, capability)
        for op, cases in CASES.items()
        for case in range(len(cases))
        for capability in capabilities
    ]
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        # Forking is unsafe after torch has started threads.
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(os.cpu_count() or 1, len(tasks)), spawn) as pool:
            results = list(pool.map(compile_case, tasks))
    version = importlib.metadata.version("triton")
    unjudged = ""
    if not version.startswith(f"{JUDGED_WITH}."):
        unjudged = f"the exceptions apply to Triton {JUDGED_WITH}, but this is {version}"
    passed = report(results, EXCEPTIONS, unjudged, capabilities)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
