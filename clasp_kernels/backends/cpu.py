"""Finds and loads the C++ extension for the CPU, and reports why if that fails."""

from __future__ import annotations

import ctypes
import runpy
from pathlib import Path
from typing import Any, NamedTuple

import torch

from clasp_kernels._version import __version__

from . import table

PACKAGE = Path(__file__).resolve().parent.parent
REBUILD = (
    "Build it with `pip install --no-build-isolation --no-deps --force-reinstall clasp-kernels` "
    "(or `-e .` in a checkout), which compiles against the torch that is installed."
)


class CpuStatus(NamedTuple):
    """State of the C++ extension in this process."""

    loaded: bool
    reason: str
    """The origin of the extension, or why it is not loaded and how to fix that."""
    path: Path | None
    capability: str | None = None
    """The instruction set in use: the best of this machine, or the one forced with
    ``CLASP_KERNELS_CPU_CAPABILITY``. None if there is none to use."""
    problem: str = ""
    """Why the loaded kernels must not be used; empty if they may be."""

    def check(self) -> None:
        """Raises RuntimeError if the loaded kernels must not be used."""
        if self.problem:
            raise RuntimeError(self.problem)


_status: CpuStatus | None = None


def load() -> CpuStatus:
    """Loads ``clasp_kernels/_C.*.so`` once. Never raises; the status holds the reason.

    Call it after the op schemas are defined, because the library registers kernels for them.
    """
    global _status
    if _status is None:
        _status = _load(PACKAGE)
    return _status


def problem(op: str, device: str) -> str | None:
    """The reason why the C++ kernels cannot serve ``op`` on ``device``, or None if they can."""
    if not table.has_kernel(op, "cpu"):
        return f"there is no native kernel for {op} in clasp_kernels {__version__}."
    if device != "cpu":
        return f"the native kernel of {op} takes CPU tensors, not {device} tensors."
    status = load()
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"clasp_kernels::{op}", "CPU"):
        if status.loaded:
            return f"{status.reason}, lacks kernels of this version. {REBUILD}"
        return status.reason
    status.check()
    return None


def reason() -> str:
    return load().reason


def _load(package: Path) -> CpuStatus:
    path = find(package, "_C")
    if path is None:
        return CpuStatus(False, f"there is no _C extension in {package}. {REBUILD}", None)
    origin = f"{path.name}, built with torch {built_with(package)}"
    if problem := load_library(path):
        reason = f"{origin}, does not load under torch {torch.__version__} ({problem}). {REBUILD}"
        return CpuStatus(False, reason, path)
    return CpuStatus(True, origin, path, *_capability(path))


def _capability(path: Path) -> tuple[str | None, str]:
    """Asks the loaded library for its instruction set, and for a problem that rules out its use."""
    library = ctypes.CDLL(str(path))
    try:
        name = library.clasp_kernels_cpu_capability
        problem = library.clasp_kernels_cpu_capability_problem
    except AttributeError:
        return None, f"{path} belongs to another version of clasp_kernels. {REBUILD}"
    name.restype = problem.restype = ctypes.c_char_p
    used = name()
    return used and used.decode(), problem().decode()


def find(package: Path, name: str) -> Path | None:
    """Finds an extension; "_C" is ``_C.abi3.so`` or ``_C.cpython-*.so``, but not ``_C_cuda.*``."""
    found = (path for path in package.glob(f"{name}.*") if path.suffix in (".so", ".pyd"))
    return next(iter(sorted(found)), None)


def load_library(path: Path) -> str:
    """Loads the library. Returns the reason if that fails, else an empty string."""
    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        return str(error.__cause__ or error)
    return ""


def build_info(package: Path) -> dict[str, Any]:
    """The variables that setup.py wrote to _build_info.py; empty if the file is missing."""
    path = package / "_build_info.py"
    return runpy.run_path(str(path)) if path.is_file() else {}


def built_with(package: Path) -> str:
    """The torch version that the extensions were built with."""
    unknown = "of an unknown version (_build_info.py is missing)"
    return str(build_info(package).get("TORCH_VERSION", unknown))
