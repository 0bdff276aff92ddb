"""Compiles the CUDA kernels for every supported GPU architecture; needs no GPU.

Every source in csrc/cuda/ is compiled with warnings as errors, against the installed torch, which
may be a CPU build. Kernels must not spill registers or use too many according to ptxas
(kernel_report.py), unless EXCEPTIONS gives a reason. Dynamic shared memory is not known here: a
kernel limited by it may need an exception for registers that cost it no occupancy.

    cuda_check.py [CAPABILITY...]    (of 80, 90 and 100)
"""

from __future__ import annotations

import math
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cuda_toolkit
from kernel_report import CAPABILITIES, Exemption, Report, asked_capabilities
from kernel_resources import Resources

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
ARCHITECTURES = {80: "80", 90: "90a", 100: "100"}
MAJOR = "13"  # of the toolkit to install if there is none; 12.8 is the first with sm_100
WARP = 32
STRICT = ("-Werror=all-warnings", "-Xcompiler=-Wall,-Wextra,-Werror")

EXCEPTIONS: list[Exemption] = []

# The three lines that ptxas -v prints for each kernel.
_KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<spilled>\d+) bytes spill stores.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)
_SHARED = re.compile(r"(\d+) bytes smem")
# The block size from __launch_bounds__ or __block_size__, anywhere among the directives before a
# kernel's body.
_THREADS = re.compile(r"\.entry (\w+)\([^)]*\)[^{]*?\.(?:max|req)ntid ([\d, ]+)")


class Task(NamedTuple):
    source: Path
    architecture: str


@dataclass(frozen=True)
class Kernel:
    name: str
    """The C++ name without namespaces and parameters."""
    resources: Resources


@dataclass(frozen=True)
class Result:
    task: Task
    kernels: list[Kernel]
    error: str
    """The compiler's output, or empty."""
    seconds: float


def compile_source(task: Task, command: list[str]) -> Result:
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        target = f"arch=compute_{task.architecture},code=sm_{task.architecture}"
        done = subprocess.run(
            [
                *(*command, f"-gencode={target}", "-Xptxas=-v", "--keep", "--keep-dir", folder),
                *("-c", str(task.source), "-o", os.path.join(folder, "object.o")),
            ],
            capture_output=True,
            text=True,
            cwd=folder,
            check=False,
        )
        output = done.stdout + done.stderr
        if done.returncode != 0:
            return Result(task, [], output.strip(), time.perf_counter() - start)
        ptx = "".join(path.read_text() for path in Path(folder).glob("*.ptx"))
    kernels = read_kernels(output, ptx, capability=int(task.architecture.rstrip("a")))
    return Result(task, kernels, "", time.perf_counter() - start)


def read_kernels(ptxas: str, ptx: str, *, capability: int) -> list[Kernel]:
    """Reads ptxas's output and the PTX, which is the only source of block sizes."""
    threads = {name: math.prod(map(int, sizes.split(","))) for name, sizes in _THREADS.findall(ptx)}
    kernels = []
    for found in _KERNEL.finditer(ptxas):
        shared = _SHARED.search(found["rest"])
        if found["name"] not in threads:
            raise RuntimeError(f"{found['name']} has no __launch_bounds__.")
        resources = Resources(
            capability,
            int(found["registers"]),
            # The stack holds spilled registers and arrays.
            max(int(found["stack"]), int(found["spilled"])),
            int(shared[1]) if shared else 0,
            -(-threads[found["name"]] // WARP),
        )
        kernels.append(Kernel(found["name"], resources))
    if len(kernels) != ptxas.count("Compiling entry function"):
        raise RuntimeError(f"unrecognized ptxas output:\n{ptxas}")
    names = demangle([kernel.name for kernel in kernels])
    return [Kernel(name, kernel.resources) for name, kernel in zip(names, kernels, strict=True)]


def demangle(symbols: list[str]) -> list[str]:
    """Returns the demangled names, or the symbols themselves if binutils are not installed."""
    if not shutil.which("c++filt"):
        return symbols
    done = subprocess.run(
        ["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True
    )
    return [short(name) for name in done.stdout.splitlines()]


def short(signature: str) -> str:
    name = signature.replace("(anonymous namespace)::", "").partition("(")[0]
    return re.sub(r"\b(void |clasp::|cuda::)", "", name)


def report(
    results: list[Result],
    exceptions: list[Exemption],
    capabilities: Sequence[int] = CAPABILITIES,
) -> bool:
    """Prints the findings. Returns True if nothing is wrong."""
    found = Report(exceptions, capabilities=capabilities)
    for result in results:
        source, architecture = result.task.source.name, f"sm_{result.task.architecture}"
        if result.error:
            found.add_error(result.error, source, architecture)
        for kernel in result.kernels:
            found.add(
                kernel.name.partition("<")[0],
                f"{source}: {kernel.name}",
                kernel.name,
                architecture,
                kernel.resources,
                seconds=result.seconds / len(result.kernels),
            )
    return found.show()


def main(arguments: Sequence[str] = ()) -> int:
    capabilities = asked_capabilities((__doc__ or "").splitlines()[0], arguments)
    sources = sorted((CSRC / "cuda").glob("*.cu"))
    try:
        nvcc = cuda_toolkit.find_nvcc(os.environ, MAJOR)
    except cuda_toolkit.Missing as missing:
        print(f"not checked: CUDA kernels: {missing.problem} ({missing.remedy})")
        return 0
    build = runpy.run_path(str(ROOT / "setup.py"))
    _, includes, _ = build["find_torch"]()
    command = [
        *(nvcc, *build["NVCC_FLAGS"], *build["DEFINES"], *STRICT, f"-I{CSRC}"),
        *(flag for path in includes for flag in ("-isystem", path)),
    ]
    tasks = [
        Task(source, ARCHITECTURES[capability]) for source in sources for capability in capabilities
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(lambda task: compile_source(task, command), tasks))
    if report(results, EXCEPTIONS, capabilities):
        return 0
    print(f"\nThe compiler was called as {shlex.join(command)}")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
