"""Who computes an op: the choice, and why it was made."""

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
    """What the module of a backend has. The reference is none: it serves every op everywhere."""

    def problem(self, op: str, device: str) -> str | None:
        """Why the backend cannot serve ``op`` on ``device``, or None where it can."""

    def reason(self) -> str:
        """Where the backend's kernels come from."""


BACKENDS: dict[str, Backend] = {"cpu": cpu, "triton": triton, "cuda": cuda}
# The backends that are considered for a device, the best first. None falls to the reference.
PREFERRED = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}


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
    return _with_torch_error(call) if device.type == "cuda" and op in cuda.load().ops else call


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
        kernels = PREFERRED.get(device, ())
        if backend == "reference" and kernels and table.has_kernel(op, kernels[-1]):
            _warn_fallback(device)
        elif backend == "triton" and table.has_kernel(op, "cuda"):
            _warn_without_cuda()
        # The dispatcher knows no GPU's age: past a CUDA kernel that this one cannot run, the
        # overload has to lead.
        if device == "cuda" and backend != "cuda" and op in cuda.load().ops:
            return backend
    # Not forced, even the reference goes through the dispatcher: an exported graph then finds a
    # native kernel where it is loaded.
    return bound


@functools.cache
def _warn_without_cuda() -> None:
    """Where the extension is there and cannot serve; one that was not built is not missed."""
    status, ops = cuda.load(), table.ops_of("cuda")
    if not (status.loaded or status.failed):
        return
    warnings.warn(
        f"clasp_kernels: {', '.join(ops)} go to the triton backend on GPU tensors: "
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
    """None where the forced backend cannot serve."""
    reason: str


def choose(op: str, device: str, forced: str) -> Choice:
    """Who serves ``op`` for tensors on ``device``, and why; ``forced`` is "auto" if nothing is."""
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
