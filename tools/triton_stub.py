"""Triton's driver without a GPU: kernels are compiled as a launch would, and launched nowhere.

Under a StubDriver the launchers of clasp_kernels/triton/ run as they are, on meta tensors, which
have strides, dtypes and an address that is as aligned as their offset, but no memory. Triton binds,
specialises and compiles exactly what the same call would need on that GPU.

TRITON_INTERPRET must not be set when kernels are imported: they would be no kernels then.
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

# What a launcher may ask for, by compute capability: A100, H100 and B200. Of its shared memory an
# A100 gives a block 163 KiB, but the GPUs of 8.6 and 8.9, which get the same kernels, give 99.
PROPERTIES = {
    80: {"max_shared_mem": 99 * 1024, "multiprocessor_count": 108},
    90: {"max_shared_mem": 227 * 1024, "multiprocessor_count": 132},
    100: {"max_shared_mem": 227 * 1024, "multiprocessor_count": 148},
}
COMMON_PROPERTIES = {"max_num_regs": 65536, "warpSize": 32}

# Device numbers are keys of Triton's cache of compiled kernels: a new one starts an empty cache.
_devices = itertools.count()


@dataclass(frozen=True)
class Launch:
    """One launch of a compiled kernel."""

    kernel: str
    """Module and name of the function."""
    grid: tuple[int, int, int]
    hash: str
    """Of the code; launches that share it share the compilation."""
    num_warps: int
    shared: int
    """Bytes of shared memory a block."""
    files: dict[str, Path]
    """What the compiler wrote, by suffix: "ptx", "cubin"."""


@dataclass
class _Utils:
    capability: int

    def load_binary(
        self, name: str, kernel: bytes, shared: int, device: int
    ) -> tuple[object, object, int, int, int]:
        # module, function, registers, spills, largest block; the counts are the driver's, and
        # nobody reads ours.
        return None, None, 0, 0, 1024

    def unload_module(self, module: object) -> None:
        pass

    def get_device_properties(self, device: int) -> dict[str, int]:
        return COMMON_PROPERTIES | PROPERTIES[self.capability]


@dataclass
class StubDriver(DriverBase):
    """Stands for a GPU of one compute capability, and writes down what is launched."""

    capability: int
    launches: list[Launch] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    """What compiling took, by the hash of the code; nothing for what Triton's cache had."""
    device: int = field(default_factory=lambda: next(_devices))

    def __post_init__(self) -> None:
        self.utils = _Utils(self.capability)
        self._files: dict[str, dict[str, Path]] = {}

    @classmethod
    def is_active(cls) -> bool:
        return False  # never chosen unless set

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
        """What Triton calls once for every kernel it has compiled, to learn how to launch it."""
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
        """Triton uses this driver within the block."""
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
    """What ``call`` would have Triton compile in a fresh process; nothing is compiled.

    Each string is one compilation: the key under which Triton would keep the compiled kernel.
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
