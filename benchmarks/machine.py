"""The machine: what it is, how fast it moves bytes and multiplies, and the floor that follows.

A floor is the time below which this machine cannot do the counted work, whatever the code. Counted
are

- bytes: every input that is needed read once, every output written once;
- multiply-adds: those that any algorithm for the op has to do, which each benchmark states. The
  work on single numbers (exponentials, comparisons, norms' roots) is not counted.

Both are divided by rates measured in the same session. A working set that fits a cache moves
several times faster than one that does not, and the benchmarks call an op on the same inputs again
and again; so the rate of bytes is measured over working sets from 256 KiB to 724 MiB and read off
at the op's own. At each size it is the better of a copy, half read and half written, and of a
dot product, all read: an op that reads more than it writes may well beat a plain copy. The rate of
multiply-adds is that of a matrix product of 2048 x 2048, in the dtype or in float32, whichever is
faster. No call is faster than the least that any torch op takes. Best times count, not medians, as
a floor must not be raised by noise.
"""

from __future__ import annotations

import bisect
import ctypes
import functools
import math
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import torch

import clasp_kernels

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Counted:
    """The work of one call."""

    bytes: int
    multiply_adds: int
    dtype: str


@dataclass(frozen=True)
class Rates:
    bytes_per_second: dict[int, float]
    """By the size of the working set in bytes, ascending."""
    multiply_adds_per_second: dict[str, float]
    """By dtype."""
    seconds_per_call: float
    """Of the cheapest torch op that returns a new tensor, from Python."""

    def bandwidth(self, size: int) -> float:
        """Interpolated between the measured sizes, on logarithmic axes; flat beyond them."""
        sizes = sorted(self.bytes_per_second)
        above = bisect.bisect_left(sizes, size)
        if above in (0, len(sizes)):
            return self.bytes_per_second[sizes[min(above, len(sizes) - 1)]]
        low, high = sizes[above - 1], sizes[above]
        share = math.log(size / low) / math.log(high / low)
        slow, fast = self.bytes_per_second[low], self.bytes_per_second[high]
        return math.exp((1 - share) * math.log(slow) + share * math.log(fast))

    def floor(self, counted: Counted) -> tuple[float, str]:
        """Seconds, and which of "bytes", "multiply-adds" and "call" they are due to."""
        moving = counted.bytes / self.bandwidth(counted.bytes)
        multiplying = counted.multiply_adds / self.multiply_adds_per_second[counted.dtype]
        call = self.seconds_per_call
        return max((moving, "bytes"), (multiplying, "multiply-adds"), (call, "call"))

    def as_json(self) -> dict[str, Any]:
        """To four digits."""
        return {
            name: {str(key): float(f"{rate:.4g}") for key, rate in value.items()}
            if isinstance(value, dict)
            else float(f"{value:.4g}")
            for name, value in asdict(self).items()
        }


def _best_seconds(function: Callable[[], object], calls: int) -> float:
    function()
    best = math.inf
    for _ in range(calls):
        start = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - start)
    return best


def measure_rates() -> Rates:
    moving = {}
    for exponent in range(36, 60):  # 256 KiB to 724 MiB, two sizes per doubling
        half = int(2 ** (exponent / 2)) // 8 * 4
        source, target = torch.ones(2, half // 4).unbind()
        copy = _best_seconds(functools.partial(target.copy_, source), 10)
        both = source._base.view(-1)  # type: ignore[union-attr]
        read = _best_seconds(functools.partial(torch.dot, both, both), 10)
        moving[2 * half] = 2 * half / min(copy, read)
    multiplying = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.randn(2048, 2048).to(dtype)
        seconds = _best_seconds(functools.partial(torch.matmul, matrix, matrix), 5)
        multiplying[str(dtype).removeprefix("torch.")] = 2048**3 / seconds
    multiplying["bfloat16"] = max(multiplying.values())
    one = torch.ones(1)
    return Rates(moving, multiplying, _best_seconds(lambda: torch.neg(one), 1000))


def keep_freed_memory() -> None:
    """Lets glibc's malloc keep what is freed instead of giving large blocks back to the system.

    Otherwise each tensor over 32 MiB is mapped anew in every call, and its page faults, which come
    and go with the history of the process, swamp what is measured. It holds for all alike, and
    helps most those with large intermediates. Some is taken and freed at once, so that who is timed
    first does not pay for the growth of the heap.
    """
    mmap_max, trim_threshold = -4, -1
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
        torch.ones(7 << 28, dtype=torch.uint8)  # 1.75 GiB; as much as a free end may keep is 2 GiB


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip().partition("\n")[0]


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def installed(modules: Collection[str]) -> dict[str, str]:
    """Map each module to the packages that provide it, with their versions."""
    found = packages_distributions() if modules else {}
    return {
        module: ", ".join(f"{name} {version(name)}" for name in sorted({*found.get(module, ())}))
        or "not installed"
        for module in modules
    }


def environment() -> dict[str, Any]:
    commit = _first_line("git", "rev-parse", "HEAD")
    if _first_line(
        "git", "status", "--porcelain", "--", "csrc", "clasp_kernels", "benchmarks/*.py"
    ):
        commit += "+changes"
    return {
        "processor": _processor(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "clasp_kernels": clasp_kernels.__version__,
        "commit": commit,
        "command": "python -m pytest " + " ".join(sys.argv[1:]),
    }
