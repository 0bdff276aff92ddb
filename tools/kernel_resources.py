"""What a compiled kernel takes from a multiprocessor, and what that leaves for others like it."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

# A multiprocessor of compute capability 8.0, 9.0 or 10.0 (CUDA C++ Programming Guide, "Compute
# Capabilities"). Each of its quarters has its own registers, given to warps in units of 256.
MAX_WARPS = 64
MAX_BLOCKS = 32
QUARTERS = 4
REGISTERS = 65536
REGISTER_UNIT = 256
SHARED = {80: 164 * 1024, 90: 228 * 1024, 100: 228 * 1024}
SHARED_RESERVED = 1024  # per block, by the system
SHARED_UNIT = 128

# Half of the warps that fit. More hide no more latency where each thread has several 16-byte loads
# in flight, as ours have, so that having fewer than all 64 is nothing to explain.
ENOUGH_WARPS = MAX_WARPS // 2

# cuobjdump --dump-resource-usage
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")
# ld.global.L1::evict_first.v4.b32, with any modifiers; cp.async copies to shared memory.
_ACCESS = re.compile(r"\b(ld|st)\.global(?:\.[\w:]+?)*?(?:\.v([248]))?\.[bsuf](\d+)\b")
_ASYNC_COPY = re.compile(r"\bcp\.async\.c[ag]\.shared\.global[^;]*?\],\s*(0x[0-9a-f]+|\d+)")


@dataclass(frozen=True)
class Resources:
    """Of one compiled kernel."""

    capability: int
    registers: int
    """Per thread."""
    spilled: int
    """Bytes a thread keeps in local memory: spilled registers, or arrays indexed at run time."""
    shared: int
    num_warps: int

    @property
    def warps_by_registers(self) -> int:
        """How many warps fit where registers are the only limit, in whole blocks."""
        per_warp = -(-self.registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
        warps = REGISTERS // QUARTERS // max(per_warp, REGISTER_UNIT) * QUARTERS
        return self._whole_blocks(warps)

    @property
    def warps_by_the_rest(self) -> int:
        """How many warps fit where registers are no limit."""
        shared = -(-(self.shared + SHARED_RESERVED) // SHARED_UNIT) * SHARED_UNIT
        blocks = min(MAX_BLOCKS, SHARED[self.capability] // shared)
        return self._whole_blocks(min(MAX_WARPS, blocks * self.num_warps))

    @property
    def warps(self) -> int:
        """How many warps a multiprocessor holds, of 64."""
        return min(self.warps_by_registers, self.warps_by_the_rest)

    @property
    def registers_halve_occupancy(self) -> bool:
        """Whether, for its registers, less than half the warps fit that would fit without.

        Fit without: by shared memory, by the 32 blocks and the 64 warps of a multiprocessor, and
        counting no more than ENOUGH_WARPS. So where shared memory is no limit, fewer than 16 warps
        of 64 (more than 128 registers); where it leaves 3 blocks, registers for only 1.
        """
        return 2 * self.warps_by_registers < min(self.warps_by_the_rest, ENOUGH_WARPS)

    def _whole_blocks(self, warps: int) -> int:
        return warps // self.num_warps * self.num_warps


def read_resources(
    cuobjdump: str, cubin: Path, *, capability: int, shared: int, num_warps: int
) -> Resources:
    """``shared`` is what a launch asks for, which the cubin does not hold."""
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
    """What is wrong with the global accesses of a kernel that promises 16 bytes for its tokens.

    It must load and store 16 bytes at once somewhere; no vector may be shorter, and nothing may be
    accessed by single elements of two bytes. A single 4- or 8-byte access may be a weight or index.
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
