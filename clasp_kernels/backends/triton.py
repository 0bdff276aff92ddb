"""Reports whether the Triton kernels can serve, and imports their launchers on first use."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from clasp_kernels._version import __version__
from clasp_kernels.triton import INTERPRET, INTERPRETED

from . import table

OLDEST_CAPABILITY = (8, 0)
NOT_INSTALLED = (
    "Triton is not installed. Install it with `pip install triton` (PyTorch's CUDA builds bring it "
    "along)."
)


# Uses find_spec, because importing Triton takes a good part of a second.
@functools.cache
def installed() -> bool:
    spec = importlib.util.find_spec("triton")
    # A folder named "triton" on the path has a spec without an origin, and nothing to load.
    return spec is not None and spec.origin is not None


@functools.cache
def version() -> str:
    """Triton's version. Imports Triton, so call it only if Triton is installed."""
    # Not from metadata, because nightly builds and builds for AMD GPUs have other package names.
    return str(importlib.import_module("triton").__version__)


def problem(op: str, device: str) -> str | None:
    """The reason why the Triton kernels cannot serve ``op`` on ``device``, or None if they can."""
    if not table.has_kernel(op, "triton"):
        return f"there is no Triton kernel for {op} in clasp_kernels {__version__}."
    if device == "cpu" and not INTERPRETED:
        return (
            f"the Triton kernel of {op} takes GPU tensors, not cpu tensors; {INTERPRET}=1, set "
            "before Python starts, interprets it on the CPU, for tests."
        )
    if device not in ("cpu", "cuda"):
        return f"the Triton kernel of {op} takes GPU tensors, not {device} tensors."
    if device == "cpu":
        return None if installed() else NOT_INSTALLED
    if torch.version.hip is not None and table.OPS[op].ordered_by_barriers:
        return (
            f"the Triton kernel of {op} relies on memory ordering that only NVIDIA barriers "
            "guarantee."
        )
    return gpu_problem()


@functools.cache
def gpu_problem() -> str | None:
    """The reason why Triton kernels cannot serve the GPUs here, or None if they can."""
    if not installed():
        return NOT_INSTALLED
    if torch.version.hip is not None:
        return None
    if not torch.cuda.is_available():
        return "torch sees no GPU."
    # Checks all GPUs: tensors may be on any of them, and the choice is made once per op.
    capability = min(map(torch.cuda.get_device_capability, range(torch.cuda.device_count())))
    if capability < OLDEST_CAPABILITY:
        oldest, here = (".".join(map(str, pair)) for pair in (OLDEST_CAPABILITY, capability))
        return f"the Triton kernels need compute capability {oldest} or later, a GPU has {here}."
    return None


@functools.cache
def launcher(op: str) -> Callable[..., Any]:
    """Imports the launcher of ``op``: a function with the op's schema as its signature."""
    module, _, function = str(table.OPS[op].triton).partition(":")
    launch: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return launch


def reason() -> str:
    return f"Triton {version()}" + (", interpreted" if INTERPRETED else "")
