"""Conversion of integer arguments: NumPy integers and other index types count, bools do not."""

from __future__ import annotations

import operator
from typing import SupportsIndex, cast


def as_int(value: object) -> int | None:
    """``value`` as an int, or None if it is not an integer.

    >>> import numpy
    >>> as_int(3), as_int(numpy.int32(3)), as_int(3.0), as_int(True), as_int(numpy.bool_(True))
    (3, 3, None, None, None)
    """
    # Rules out tensors and arrays of one element, which operator.index() accepts in any shape.
    boolean = isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")
    if boolean or getattr(value, "ndim", None):
        return None
    try:
        return operator.index(cast("SupportsIndex", value))
    except TypeError:
        return None
