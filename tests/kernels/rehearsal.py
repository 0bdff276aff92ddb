"""Plays the tests that need a GPU on the CPU, so that a mistake in one of them shows without one.

    python -m pytest -p rehearsal tests/kernels/test_gpu.py     (with this folder on PYTHONPATH)

A plugin of pytest's: torch says that there is a GPU, whose tensors are on the CPU and small, whose
streams do nothing, and whose graphs call again what was called while they were captured. Triton's
kernels are interpreted, those of the CUDA extension compiled for the host (cuda_on_host.py).
Nothing has run on a GPU.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

os.environ["TRITON_INTERPRET"] = "1"  # before anything of the package is imported

sys.path.insert(0, str(Path(__file__).parents[1] / "cuda_on_host"))

import cuda_on_host
import gpu_kernels
import large
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MOST = large.Size(4, 24, 8)


class Graph:
    """What was called, to be called again on the same tensors."""

    def __init__(self) -> None:
        self.calls: list[tuple[Callable[..., Any], tuple, dict, Any]] = []

    def replay(self) -> None:
        for function, args, kwargs, result in self.calls:
            again = tree_leaves(function(*args, **kwargs))
            for before, now in zip(tree_leaves(result), again, strict=True):
                if isinstance(before, torch.Tensor) and before is not now:
                    before.copy_(now)


class Recorder(TorchDispatchMode):
    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.graph.calls.append((func, args, kwargs or {}, result))
        return result


class Stream:
    def __init__(self, device: Any = None) -> None:
        pass


class Event:
    def record(self) -> None:
        pass

    def query(self) -> bool:
        return False


def nothing(*args: Any) -> None:
    pass


@contextlib.contextmanager
def no_stream(stream: Stream) -> Iterator[None]:
    yield


COMPILE = torch.compile
ARGUMENTS = large.arguments
EACH_THAT_FITS = gpu_kernels.each_that_fits


def compile_by_aot(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Without inductor, which would compile C++."""
    options.pop("mode", None)
    return COMPILE(function, backend="aot_eager", **options)


def shrunk(size: large.Size) -> large.Size:
    return large.Size(*map(min, size, MOST))


def small_arguments(op: str, size: large.Size, *rest: Any, **more: Any) -> dict[str, Any]:
    return ARGUMENTS(op, shrunk(size), *rest, **more)


def each_that_fits(*given: Any) -> list:
    """Of those that would fit."""
    cases = EACH_THAT_FITS(*given)
    return [
        pytest.param(kernels, shrunk(size), dtype, id=case.id)
        for case in cases
        for kernels, size, dtype in [case.values]
    ]


# Only while tests are collected: torch's compiler would look for the GPU as well.
THERE_IS_A_GPU = mock.patch("torch.cuda.is_available", lambda: True)
PLAYED = {
    "torch.cuda.get_device_capability": lambda device=None: (9, 0),
    "torch.cuda.device_count": lambda: 1,
    "torch.cuda.synchronize": nothing,
    "torch.cuda.is_initialized": lambda: False,
    "torch.cuda.set_sync_debug_mode": nothing,
    "torch.cuda.empty_cache": nothing,
    "torch.cuda._sleep": nothing,
    "torch.cuda.CUDAGraph": Graph,
    "torch.cuda.graph": Recorder,
    "torch.cuda.Stream": Stream,
    "torch.cuda.stream": no_stream,
    "torch.cuda.Event": Event,
    "torch.cuda.mem_get_info": lambda: (0, 0),
    "torch.cuda.memory_allocated": lambda: 0,
    "torch.cuda.reset_peak_memory_stats": nothing,
    "torch.cuda.max_memory_allocated": lambda: 1 << 20,
    "torch.compiler.cudagraph_mark_step_begin": nothing,
    "torch.compile": compile_by_aot,
    "gpu_kernels.DEVICE": "cpu",
    "gpu_kernels.each_that_fits": each_that_fits,
    "large.arguments": small_arguments,
}
NOT_PLAYED = {
    "test_wild_indices_of_one_image_do_no_harm_to_others": "on the CPU they are refused",
    "test_a_design_that_cannot_serve_says_so_and_is_not_chosen": "these features are small",
}


def play() -> None:
    cuda_on_host.load()
    cuda_on_host.serve()
    for name, value in PLAYED.items():
        mock.patch(name, value).start()


def pytest_collection(session: pytest.Session) -> None:
    THERE_IS_A_GPU.start()
    play()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    THERE_IS_A_GPU.stop()
    for item in items:
        if why := NOT_PLAYED.get(getattr(item, "originalname", item.name)):
            item.add_marker(pytest.mark.skip(reason=why))
