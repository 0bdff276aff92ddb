"""What the GPU is and how fast it copies: the floor of every row is its bytes at that rate."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
from typing import Any

import torch
from machine import Rates, environment, installed
from ops import load_all

COPIED = 4 << 30  # read and written, far more than any cache holds


def copy_rate() -> float:
    """Bytes per second, read plus written, of the best of several device-to-device copies."""
    half = COPIED // 2
    source = torch.randint(256, (half,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    best = math.inf
    for _ in range(10):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        target.copy_(source)
        end.record()
        torch.cuda.synchronize()
        best = min(best, start.elapsed_time(end) / 1e3)
    return COPIED / best


def rates(bytes_per_second: float) -> Rates:
    """Floors are of bytes alone."""
    unlimited = {"float32": math.inf, "bfloat16": math.inf}
    return Rates({COPIED: bytes_per_second}, unlimited, 0.0)


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip().partition("\n")[0]


def describe(backend: dict[str, str], bytes_per_second: float | None) -> dict[str, Any]:
    """``backend``: of each op. ``COMMIT`` in the environment names the commit where there is no
    repository."""
    known = environment()
    facts = {
        "processor": known["processor"],
        "threads": known["threads"],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or torch.version.hip or "none",
        "driver": _driver(),
        **installed(["triton", *(it for one in load_all().values() for it in one.packages)]),
        "clasp_kernels": known["clasp_kernels"],
        "backend": backend,
        "commit": os.environ.get("COMMIT") or known["commit"],
        "command": "python3 " + " ".join(sys.argv),
    }
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
        facts["processor"] = gpu.name
        facts["host_processor"] = known["processor"]
        facts["gpu"] = gpu.name
        facts["multiprocessors"] = gpu.multi_processor_count
        facts["l2_cache_bytes"] = gpu.L2_cache_size
        facts["memory_bytes"] = gpu.total_memory
    if bytes_per_second is not None:
        facts["copy_bytes_per_second"] = float(f"{bytes_per_second:.4g}")
    return facts
