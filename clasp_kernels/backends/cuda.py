"""Finds and loads the CUDA extension, and reports which GPUs it can serve."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import NamedTuple

import torch

from clasp_kernels._version import __version__

from . import cpu, table

OLDEST_CAPABILITY = (8, 0)
REBUILD = (
    "To build it, install a CUDA build of torch and a CUDA toolkit of the same major version, then "
    "run `CLASP_KERNELS_BUILD_CUDA=1 pip install --no-build-isolation --no-deps --force-reinstall "
    "clasp-kernels` (in a checkout, `-e .` instead of clasp-kernels)."
)


class CudaStatus(NamedTuple):
    """State of the CUDA extension in this process."""

    loaded: bool
    reason: str
    """The origin of the extension, or why it is not loaded and how to fix that."""
    path: Path | None = None
    architectures: tuple[str, ...] = ()
    """The compute capabilities it was built for, in the notation of TORCH_CUDA_ARCH_LIST."""
    ops: tuple[str, ...] = ()
    """The ops whose default overload calls the extension for GPU tensors."""
    failed: bool = False
    """Whether the extension exists and torch could use it, but it does not load."""


_status: CudaStatus | None = None


def load() -> CudaStatus:
    """Loads ``clasp_kernels/_C_cuda.*.so`` once. Never raises; the status holds the reason.

    Call it after the op schemas are defined, because the library registers kernels for them, and
    before other GPU kernels are registered, because it would override them. Does not access a GPU.
    """
    global _status
    if _status is None:
        _status = _load(cpu.PACKAGE)
    return _status


def _load(package: Path) -> CudaStatus:
    info = cpu.build_info(package)
    path = cpu.find(package, "_C_cuda")
    if path is None:
        problem = info.get("CUDA_PROBLEM") or f"there is no _C_cuda extension in {package}"
        return CudaStatus(False, f"built without CUDA kernels: {problem}. {REBUILD}")
    version = info.get("CUDA_VERSION") or "of an unknown version"
    origin = f"{path.name}, built with torch {cpu.built_with(package)} and CUDA {version}"
    if torch.version.cuda is None:
        reason = f"{origin}, needs a CUDA build of torch, which {torch.__version__} is not."
        return CudaStatus(False, reason, path)
    architectures = tuple(info.get("CUDA_ARCHITECTURES", ()))
    if problem := cpu.load_library(path):
        reason = (
            f"{origin}, does not load under torch {torch.__version__} with CUDA "
            f"{torch.version.cuda} ({problem}). {REBUILD}"
        )
        return CudaStatus(False, reason, path, architectures, failed=True)
    ops = tuple(op for op in table.ops_of("cuda") if registered(op))
    return CudaStatus(True, f"{origin} for {', '.join(architectures)}", path, architectures, ops)


def registered(op: str) -> bool:
    """Whether the dispatcher has a kernel of ``op`` for GPU tensors."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"clasp_kernels::{op}", "CUDA")


def problem(op: str, device: str) -> str | None:
    """The reason why the CUDA kernels cannot serve ``op`` on ``device``, or None if they can."""
    if not table.has_kernel(op, "cuda"):
        return f"there is no CUDA kernel for {op} in clasp_kernels {__version__}."
    if device != "cuda":
        return f"the CUDA kernel of {op} takes GPU tensors, not {device} tensors."
    status = load()
    if not status.loaded:
        return status.reason
    if op not in status.ops:
        return f"{status.reason}, lacks kernels of this version. {REBUILD}"
    return gpu_problem()


def reason() -> str:
    return load().reason


@functools.cache
def gpu_problem() -> str | None:
    """The reason why the loaded CUDA extension cannot serve the GPUs here, or None if it can."""
    if not torch.cuda.is_available():
        return "torch sees no GPU."
    status = load()
    # Checks all GPUs: tensors may be on any of them, and the choice is made once per op.
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        name = ".".join(map(str, capability))
        if capability < OLDEST_CAPABILITY:
            oldest = ".".join(map(str, OLDEST_CAPABILITY))
            return f"the CUDA kernels need compute capability {oldest} or later, a GPU has {name}."
        if not any(serves(architecture, capability) for architecture in status.architectures):
            return (
                f"{status.reason}, cannot serve a GPU of compute capability {name}. Rebuild it "
                f"with TORCH_CUDA_ARCH_LIST={name}. {REBUILD}"
            )
    return None


def serves(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether code built for an entry of TORCH_CUDA_ARCH_LIST runs on a GPU.

    Machine code runs on GPUs of the same generation that are not older, PTX on all GPUs that are
    not older, and "9.0a" only on 9.0.
    """
    match = re.fullmatch(r"(\d+)\.(\d+)([af]?)(\+PTX)?", architecture)
    assert match is not None, architecture
    built = int(match[1]), int(match[2])
    if match[3] == "a":
        return capability == built
    portable = match[4] is not None and not match[3]
    return capability >= built and (portable or capability[0] == built[0])
