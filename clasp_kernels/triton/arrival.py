"""Which program of a group finishes last: it alone can go on with what the others have written.

So a second phase needs no second launch, and no program ever waits for another, which on a GPU
could have to wait for ever. The counters are integers and only counted up: what the last program
does is the same whichever it is.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def arrives_last(p_counter, group_size):
    """Whether all other programs of the group have been here; ``p_counter`` starts at 0 (int32).

    What those wrote before is then visible to this one. Reads of it must come after, and must not
    be served from this multiprocessor's first-level cache: load with ``cache_modifier=".cg"``.
    """
    # The counting is done by one thread: what the others wrote has to be out before.
    tl.debug_barrier()
    return tl.atomic_add(p_counter, 1, sem="acq_rel", scope="gpu") == group_size - 1
