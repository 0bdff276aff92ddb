"""The resources that a compiled kernel uses, and the resulting occupancy of a multiprocessor."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

# Limits of a multiprocessor of compute capability 8.0, 9.0 or 10.0 (CUDA C++ Programming Guide,
# "Compute Capabilities"). Each quarter has its own registers, allocated to warps in units of 256.
MAX_WARPS = 64
MAX_BLOCKS = 32
QUARTERS = 4
REGISTERS = 65536
REGISTER_UNIT = 256
SHARED = {80: 164 * 1024, 90: 228 * 1024, 100: 228 * 1024}
SHARED_RESERVED = 1024  # per block, by the system
SHARED_UNIT = 128

# Half of the maximum. Our threads have several 16-byte loads in flight, so more warps do not hide
# more latency, and an occupancy between half and full needs no explanation.
ENOUGH_WARPS = MAX_WARPS // 2

# cuobjdump --dump-resource-usage
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")
# ld.global.L1::evict_first.v4.b32, with any modifiers; cp.async copies to shared memory.
_ACCESS = re.compile(r"\b(ld|st)\.global(?:\.[\w:]+?)*?(?:\.v([248]))?\.[bsuf](\d+)\b")
_ASYNC_COPY = re.compile(r"\bcp\.async\.c[ag]\.shared\.global[^;]*?\],\s*(0x[0-9a-f]+|\d+)")


@dataclass(frozen=True)
class Resources:
    """The resources of one compiled kernel."""

    capability: int
    registers: int
    """Per thread."""
    spilled: int
    """Bytes per thread in local memory: spilled registers, or arrays indexed at run time."""
    shared: int
    num_warps: int

    @property
    def warps_by_registers(self) -> int:
        """The warps that fit, in whole blocks, if registers are the only limit."""
        per_warp = -(-self.registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
        warps = REGISTERS // QUARTERS // max(per_warp, REGISTER_UNIT) * QUARTERS
        return self._whole_blocks(warps)

    @property
    def warps_by_the_rest(self) -> int:
        """The warps that fit if registers are no limit."""
        shared = -(-(self.shared + SHARED_RESERVED) // SHARED_UNIT) * SHARED_UNIT
        blocks = min(MAX_BLOCKS, SHARED[self.capability] // shared)
        return self._whole_blocks(min(MAX_WARPS, blocks * self.num_warps))

    @property
    def warps(self) -> int:
        """The warps that fit on a multiprocessor, at most 64."""
        return min(self.warps_by_registers, self.warps_by_the_rest)

    @property
    def registers_halve_occupancy(self) -> bool:
        """Whether registers leave less than half of the warps that would otherwise fit.

        The comparison counts the warps that fit by shared memory and by the limits of 32 blocks and
        64 warps, up to ENOUGH_WARPS. If shared memory is no limit, fewer than 16 of 64 warps fail
        (more than 128 registers). If shared memory leaves 3 blocks, registers for only 1 block
        fail.
        """
        return 2 * self.warps_by_registers < min(self.warps_by_the_rest, ENOUGH_WARPS)

    def _whole_blocks(self, warps: int) -> int:
        return warps // self.num_warps * self.num_warps


def read_resources(
    cuobjdump: str, cubin: Path, *, capability: int, shared: int, num_warps: int
) -> Resources:
    """``shared`` is the shared memory of the launch, which the cubin does not record."""
    usage = subprocess.run(
        [cuobjdump, "--dump-resource-usage", str(cubin)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = _USAGE.search(usage)
    if found is None:
        raise RuntimeError(f"cuobjdump says nothing about registers: {usage!r}.")
    registers, stack, local = map(int, found.groups())
    return Resources(capability, registers, stack + local, shared, num_warps)


def narrow_accesses(ptx: str) -> list[str]:
    """Returns the problems of the global accesses of a kernel that must access tokens in 16 bytes.

    The kernel must have 16-byte loads and stores. No vector access may be shorter, and no single
    access may be 2 bytes. A single 4- or 8-byte access may be a weight or an index.
    """
    loads: list[int] = []
    stores: list[int] = []
    problems = set()
    for kind, length, bits in _ACCESS.findall(ptx):
        size = int(length or 1) * int(bits) // 8
        (loads if kind == "ld" else stores).append(size)
        if size == 2 or (length and size < 16):
            problems.add(f"{kind}.global of {size} bytes")
    loads += [int(size, 0) for size in _ASYNC_COPY.findall(ptx)]
    if max(loads, default=0) < 16:
        problems.add(f"no load of 16 bytes, the widest is {max(loads, default=0)}")
    if max(stores, default=0) < 16:
        problems.add(f"no store of 16 bytes, the widest is {max(stores, default=0)}")
    return sorted(problems)
