"""Integers in arguments: NumPy's and others that Python takes for an index count, bools do not."""

from __future__ import annotations

import operator
from typing import SupportsIndex, cast


def as_int(value: object) -> int | None:
    """``value`` as an int, None if it is none.

    >>> import numpy
    >>> as_int(3), as_int(numpy.int32(3)), as_int(3.0), as_int(True), as_int(numpy.bool_(True))
    (3, 3, None, None, None)
    """
    # Tensors of one element can be indices too, whatever their dtype and shape.
    boolean = isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")
    if boolean or getattr(value, "ndim", None):
        return None
    try:
        return operator.index(cast("SupportsIndex", value))
    except TypeError:
        return None
