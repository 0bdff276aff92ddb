"""A Triton driver without a GPU: kernels are compiled as for a launch but not launched.

Under a StubDriver, the launchers of clasp_kernels/triton/ run unchanged on meta tensors. These have
strides, dtypes and an address as aligned as their offset, but no memory. Triton binds, specializes
and compiles exactly what the same call would need on that GPU.

TRITON_INTERPRET must not be set when kernels are imported, because it replaces them by interpreted
functions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

# Properties by compute capability (A100, H100 and B200) that a launcher may query. An A100 has 163
# KiB of shared memory per block. The limit here is the 99 KiB of GPUs of 8.6 and 8.9, which run the
# same kernels.
PROPERTIES = {
    80: {"max_shared_mem": 99 * 1024, "multiprocessor_count": 108},
    90: {"max_shared_mem": 227 * 1024, "multiprocessor_count": 132},
    100: {"max_shared_mem": 227 * 1024, "multiprocessor_count": 148},
}
COMMON_PROPERTIES = {"max_num_regs": 65536, "warpSize": 32}

# Triton caches compiled kernels by device number, so a new number starts with an empty cache.
_devices = itertools.count()


@dataclass(frozen=True)
class Launch:
    """One launch of a compiled kernel."""

    kernel: str
    """Module and name of the kernel's function."""
    grid: tuple[int, int, int]
    hash: str
    """The hash of the code. Launches with equal hashes share one compilation."""
    num_warps: int
    shared: int
    """Bytes of shared memory per block."""
    files: dict[str, Path]
    """The compiler's output files by suffix: "ptx", "cubin"."""


@dataclass
class _Utils:
    capability: int

    def load_binary(
        self, name: str, kernel: bytes, shared: int, device: int
    ) -> tuple[object, object, int, int, int]:
        # Returns module, function, registers, spills and largest block. Nothing reads the counts:
        # they come from a real driver normally.
        return None, None, 0, 0, 1024

    def unload_module(self, module: object) -> None:
        pass

    def get_device_properties(self, device: int) -> dict[str, int]:
        return COMMON_PROPERTIES | PROPERTIES[self.capability]


@dataclass
class StubDriver(DriverBase):
    """Stands in for a GPU of one compute capability, and records the launches."""

    capability: int
    launches: list[Launch] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    """Compile time by hash of the code; absent for kernels from Triton's cache."""
    device: int = field(default_factory=lambda: next(_devices))

    def __post_init__(self) -> None:
        self.utils = _Utils(self.capability)
        self._files: dict[str, dict[str, Path]] = {}

    @classmethod
    def is_active(cls) -> bool:
        return False  # never chosen automatically

    def map_python_to_cpp_type(self, ty: str) -> str:
        raise NotImplementedError("nothing is launched")

    def get_benchmarker(self) -> Callable[..., Any]:
        raise NotImplementedError("nothing is launched")

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        """Called by Triton once per compiled kernel. Returns the function that launches it."""
        kernel = f"{source.fn.__module__}.{source.fn.__name__}"
        files = self._files[metadata.hash]

        def launch(grid_x: int, grid_y: int, grid_z: int, *rest: Any) -> None:
            # stream, function, two kinds of metadata and two hooks come before the arguments
            _check_devices(kernel, rest[6:])
            grid = (grid_x, grid_y, grid_z)
            if min(grid) < 1 or grid_x >= 2**31 or max(grid_y, grid_z) > 65535:
                raise ValueError(f"{kernel}: a GPU takes no grid of {grid}.")
            self.launches.append(
                Launch(kernel, grid, metadata.hash, metadata.num_warps, metadata.shared, files)
            )

        return launch

    def _listen(
        self,
        *,
        metadata: dict[str, Any],
        metadata_group: dict[str, str],
        times: Any,
        cache_hit: bool,
        **_: Any,
    ) -> None:
        if not cache_hit:
            self.seconds[metadata["hash"]] = times.total / 1e6
        paths = map(Path, metadata_group.values())
        self._files[metadata["hash"]] = {path.suffix[1:]: path for path in paths}

    @contextmanager
    def active(self) -> Iterator[StubDriver]:
        """Makes Triton use this driver within the block."""
        drivers, compilation = triton.runtime.driver, triton.knobs.compilation
        # Reading drivers.active would look for a GPU.
        before = drivers._active, compilation.listener
        drivers.set_active(self)
        compilation.listener = self._listen
        try:
            yield self
        finally:
            drivers.set_active(before[0])
            compilation.listener = before[1]


def _check_devices(kernel: str, arguments: tuple[Any, ...]) -> None:
    for argument in arguments:
        if isinstance(argument, tuple):
            _check_devices(kernel, argument)
        elif isinstance(argument, torch.Tensor) and argument.device.type != "meta":
            raise ValueError(
                f"{kernel}: every tensor must be on the device of the arguments, "
                f"one of shape {list(argument.shape)} is on {argument.device}."
            )


def specializations(call: Callable[[], object], capability: int = 90) -> set[str]:
    """Returns what ``call`` would compile in a fresh process, without compiling it.

    Each string is one compilation: the key under which Triton would cache the compiled kernel.
    """
    keys = set()

    def refuse(*, key: str, fn: Any, **_: Any) -> bool:
        keys.add(f"{fn.name}{key}")
        return True

    runtime = triton.knobs.runtime
    before, runtime.jit_cache_hook = runtime.jit_cache_hook, refuse
    try:
        with StubDriver(capability).active():
            call()
    finally:
        runtime.jit_cache_hook = before
    return keys
