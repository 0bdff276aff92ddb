"""Run code in a fresh interpreter, to test decisions made when a process starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import clasp_kernels


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter that imports this checkout.

    Of the project's environment variables, only those in ``environment`` are set.
    """
    root = str(Path(clasp_kernels.__file__).parents[1])
    ours = ("CLASP_KERNELS_", "TRITON_")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**inherited, "PYTHONPATH": root, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


# Preamble that imports the package without registering the ops, although torch is imported too.
WITHOUT_OPS = """
import sys, clasp_kernels
assert type(sys.meta_path.pop(0)).__name__ == "Waiting"
"""


def extension_in(folder: str) -> str:
    """Return a preamble that makes the ops look for the C++ extension in another folder."""
    return f"""{WITHOUT_OPS}
import pathlib, clasp_kernels.backends.cpu
clasp_kernels.backends.cpu.PACKAGE = pathlib.Path({folder!r})
"""
