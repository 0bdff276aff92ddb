"""Compiles the C++ for every instruction set with every compiler found; runs nothing.

One compiler does not show what others reject: another compiler warns elsewhere, and a header that
relies on its includer breaks for the next includer. So, with warnings as errors,

- every header in csrc/ must compile alone, those of TORCH_FREE without torch on the include path;
- every source in csrc/cpu/ must compile with setup.py's flags, here and, if a cross compiler is
  found, for aarch64;
- the kernels of all instruction sets must compile at each level of LEVELS. Levels above the
  baseline, for which no wheel is built, are compiled without optimisation: that shows whether the
  kernels of an instruction set fit a compiler that has others switched on. No other source knows
  instruction sets.

Checks that cannot run on this machine are listed at the end.
"""

from __future__ import annotations

import os
import platform
import runpy
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
TORCH_FREE = ("shared", "simd", "algorithms")
ON_HOST = ROOT / "tests" / "cuda_on_host"
_SYNTAX = ("-fsyntax-only", "-x", "c++", "-")

# A source with this line compiles the kernels of all instruction sets.
KERNELS = '#include "simd/dispatch.h"'

# -march values: the baseline that wheels run on, then the levels of run-time dispatch.
LEVELS = {
    "x86_64": ("x86-64", "x86-64-v3", "x86-64-v4"),
    "aarch64": ("armv8-a", "armv9-a"),
}


@dataclass(frozen=True)
class Compiler:
    command: tuple[str, ...]
    machine: str

    @property
    def name(self) -> str:
        return Path(self.command[-1]).name


@dataclass(frozen=True)
class Check:
    """One compilation. `group` is its line in the summary."""

    group: str
    subject: str
    command: tuple[str, ...]
    text: str | None = None


@dataclass(frozen=True)
class Result:
    check: Check
    ok: bool
    output: str
    seconds: float


def find_compilers() -> tuple[list[Compiler], list[str]]:
    """Returns the compilers found, and a sentence for each missing one."""
    here = platform.machine()
    candidates = [
        (Compiler(tuple(shlex.split(os.environ.get("CXX", "g++"))), here), "g++"),
        (Compiler(("clang++",), here), "clang"),
    ]
    if here != "aarch64":
        candidates.append(
            (Compiler(("aarch64-linux-gnu-g++",), "aarch64"), "g++-aarch64-linux-gnu")
        )
    found, missing = [], []
    for compiler, package in candidates:
        if shutil.which(compiler.command[0]):
            found.append(compiler)
        else:
            missing.append(
                f"{compiler.machine} with {compiler.name}: not found"
                f" (Debian and Ubuntu: apt install {package})"
            )
    return found, missing


def header_checks(compiler: Compiler, flags: list[str], torch: list[str]) -> Iterator[Check]:
    for header in sorted(CSRC.rglob("*.h")):
        name = str(header.relative_to(CSRC))
        if "<cuda_runtime.h>" in header.read_text():
            continue  # cuda_check.py compiles it if there is CUDA
        system = [] if name.split("/")[0] in TORCH_FREE else torch
        # Puts the host replacements of CUDA headers first on the include path.
        first = [f"-I{ON_HOST}"] if name.startswith("cuda/") else []
        yield Check(
            group=f"{compiler.name}: headers alone",
            subject=f"csrc/{name}",
            command=(*compiler.command, *first, *flags, *system, *_SYNTAX),
            text=f'#include "{name}"\n',
        )


def source_checks(compiler: Compiler, flags: list[str], torch: list[str]) -> Iterator[Check]:
    levels = LEVELS.get(compiler.machine, ("native",))
    for level in levels:
        optimisation = [] if level == levels[0] else ["-O0"]
        for source in sorted((CSRC / "cpu").glob("*.cpp")):
            text = source.read_text()
            # Python.h is configured for the machine that it is installed on.
            if compiler.machine != platform.machine() and "<Python.h>" in text:
                continue
            if level != levels[0] and KERNELS not in text:
                continue
            yield Check(
                group=f"{compiler.name}: -march={level}",
                subject=str(source.relative_to(ROOT)),
                command=(
                    *(*compiler.command, *flags, *torch, f"-march={level}", *optimisation),
                    *("-c", str(source), "-o", os.devnull),
                ),
            )


def run(check: Check) -> Result:
    start = time.perf_counter()
    done = subprocess.run(
        check.command, input=check.text, capture_output=True, text=True, cwd=ROOT, check=False
    )
    seconds = time.perf_counter() - start
    return Result(check, done.returncode == 0, done.stdout + done.stderr, seconds)


def report(results: list[Result]) -> bool:
    """Prints one line per group, and the compiler's output for failures. Returns True if all
    passed."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.check.group, []).append(result)
    for group, members in groups.items():
        failed = [result for result in members if not result.ok]
        verdict = f"FAILED ({len(failed)} of {len(members)})" if failed else "ok"
        seconds = sum(result.seconds for result in members)
        print(f"{verdict:<16} {group:<44} {len(members):3} files {seconds:6.1f} s")
        for result in failed:
            print(f"\n{result.check.subject}: {shlex.join(result.check.command)}\n{result.output}")
    return all(result.ok for result in results)


def main() -> int:
    build = runpy.run_path(str(ROOT / "setup.py"))
    flags = [*build["CXX_FLAGS"], *build["DEFINES"], f"-I{CSRC}", "-Werror"]
    _, torch_includes, _ = build["find_torch"]()
    includes = [*torch_includes, build["find_python_include"]()]
    torch = [flag for path in includes for flag in ("-isystem", path)]
    compilers, missing = find_compilers()
    checks = [
        check
        for compiler in compilers
        for make_checks in (header_checks, source_checks)
        for check in make_checks(compiler, flags, torch)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        passed = report(list(pool.map(run, checks)))
    for sentence in missing:
        print(f"not checked: {sentence}")
    if not checks:
        print("error: nothing was compiled: no compiler found, or csrc/ is empty.", file=sys.stderr)
    return 0 if checks and passed else 1


if __name__ == "__main__":
    sys.exit(main())
