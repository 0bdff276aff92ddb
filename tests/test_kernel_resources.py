"""The checks of kernels' registers, shared memory and PTX, compared with known numbers."""

from __future__ import annotations

import pytest
from kernel_resources import Resources, narrow_accesses

KIB = 1024


@pytest.mark.parametrize(
    ("capability", "registers", "num_warps", "shared", "warps", "halved"),
    [
        (80, 32, 8, 0, 64, False),
        (80, 33, 8, 0, 48, False),  # allocated in units of 8: 40 registers, 12 warps per quarter
        (80, 128, 4, 0, 16, False),  # exactly half of the 32 warps that are enough
        (80, 129, 4, 0, 12, True),
        (90, 255, 8, 0, 8, True),
        # Blocks of one warp: at most 32 blocks fit.
        (90, 16, 1, 0, 32, False),
        # If shared memory limits the warps as much, registers are not the cause.
        (80, 255, 4, 80 * KIB, 8, False),
        (90, 255, 4, 80 * KIB, 8, False),
        (90, 255, 8, 48 * KIB, 8, True),
        (80, 64, 4, 82 * KIB, 4, False),  # 1 KiB per block is reserved for the system
    ],
)
def test_warps_that_fit(
    capability: int, registers: int, num_warps: int, shared: int, warps: int, halved: bool
) -> None:
    resources = Resources(capability, registers, 0, shared, num_warps)
    assert resources.warps == warps
    assert resources.registers_halve_occupancy == halved


WIDE_LOADS = """
    @%p1 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd9 + 0 ];
    ld.global.L1::evict_first.L2::cache_hint.v2.b64 { %rd1, %rd2 }, [ %rd9 + 0 ], %rd3;
    ld.global.nc.v8.b32 { %r1, %r2, %r3, %r4, %r5, %r6, %r7, %r8 }, [ %rd9 + 0 ];
    ld.global.b64 { %rd4 }, [ %rd9 + 0 ];
"""
WIDE_COPY = "cp.async.cg.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10, %r2;"
WIDE_STORE = "st.global.v4.b32 [ %rd11 + 0 ], { %r1, %r2, %r3, %r4 };"


@pytest.mark.parametrize("load", [*WIDE_LOADS.strip().splitlines()[:3], WIDE_LOADS, WIDE_COPY])
def test_wide_accesses_pass(load: str) -> None:
    assert narrow_accesses(f"{load}\n{WIDE_STORE}") == []


@pytest.mark.parametrize(
    ("ptx", "problem"),
    [
        (f"{WIDE_LOADS}{WIDE_STORE} ld.global.b16 {{ %rs1 }}, [ %rd1 ];", "ld.global of 2 bytes"),
        (f"{WIDE_LOADS}{WIDE_STORE} st.global.v2.b32 [ %rd1 ], {{}};", "st.global of 8 bytes"),
        (
            f"ld.global.b32 {{ %r1 }}, [ %rd1 ]; {WIDE_STORE}",
            "no load of 16 bytes, the widest is 4",
        ),
        (f"{WIDE_LOADS} st.global.b32 [ %rd1 ], {{}};", "no store of 16 bytes, the widest is 4"),
        (
            f"cp.async.ca.shared.global [ %r1 ], [ %rd1 ], 0x8; {WIDE_STORE}",
            "no load of 16 bytes, the widest is 8",
        ),
    ],
)
def test_narrow_accesses_are_named(ptx: str, problem: str) -> None:
    assert narrow_accesses(ptx) == [problem]
