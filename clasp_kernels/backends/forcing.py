"""Which backend is forced: for the process, within a ``with`` block, and in compiled code."""

from __future__ import annotations

import os
import threading
from contextvars import ContextVar
from types import TracebackType
from typing import Any

import torch

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
