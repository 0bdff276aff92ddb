"""Forces a backend: for the process, within a ``with`` block, and in compiled code."""

from __future__ import annotations

import os
import threading
from contextvars import ContextVar
from types import TracebackType
from typing import Any

import torch

NAMES = ("auto", "reference", "cpu", "triton", "cuda")
ENVIRONMENT = "CLASP_KERNELS_BACKEND"
_FROM_ENVIRONMENT = os.environ.get(ENVIRONMENT) or "auto"  # an empty value counts as unset


# The backend that is forced in this context; ``_state`` if none is.
_forced: ContextVar[Any] = ContextVar("clasp_kernels_backend")
# The open blocks of this context, outermost first. The last open block decides, so blocks may be
# closed in any order.
_blocks: ContextVar[tuple[use_backend, ...]] = ContextVar("clasp_kernels_blocks", default=())


class _State(threading.local):
    """The forced backend in a form that Dynamo can read; it cannot trace a ContextVar.

    Dynamo treats a property whose getter is a builtin as an attribute: it reads the value once and
    guards on it, so compiled code follows the context it runs in. ``ContextVar.get`` receives this
    object as its default, so this object stands for an unset variable.
    """

    forced = property(_forced.get)

    def __init__(self) -> None:
        # The blocks that compiled code has entered but not left. While there are any, this thread
        # runs compiled code or code called at a graph break, so the current task cannot change.
        self.traced: list[str] = []


_state = _State()


class use_backend:
    """Forces a backend within a ``with`` block, for the current thread or asyncio task.

    Args:
        name: "auto", "reference", "cpu", "triton" or "cuda".

    An op that the backend cannot serve raises RuntimeError when it is called; there is no fallback.
    To force a backend for a whole process, set ``CLASP_KERNELS_BACKEND``, which is read at import.

    The choice is kept in a context variable. A task or ``asyncio.to_thread`` started in the block
    inherits it, a new thread does not, and no other task sees it. A generator shares its caller's
    context: while it is suspended at a yield inside the block, the choice also holds for the
    caller.

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
        # This block may be missing if it is closed in another context, as happens with an abandoned
        # async generator.
        for index in reversed(range(len(blocks))):
            if blocks[index] is self:
                _set_blocks(blocks[:index] + blocks[index + 1 :])
                return


def _set_blocks(blocks: tuple[use_backend, ...]) -> None:
    _blocks.set(blocks)
    _forced.set(blocks[-1].name if blocks else _state)


def forced_backend() -> str:
    """The name of the backend that is forced in this context, or "auto"."""
    forced = _state.traced[-1] if _state.traced else _state.forced
    return _FROM_ENVIRONMENT if forced is _state else forced
