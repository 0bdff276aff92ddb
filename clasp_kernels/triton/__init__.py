"""The ops as Triton kernels, one file an op: its kernels and what launches them.

A launcher has the op's schema as its signature; arguments have been checked by
:mod:`clasp_kernels.ops`, and the device is the current one. Indices that only a device sync could
check are kept in bounds. No module is imported from here until its kernel is
needed: see :mod:`clasp_kernels.backends.triton`.

In kernels ``p_`` names pointers, ``b_`` blocks of values, ``i_`` program and loop indices and
``m_`` masks. Grids have one dimension, as the other two end at 65,535. Sizes that differ from call
to call are not specialised, so that nothing is compiled again for another batch.
"""

import os

INTERPRET = "TRITON_INTERPRET"
# Triton reads it when a kernel is defined, so it counts as it was when the process began.
INTERPRETED = os.environ.get(INTERPRET, "0").lower() in ("1", "true", "yes", "on", "y")
