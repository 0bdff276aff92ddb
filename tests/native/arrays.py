"""Arrays for the checks of the core: at the end of readable memory, and in half precision."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np

SCALARS = ("float32", "bfloat16", "float16")


def at_end_of_page(values: np.ndarray) -> np.ndarray:
    """Returns a copy at the end of readable memory, so that reading one byte beyond crashes."""
    size = _pages(values.nbytes)
    memory = mmap.mmap(-1, size + mmap.PAGESIZE)
    _forbid(memory, size, mmap.PAGESIZE)
    copy = np.frombuffer(memory, values.dtype, values.size, size - values.nbytes)
    copy = copy.reshape(values.shape)
    copy[...] = values
    return copy


def unreadable(like: np.ndarray) -> np.ndarray:
    """Returns an array shaped like ``like`` that crashes when it is read."""
    size = _pages(like.nbytes)
    memory = mmap.mmap(-1, size)
    _forbid(memory, 0, size)
    return np.frombuffer(memory, like.dtype, like.size).reshape(like.shape)


def _pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def _forbid(memory: mmap.mmap, offset: int, size: int) -> None:
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + offset
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), 0) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")


def encode(values: np.ndarray, scalar: str) -> np.ndarray:
    """Returns float32 values as the core takes them; 16-bit types are bit patterns."""
    values = values.astype(np.float32)
    if scalar == "float16":
        return values.astype(np.float16).view(np.uint16)
    if scalar == "bfloat16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)  # truncated; any bfloat16 will do
    return values


def nearest(values: np.ndarray, scalar: str) -> np.ndarray:
    """Rounds float32 values to nearest, ties to even, as the core must. NaN is not allowed.

    Uses numpy or the definition.
    """
    if scalar == "float32":
        return values
    if scalar == "float16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).view(np.uint16)
    bits = values.view(np.uint32).astype(np.uint64)
    lower, remainder = bits >> 16, bits & 0xFFFF
    up = (remainder > 0x8000) | ((remainder == 0x8000) & (lower % 2 == 1))
    return (lower + up).astype(np.uint16)


def decode(encoded: np.ndarray, scalar: str) -> np.ndarray:
    if scalar == "float16":
        return np.ascontiguousarray(encoded).view(np.float16).astype(np.float64)
    if scalar == "bfloat16":
        return (encoded.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return encoded.astype(np.float64)


def random_mask(rng: np.random.Generator, size: int) -> list[bool]:
    return (rng.random(size) < rng.choice([0.2, 0.9, 1.0])).tolist()
