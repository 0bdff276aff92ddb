"""Compile every Triton kernel for every GPU architecture we name; run nothing, need no GPU.

The launchers of clasp_kernels/triton/ are called with the cases of triton_cases.py under a driver
that launches nothing (triton_stub.py). What Triton then compiles must

- need no more shared memory than the architecture has, nor a grid that no GPU takes;
- spill no registers, nor use so many that less than half the warps fit on a multiprocessor
  (triton_resources.py says precisely what that means), unless the exceptions of triton_cases.py
  say why; an exception that nothing needs fails as well; every Triton brings another compiler, so
  this is judged with the one that triton_cases.py names, and else only told;
- access memory 16 bytes at a time in the cases that promise it.

Every launcher must have cases, and every kernel that a launcher can launch must be in one.
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
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from triton_case import Exemption, FewWarps, Spills
from triton_resources import Resources, narrow_accesses, read_resources

if TYPE_CHECKING:
    from triton_stub import Launch, StubDriver

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "clasp_kernels" / "triton"
ARCHITECTURES = (80, 90, 100)
NARROW = "must access memory 16 bytes at a time:"
BATCH = 2  # any; tests/test_triton_compile.py asserts that it makes no difference


class Task(NamedTuple):
    op: str
    case: int
    capability: int


@dataclass(frozen=True)
class Compiled:
    """A kernel as one launch of it needed it."""

    kernel: str
    hash: str
    resources: Resources
    narrow: list[str]
    seconds: float
    """0 where an earlier case had it compiled."""


@dataclass(frozen=True)
class Result:
    task: Task
    title: str
    compiled: list[Compiled]
    error: str
    """What was raised, or nothing."""


def compile_case(task: Task) -> Result:
    """Calls one launcher; runs in a worker process."""
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
    """Where in the package it was raised, and what was: of a compiler's errors the innermost."""
    frames = traceback.extract_tb(error.__traceback__)
    where = [
        f"{frame.filename}:{frame.lineno}" for frame in frames if str(PACKAGE) in frame.filename
    ]
    while cause := error.__cause__ or error.__context__:
        error = cause
    return "\n".join([*where[-1:], *traceback.format_exception_only(error)]).rstrip()


@functools.cache
def driver_for(capability: int) -> StubDriver:
    """One a process, which keeps what was compiled."""
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


@dataclass
class Line:
    """One line of the summary: a kernel on an architecture."""

    variants: dict[str, Resources] = field(default_factory=dict)
    num_problems: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        resources = self.variants.values()
        spilled = max(kernel.spilled for kernel in resources)
        return (
            f"{len(resources):3} variants  {max(kernel.registers for kernel in resources):3} "
            f"registers  {f'{spilled} bytes' if spilled else 'nothing'} spilled  "
            f"{max(kernel.shared for kernel in resources) / 1024:5.1f} KiB shared  "
            f"{min(kernel.warps for kernel in resources):2} of 64 warps {self.seconds:6.1f} s"
        )


def report(results: list[Result], exceptions: list[Exemption], unjudged: str = "") -> bool:
    """One line per kernel and architecture, then what failed; True if nothing did.

    ``unjudged`` is why registers and spills are only told, if they are.
    """
    lines: dict[tuple[str, int], Line] = {}
    problems: dict[str, dict[str, list[int]]] = {}  # what: where: the architectures
    told: dict[str, dict[str, list[int]]] = {}
    needed = set()
    for result in results:
        capability = result.task.capability
        if result.error:
            problems.setdefault(result.error, {}).setdefault(result.title, []).append(capability)
        for kernel in result.compiled:
            line = lines.setdefault((kernel.kernel, capability), Line())
            line.seconds += kernel.seconds
            found = [(problems, NARROW, access) for access in kernel.narrow]
            if kernel.hash not in line.variants:
                line.variants[kernel.hash] = kernel.resources
                exemptions = exemptions_of(kernel, exceptions)
                needed.update(exemptions)
                kind = told if unjudged else problems
                found += [(kind, *each) for each in excesses(kernel.resources, exemptions)]
            for kind, problem, detail in found:
                line.num_problems += kind is problems
                where = kind.setdefault(f"{short(kernel.kernel)} {problem}", {})
                where.setdefault(f"{result.title}: {detail}", []).append(capability)
    for (kernel_name, capability), line in sorted(lines.items()):
        verdict = f"FAILED ({line.num_problems})" if line.num_problems else "ok"
        print(f"{verdict:<12} sm_{capability:<4} {short(kernel_name):<44} {line}")
    for exemption in exceptions:
        print(f"{'excepted':<12} {exemption.kernel} {exemption}: {exemption.reason}")
    for problem, where in (*problems.items(), *told.items()):
        print(f"\n{problem}")
        for text, capabilities in where.items():
            print(f"  {', '.join(f'sm_{capability}' for capability in capabilities)}: {text}")
    failed = {result.task.op for result in results if result.error}
    stale = [
        f"no case needs that {exemption.kernel} {exemption}; remove it from EXCEPTIONS."
        for exemption in exceptions
        if exemption not in needed and not failed and not unjudged
    ]
    names = {short(kernel_name) for kernel_name, _ in lines}
    unseen = [
        f"{module}.{kernel}: no case of triton_cases.py launches it."
        for module, kernel in launched_kernels()
        if f"{module}.{kernel}" not in names and not failed
    ]
    for sentence in (*stale, *unseen):
        print(f"\n{sentence}")
    if unjudged:
        print(f"not judged: registers and spills, {unjudged}")
    return not (problems or stale or unseen)


def short(kernel_name: str) -> str:
    return kernel_name.removeprefix("clasp_kernels.triton.")


def exemptions_of(kernel: Compiled, listed: list[Exemption]) -> list[Exemption]:
    """Those that this kernel, as it was compiled, needs."""
    resources = kernel.resources
    return [
        exemption
        for exemption in listed
        if exemption.kernel == short(kernel.kernel)
        and resources.capability in exemption.capabilities
        and exemption.concerns(resources)
    ]


def excesses(resources: Resources, exemptions: list[Exemption]) -> list[tuple[str, str]]:
    """Problems, each with its numbers."""
    found: list[tuple[type[Exemption], str, str]] = []
    if resources.spilled:
        spills = "spills registers to local memory (or indexes an array at run time)"
        found.append((Spills, spills, f"{resources.spilled} bytes"))
    if resources.registers_halve_occupancy:
        numbers = (
            f"{resources.registers} registers, {resources.warps_by_registers} of 64 warps, "
            f"otherwise {resources.warps_by_the_rest}"
        )
        found.append((FewWarps, "leaves less than half the warps for its registers", numbers))
    problems = []
    for kind, problem, numbers in found:
        exempt = [exemption for exemption in exemptions if type(exemption) is kind]
        if not exempt:
            problems.append((f"{problem}; let it not, or say in EXCEPTIONS why:", numbers))
        elif not exempt[0].suffices(resources):
            problems.append((f"{problem}; the exception says that it {exempt[0]}:", numbers))
    return problems


def launched_kernels() -> list[tuple[str, str]]:
    """Module and name of every kernel in PACKAGE that a function which is no kernel refers to."""
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


def main() -> int:
    if importlib.util.find_spec("triton") is None:
        print("not checked: Triton kernels: triton is not installed (pip install triton)")
        return 0
    # What is set for other runs of Triton must not change what is compiled; where its tools are
    # may stay.
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
        for capability in ARCHITECTURES
    ]
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        # Forking is unsafe once torch has started threads.
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(os.cpu_count() or 1, len(tasks)), spawn) as pool:
            results = list(pool.map(compile_case, tasks))
    version = importlib.metadata.version("triton")
    unjudged = ""
    if not version.startswith(f"{JUDGED_WITH}."):
        unjudged = f"which the exceptions are for with Triton {JUDGED_WITH}; this is {version}"
    passed = report(results, EXCEPTIONS, unjudged)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
