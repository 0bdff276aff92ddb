"""Detects the program of a group that arrives last, which then continues with the group's results.

This replaces a second launch for a second phase. No program waits for another one, which could
deadlock on a GPU. The counters are integers that only increase, and the result does not depend on
which program arrives last.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def arrives_last(p_counter, group_size):
    """Returns whether all other programs of the group have arrived; ``p_counter`` starts at 0
    (int32).

    If so, everything they wrote before is visible to this program. Load it after this call and with
    ``cache_modifier=".cg"``, which bypasses the L1 cache of this multiprocessor.
    """
    # One thread does the atomic add, so the writes of the other threads have to be finished first.
    tl.debug_barrier()
    return tl.atomic_add(p_counter, 1, sem="acq_rel", scope="gpu") == group_size - 1
