"""Who computes an op: the choice, why it was made, and how to force another."""

from __future__ import annotations

import functools
import logging
import os
import threading
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from . import _cuda, _native, _triton
from ._version import __version__

if TYPE_CHECKING:
    from torch._ops import OpOverload

logger = logging.getLogger(__name__)

NAMES = ("auto", "reference", "cpu", "triton", "cuda")
ENVIRONMENT = "CLASP_KERNELS_BACKEND"
_FROM_ENVIRONMENT = os.environ.get(ENVIRONMENT) or "auto"  # set but empty is as good as unset


# The name of the backend that is forced in this context. ``_state`` stands for none.
_forced: ContextVar[Any] = ContextVar("clasp_kernels_backend")
# The blocks that this context is in, outermost first. The last one that is left open decides, so
# blocks may be left in any order.
_blocks: ContextVar[tuple[use_backend, ...]] = ContextVar("clasp_kernels_blocks", default=())


class _State(threading.local):
    """The forced backend in a form that Dynamo can read, as Dynamo traces no ContextVar.

    Dynamo treats a property whose getter is a builtin as an attribute: it reads the value once and
    guards on it, so compiled code asks the context it runs in. ``ContextVar.get`` is called with
    this object as its default, so this object stands for an unset variable.
    """

    forced = property(_forced.get)

    def __init__(self) -> None:
        # The blocks that compiled code has entered and not left. While there are any, this thread
        # is in compiled code or in what that calls at a graph break, and no task can change.
        self.traced: list[str] = []


_state = _State()


class use_backend:
    """Forces a backend within a ``with`` block, for the current thread or asyncio task.

    Args:
        name: "auto", "reference", "cpu", "triton" or "cuda".

    An op that the backend cannot serve raises RuntimeError when it is called; nothing falls back.
    For a whole process set ``CLASP_KERNELS_BACKEND``, which is read at import.

    The choice is kept in a context variable: a task or ``asyncio.to_thread`` started in the block
    inherits it, a new thread does not, and no other task sees it. A generator shares its caller's
    context: a block that it yields from holds for the caller until the generator goes on.

    >>> import torch
    >>> from clasp_kernels import select_pivots, use_backend
    >>> with use_backend("reference"):
    ...     select_pivots(torch.tensor([[1.0, 3.0, 2.0]]), 2)
    tensor([[1, 2]])
    """

    def __init__(self, name: str) -> None:
        if name not in NAMES:
            raise ValueError(f"use_backend: name must be one of {', '.join(NAMES)}, got {name!r}.")
        self.name = name

    def __enter__(self) -> use_backend:
        if torch.compiler.is_dynamo_compiling() or _state.traced:
            _state.traced.append(self.name)
        else:
            _set_blocks((*_blocks.get(), self))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if _state.traced:
            _state.traced.pop()
            return
        blocks = _blocks.get()
        # Not among them where another context is leaving, as an abandoned async generator's may.
        for index in reversed(range(len(blocks))):
            if blocks[index] is self:
                _set_blocks(blocks[:index] + blocks[index + 1 :])
                return


def _set_blocks(blocks: tuple[use_backend, ...]) -> None:
    _blocks.set(blocks)
    _forced.set(blocks[-1].name if blocks else _state)


def forced_backend() -> str:
    """The name of the backend that is forced in this context, "auto" if none is."""
    forced = _state.traced[-1] if _state.traced else _state.forced
    return _FROM_ENVIRONMENT if forced is _state else forced


def overload(op: str, device: torch.device) -> Callable[..., Any]:
    """The torch op to call for tensors on ``device``; raises where the forced backend cannot."""
    # forced_backend() written out: the call would double the time of this function.
    forced = _state.traced[-1] if _state.traced else _state.forced
    if forced is _state:
        forced = _FROM_ENVIRONMENT
    if torch.compiler.is_compiling():
        return _resolve(op, _settle(op, device.type, forced))
    return _entry_point(op, device, forced)


# Keyed by device, as reading a device's type takes longer than looking the device up. What torch
# calls for an OpOverload, without its frame in Python: dispatch modes and subclasses see no other.
@functools.cache
def _entry_point(op: str, device: torch.device, forced: str) -> Callable[..., Any]:
    call = _resolve(op, _settle_once(op, device.type, forced))._op
    return _with_torch_error(call) if device.type == "cuda" and op in _cuda.load().ops else call


def _with_torch_error(call: Callable[..., Any]) -> Callable[..., Any]:
    """Restores the type of torch's error, of which only the text comes through the CUDA kernels."""

    def run(*arguments: Any) -> Any:
        try:
            return call(*arguments)
        except RuntimeError as error:
            if type(error) is RuntimeError and str(error).startswith("CUDA out of memory."):
                raise torch.OutOfMemoryError(str(error)) from None
            raise

    return run


def _resolve(op: str, name: str) -> OpOverload:
    return getattr(getattr(torch.ops.clasp_kernels, op), name)


# Called for real while tracing: logging and warnings cannot be traced, and who serves an op does
# not change while the process lives.
def _settle(op: str, device: str, forced: str) -> str:
    return _settle_once(op, device, forced)


# What torch.compiler.assume_constant_result does, which imports torch._dynamo and with it Triton.
_settle._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache  # which does not keep exceptions: what cannot serve raises every time
def _settle_once(op: str, device: str, forced: str) -> str:
    """The name of the overload to call. Raises if ``op`` cannot be served as forced; says who
    serves it if nothing is forced."""
    bound = forced if forced in ("reference", "triton") else "default"
    if device == "meta":
        return bound
    backend, reason = choose(op, device, forced)
    if backend is None:
        raise RuntimeError(
            f"{op}: the {forced} backend is forced but cannot serve: {reason} To let the fastest "
            f"available backend serve, force nothing ({ENVIRONMENT}=auto)."
        )
    if forced == "auto":
        logger.info("%s on %s tensors is served by %s: %s", op, device, backend, reason)
        native = _native.CPU_OPS if device == "cpu" else _triton.TRITON_OPS
        if backend == "reference" and op in native and device in ("cpu", "cuda"):
            _warn_fallback(device)
        elif backend == "triton" and op in _cuda.CUDA_OPS:
            _warn_without_cuda()
        # The dispatcher knows no GPU's age: past a CUDA kernel that this one cannot run, the
        # overload has to lead.
        if device == "cuda" and backend != "cuda" and op in _cuda.load().ops:
            return backend
    # Not forced, even the reference goes through the dispatcher: an exported graph then finds a
    # native kernel where it is loaded.
    return bound


@functools.cache
def _warn_without_cuda() -> None:
    """Where the extension is there and cannot serve; one that was not built is not missed."""
    status = _cuda.load()
    if not (status.loaded or status.failed):
        return
    warnings.warn(
        f"clasp_kernels: {', '.join(_cuda.CUDA_OPS)} go to the triton backend on GPU tensors: "
        f"{_cuda.problem(_cuda.CUDA_OPS[0], 'cuda')} To accept that without this warning, leave "
        "the CUDA kernels out (CLASP_KERNELS_BUILD_CUDA=0).",
        RuntimeWarning,
        stacklevel=6,
    )


@functools.cache
def _warn_fallback(device: str) -> None:
    ops, tensors, problem = ", ".join(_native.CPU_OPS), "CPU", _native_problem()
    if device == "cuda":
        fallen = [op for op in _triton.TRITON_OPS if choose(op, device, "auto")[0] == "reference"]
        ops, tensors, problem = ", ".join(fallen), "GPU", str(_triton.problem(fallen[0], device))
    warnings.warn(
        f"clasp_kernels: {ops} fall back to the slow reference backend on {tensors} tensors: "
        f"{problem} To accept the reference, set {ENVIRONMENT}=reference.",
        RuntimeWarning,
        stacklevel=6,
    )


class Choice(NamedTuple):
    backend: str | None
    """None where the forced backend cannot serve."""
    reason: str


def choose(op: str, device: str, forced: str) -> Choice:
    """Who serves ``op`` for tensors on ``device``, and why; ``forced`` is "auto" if nothing is."""
    if forced not in NAMES:
        raise ValueError(f"{ENVIRONMENT} must be one of {', '.join(NAMES)}, got {forced!r}.")
    if forced == "reference":
        return Choice("reference", "forced")
    if forced != "auto":
        problem = _problem(forced, op, device)
        return Choice(forced, "forced") if problem is None else Choice(None, problem)
    passed_over = ""
    if device == "cuda" and op in _cuda.CUDA_OPS:
        problem = _problem("cuda", op, device)
        if problem is None:
            return Choice("cuda", _cuda.load().reason)
        passed_over = f" (not cuda: {problem})"
    backend = "triton" if device == "cuda" else "cpu"
    problem = _problem(backend, op, device)
    if problem is not None:
        return Choice("reference", problem + passed_over)
    reason = _triton.reason() if backend == "triton" else _native.load().reason
    return Choice(backend, reason + passed_over)


def _problem(backend: str, op: str, device: str) -> str | None:
    """Why ``backend`` cannot serve ``op``, or None where it can."""
    check = {"cpu": _cpu_problem, "triton": _triton.problem, "cuda": _cuda.problem}[backend]
    return check(op, device)


def _cpu_problem(op: str, device: str) -> str | None:
    """Why the C++ kernels cannot serve ``op``, or None where they can."""
    if op not in _native.CPU_OPS:
        return f"there is no native kernel for {op} in clasp_kernels {__version__}."
    if device != "cpu":
        return f"the native kernel of {op} takes CPU tensors, not {device} tensors."
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"clasp_kernels::{op}", "CPU"):
        return _native_problem()
    _native.load().check()
    return None


def _native_problem() -> str:
    status = _native.load()
    if status.loaded:
        return f"{status.reason}, lacks kernels of this version. {_native.REBUILD}"
    return status.reason


class ServedOp(NamedTuple):
    """One line of :func:`backend_report`."""

    op: str
    device: str
    backend: str | None
    reason: str


@dataclass(frozen=True)
class BackendReport:
    """Which backend serves each op here, and why. Printing it gives a table."""

    forced: str
    """"auto", or the backend forced in this context."""
    native: _native.NativeStatus
    cuda: _cuda.CudaStatus
    ops: tuple[ServedOp, ...]

    def __str__(self) -> str:
        lines = [
            f"torch {torch.__version__}, backend: {self.forced}",
            f"C++ extension: {'loaded' if self.native.loaded else 'not loaded'}, "
            f"{self.native.reason}",
            f"instruction set: {self.native.capability or 'none'}",
            f"CUDA extension: {'loaded' if self.cuda.loaded else 'not loaded'}, {self.cuda.reason}",
        ]
        cells = [(row.op, row.device, row.backend or "none") for row in self.ops]
        widths = [max(len(cell[column]) for cell in cells) for column in range(3)]
        for cell, row in zip(cells, self.ops, strict=True):
            padded = "  ".join(text.ljust(width) for text, width in zip(cell, widths, strict=True))
            lines.append(f"{padded}  {row.reason}")
        return "\n".join(lines)


def backend_report() -> BackendReport:
    """Which backend serves each op for the devices of this machine, and why.

    Raises:
        RuntimeError: ``CLASP_KERNELS_CPU_CAPABILITY`` names an instruction set that is not here.

    >>> from clasp_kernels import backend_report, use_backend
    >>> with use_backend("reference"):
    ...     report = backend_report()
    >>> {row.backend for row in report.ops}
    {'reference'}
    """
    from .ops import _library  # registers the ops, and with them loads the extension

    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    forced = forced_backend()
    native = _native.load()
    native.check()
    rows = [
        ServedOp(op, device, *choose(op, device, forced))
        for op in sorted(_library.OP_NAMES)
        for device in devices
    ]
    return BackendReport(forced, native, _cuda.load(), tuple(rows))
