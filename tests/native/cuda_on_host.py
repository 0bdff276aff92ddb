"""Runs the contract tests on the CUDA extension without a GPU: a plugin of pytest's, by which the
`cuda` backend serves tensors on the CPU.

    python -m pytest -p cuda_on_host --op-device=cpu -k cuda-cpu tests/ops/test_select_tokens.py

with this folder on PYTHONPATH. What is called is csrc/cuda from its torch interface on, compiled
for the host (harness.py), a fiber for every GPU thread; `cuda-cpu-steps` is one of its designs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import harness
import torch

import clasp_kernels.ops  # noqa: F401  defines the ops
from clasp_kernels import backends
from clasp_kernels._cuda import CUDA_OPS

LIBRARY = torch.library.Library("clasp_simt", "DEF")


def load() -> None:
    """As `torch.ops.clasp_simt`, like `torch.ops.clasp_kernels` in all but the kernels; once."""
    if hasattr(torch.ops.clasp_simt, CUDA_OPS[0]):
        return
    for op in CUDA_OPS:
        original = getattr(torch.ops.clasp_kernels, op).default
        schema = str(original._schema).removeprefix("clasp_kernels::")
        LIBRARY.define(schema, tags=original.tags)
        LIBRARY.impl(op, torch.library.fallthrough_kernel, "Autograd")
        fake = importlib.import_module(f"clasp_kernels.ops.{op}")._fake
        torch.library.register_fake(f"clasp_simt::{op}", fake, lib=LIBRARY)
    torch.ops.load_library(str(harness.build_extension()))


def serve() -> None:
    choose, overload = backends.choose, backends.overload

    def choose_too(op: str, device: str, forced: str) -> backends.Choice:
        if forced == "cuda" and op in CUDA_OPS:
            return backends.Choice("cuda", "forced")
        return choose(op, device, forced)

    def overload_too(op: str, device: torch.device) -> Callable[..., Any]:
        if backends.forced_backend() == "cuda" and op in CUDA_OPS:
            return getattr(torch.ops.clasp_simt, op).default
        return overload(op, device)

    backends.choose, backends.overload = choose_too, overload_too


def pytest_configure() -> None:
    load()
    serve()
