"""Chooses the backend that serves an op, and reports the reason."""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

from . import cpu, cuda, table, triton
from .forcing import _FROM_ENVIRONMENT, ENVIRONMENT, NAMES, _state

if TYPE_CHECKING:
    from torch._ops import OpOverload

logger = logging.getLogger("clasp_kernels.backends")


class Backend(Protocol):
    """The interface of a backend module. The reference has none, because it serves every op."""

    def problem(self, op: str, device: str) -> str | None:
        """The reason why the backend cannot serve ``op`` on ``device``, or None if it can."""

    def reason(self) -> str:
        """The origin of the backend's kernels."""


BACKENDS: dict[str, Backend] = {"cpu": cpu, "triton": triton, "cuda": cuda}
# The backends that are considered for a device, best first. If none can serve, the reference does.
PREFERRED = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}


def overload(op: str, device: torch.device) -> Callable[..., Any]:
    """Returns the torch op to call for tensors on ``device``.

    Raises RuntimeError if the forced backend cannot serve ``op``.
    """
    # forced_backend() inlined: a call would double the time of this function.
    forced = _state.traced[-1] if _state.traced else _state.forced
    if forced is _state:
        forced = _FROM_ENVIRONMENT
    if torch.compiler.is_compiling():
        return _resolve(op, _settle(op, device.type, forced))
    return _entry_point(op, device, forced)


# Keyed by device, because reading a device's type takes longer than this lookup. ``_op`` is the
# callable that an OpOverload wraps: it skips one Python frame, and dispatch modes and tensor
# subclasses see no difference.
@functools.cache
def _entry_point(op: str, device: torch.device, forced: str) -> Callable[..., Any]:
    call = _resolve(op, _settle_once(op, device.type, forced))._op
    return _with_torch_error(call) if device.type == "cuda" and op in cuda.load().ops else call


def _with_torch_error(call: Callable[..., Any]) -> Callable[..., Any]:
    """Restores the type of torch's out-of-memory error; the CUDA kernels only pass its text on."""

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


# Runs for real while tracing, because logging and warnings cannot be traced. Its result does not
# change within a process.
def _settle(op: str, device: str, forced: str) -> str:
    return _settle_once(op, device, forced)


# Same effect as torch.compiler.assume_constant_result, which imports torch._dynamo and thereby
# Triton.
_settle._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache  # exceptions are not cached, so a failure raises every time
def _settle_once(op: str, device: str, forced: str) -> str:
    """Returns the name of the overload to call.

    Raises RuntimeError if the forced backend cannot serve ``op``. If none is forced, logs the
    chosen backend and warns about slow fallbacks.
    """
    bound = forced if forced in ("reference", "triton") else "default"
    if device == "meta":
        return bound
    backend, reason = choose(op, device, forced)
    if backend is None:
        raise RuntimeError(
            f"{op}: the {forced} backend is forced but cannot serve: {reason} To use the fastest "
            f"available backend, set {ENVIRONMENT}=auto (or leave use_backend)."
        )
    if forced == "auto":
        logger.info("%s on %s tensors is served by %s: %s", op, device, backend, reason)
        kernels = PREFERRED.get(device, ())
        if backend == "reference" and kernels and table.has_kernel(op, kernels[-1]):
            _warn_fallback(device)
        elif backend == "triton" and table.has_kernel(op, "cuda"):
            _warn_without_cuda()
        # If the CUDA extension has a kernel for ``op`` that this GPU cannot run, the dispatcher
        # would still call it, so return the overload of the chosen backend.
        if device == "cuda" and backend != "cuda" and op in cuda.load().ops:
            return backend
    # If nothing is forced, the reference is also called through the dispatcher. An exported graph
    # then uses a native kernel wherever one is loaded.
    return bound


@functools.cache
def _warn_without_cuda() -> None:
    """Warns if the CUDA extension exists but cannot serve; does not warn if it was not built."""
    status, ops = cuda.load(), table.ops_of("cuda")
    if not (status.loaded or status.failed):
        return
    warnings.warn(
        f"clasp_kernels: {', '.join(ops)} run on the triton backend for GPU tensors: "
        f"{cuda.problem(ops[0], 'cuda')} To accept that without this warning, leave "
        "the CUDA kernels out (CLASP_KERNELS_BUILD_CUDA=0).",
        RuntimeWarning,
        stacklevel=6,
    )


@functools.cache
def _warn_fallback(device: str) -> None:
    last = PREFERRED[device][-1]
    fallen = [op for op in table.ops_of(last) if choose(op, device, "auto")[0] == "reference"]
    tensors = {"cpu": "CPU", "cuda": "GPU"}[device]
    warnings.warn(
        f"clasp_kernels: {', '.join(fallen)} fall back to the slow reference backend on {tensors} "
        f"tensors: {BACKENDS[last].problem(fallen[0], device)} To accept the reference, set "
        f"{ENVIRONMENT}=reference.",
        RuntimeWarning,
        stacklevel=6,
    )


class Choice(NamedTuple):
    backend: str | None
    """None if the forced backend cannot serve."""
    reason: str


def choose(op: str, device: str, forced: str) -> Choice:
    """Chooses the backend of ``op`` on ``device``; ``forced`` is "auto" if none is forced."""
    if forced not in NAMES:
        raise ValueError(f"{ENVIRONMENT} must be one of {', '.join(NAMES)}, got {forced!r}.")
    if forced == "reference":
        return Choice("reference", "forced")
    if forced != "auto":
        problem = BACKENDS[forced].problem(op, device)
        return Choice(forced, "forced") if problem is None else Choice(None, problem)
    preferred = PREFERRED.get(device, ("cpu",))
    reason = passed_over = ""
    for name in [it for it in preferred if table.has_kernel(op, it)] or preferred[-1:]:
        problem = BACKENDS[name].problem(op, device)
        if problem is None:
            return Choice(name, BACKENDS[name].reason() + passed_over)
        reason, passed_over = problem + passed_over, f"{passed_over} (not {name}: {problem})"
    return Choice("reference", reason)
