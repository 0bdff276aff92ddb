"""Arrays for the checks of the core: at the end of readable memory, and in half precision."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np

SCALARS = ("float32", "bfloat16", "float16")


def at_end_of_page(values: np.ndarray) -> np.ndarray:
    """A copy that ends where readable memory does: reading one byte more is a crash."""
    page = mmap.PAGESIZE
    size = -(-values.nbytes // page) * page
    memory = mmap.mmap(-1, size + page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(address + size), ctypes.c_size_t(page), 0) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")
    copy = np.frombuffer(memory, values.dtype, values.size, size - values.nbytes)
    copy = copy.reshape(values.shape)
    copy[...] = values
    return copy


def encode(values: np.ndarray, scalar: str) -> np.ndarray:
    """float32 values as the core takes them: half-precision numbers as bit patterns."""
    values = values.astype(np.float32)
    if scalar == "float16":
        return values.astype(np.float16).view(np.uint16)
    if scalar == "bfloat16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)  # truncated: any bfloat16 will do
    return values


def decode(encoded: np.ndarray, scalar: str) -> np.ndarray:
    if scalar == "float16":
        return np.ascontiguousarray(encoded).view(np.float16).astype(np.float64)
    if scalar == "bfloat16":
        return (encoded.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return encoded.astype(np.float64)


def random_mask(rng: np.random.Generator, size: int) -> list[bool]:
    return (rng.random(size) < rng.choice([0.2, 0.9, 1.0])).tolist()
