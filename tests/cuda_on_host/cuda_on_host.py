"""The CUDA extension without a GPU: all of csrc/cuda, compiled for the host.

A fiber runs for every GPU thread (simt.h). As a pytest plugin, this module runs the contract tests,
with the `cuda` backend serving CPU tensors:

    python -m pytest -p cuda_on_host --op-device=cpu -k cuda-cpu tests/ops/test_select_tokens.py

with this folder on PYTHONPATH. `cuda-cpu-steps` selects a single design.
"""

from __future__ import annotations

import functools
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "native"))
import harness

import clasp_kernels.ops  # noqa: F401  defines the ops
from clasp_kernels import backends
from clasp_kernels.backends import chooser
from clasp_kernels.backends.table import OPS, ops_of

HERE = Path(__file__).parent
SUFFIXES = {".cpp", ".cu", ".cuh", ".h"}
SIMILARITIES = "similarities(Tensor features, Tensor(a!) matrix, bool is_aligned) -> ()"


def build(variant: str) -> Path:
    """Builds a torch library that implements the ops of torch.ops.clasp_<variant>.

    ``simt`` runs the kernels unchanged; ``simt_races`` records every memory access.
    """
    setup = runpy.run_path(str(harness.ROOT / "setup.py"))
    _, torch_includes, torch_libraries = setup["find_torch"]()
    # Headers here take precedence over those of the same name in csrc.
    includes = [HERE, harness.CSRC]
    sources, flags, extra = [HERE / "extension.cpp"], [], []
    if variant == "simt_races":
        # Uses the compiler's instrumentation without the sanitizer's runtime, which races.cpp
        # replaces.
        sources.append(HERE / "races.cpp")
        flags, extra = ["-g"], ["-fsanitize=thread", "-DSIMT_RACES"]
    return harness.build_library(
        f"clasp_{variant}.so",
        variant,
        sources,
        [*flags, "-O1", "-Wno-unknown-pragmas", "-pthread", f"-DSIMT_LIBRARY=clasp_{variant}"]
        + setup["DEFINES"],
        read=[
            path
            for folder in includes
            for path in sorted(folder.rglob("*"))
            if path.suffix in SUFFIXES
        ],
        includes=includes,
        system=torch_includes,
        extra={"extension": extra},
        link=[*(f"-L{path}" for path in torch_libraries), "-ltorch_cpu", "-ltorch"],
    )


@functools.cache
def load(variant: str = "simt") -> Path:
    """Defines `torch.ops.clasp_<variant>`: the ops of `torch.ops.clasp_kernels`, other kernels."""
    namespace = f"clasp_{variant}"
    library = torch.library.Library(namespace, "DEF")
    libraries.append(library)
    for op in ops_of("cuda"):
        original = getattr(torch.ops.clasp_kernels, op).default
        schema = str(original._schema).removeprefix("clasp_kernels::")
        library.define(schema, tags=original.tags)
        library.impl(op, torch.library.fallthrough_kernel, "Autograd")
        torch.library.register_fake(f"{namespace}::{op}", OPS[op].fake, lib=library)
    library.define(SIMILARITIES)
    path = build(variant)
    torch.ops.load_library(str(path))
    return path


libraries: list[torch.library.Library] = []  # keeps the definitions alive


def serve() -> None:
    choose, overload = backends.choose, backends.overload

    def choose_too(op: str, device: str, forced: str) -> backends.Choice:
        if forced == "cuda" and op in ops_of("cuda"):
            return backends.Choice("cuda", "forced")
        return choose(op, device, forced)

    def overload_too(op: str, device: torch.device) -> Callable[..., Any]:
        if backends.forced_backend() == "cuda" and op in ops_of("cuda"):
            return getattr(torch.ops.clasp_simt, op).default
        return overload(op, device)

    chooser.choose = backends.choose = choose_too
    backends.overload = overload_too


def pytest_configure() -> None:
    load()
    serve()
