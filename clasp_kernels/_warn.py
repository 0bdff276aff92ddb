"""Warnings that are attributed to the user's line of code."""

from __future__ import annotations

import sys
import warnings

_PASSED_THROUGH = ("clasp_kernels", "contextlib", "torch", "transformers")


def warn_caller(message: str) -> None:
    """Issues a UserWarning at the innermost frame outside the packages in _PASSED_THROUGH."""
    level = 2
    frame = sys._getframe(1)
    while frame.f_back is not None and _package(frame.f_globals) in _PASSED_THROUGH:
        frame = frame.f_back
        level += 1
    warnings.warn(message, UserWarning, stacklevel=level)


def _package(frame_globals: dict[str, object]) -> str:
    return str(frame_globals.get("__name__", "")).partition(".")[0]
