"""Processes in which what malloc gives out is counted, to the byte.

``count_malloc.cpp`` is preloaded into them: resident memory, the other measure, is only known to
some hundred KiB, and of the same call varies by a third from process to process. It needs glibc and
a C++ compiler; stacks and what a library maps past malloc are not seen.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import gc
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")


@functools.cache
def counting() -> dict[str, str]:
    """The environment of processes whose memory is counted."""
    source = Path(__file__).with_name("count_malloc.cpp")
    library = Path(tempfile.mkdtemp(prefix="clasp-count-malloc-")) / "count_malloc.so"
    atexit.register(shutil.rmtree, library.parent)
    compiler = os.environ.get("CXX", "c++")
    flags = ["-std=c++20", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, str(source), "-o", str(library)], check=True)
    return {**os.environ, "LD_PRELOAD": str(library)}


def result_and_peak(function: Callable[[], Result]) -> tuple[Result, int]:
    """What ``function`` returns, and the peak of live bytes during it, its result among them, less
    what was live before; in a process started with :func:`counting`."""
    count = ctypes.CDLL(None)
    count.count_malloc_restart.restype = count.count_malloc_peak.restype = ctypes.c_int64
    gc.collect()
    before = count.count_malloc_restart()
    result = function()
    return result, count.count_malloc_peak() - before
