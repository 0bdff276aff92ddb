"""The ops as Triton kernels, one file per op with its kernels and their launcher.

A launcher has the op's schema as its signature. :mod:`clasp_kernels.ops` has already checked the
arguments, and the device of the tensors is current. Indices that only a device synchronization
could check are kept in bounds. Modules are imported from here when their kernel is first needed;
see :mod:`clasp_kernels.backends.triton`.

In kernels, ``p_`` names pointers, ``b_`` blocks of values, ``i_`` program and loop indices and
``m_`` masks. Grids have one dimension, because the other two are limited to 65,535. Sizes that vary
between calls are not specialized, so that another batch does not trigger a compilation.
"""

import os

INTERPRET = "TRITON_INTERPRET"
# Triton reads the variable when a kernel is defined, so the value at import is the one that counts.
INTERPRETED = os.environ.get(INTERPRET, "0").lower() in ("1", "true", "yes", "on", "y")
