"""Warnings that point at the user's own line."""

from __future__ import annotations

import sys
import warnings

_PASSED_THROUGH = ("clasp_kernels", "contextlib", "torch", "transformers")


def warn_caller(message: str) -> None:
    """A UserWarning at the innermost frame outside this package and those that call into it."""
    level = 2
    frame = sys._getframe(1)
    while frame.f_back is not None and _package(frame.f_globals) in _PASSED_THROUGH:
        frame = frame.f_back
        level += 1
    warnings.warn(message, UserWarning, stacklevel=level)


def _package(frame_globals: dict[str, object]) -> str:
    return str(frame_globals.get("__name__", "")).partition(".")[0]
