"""The CPU kernel of attention salience, called through torch.

Covers threads, batches, and direct calls without the checks in Python.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tensors import DTYPES
from torch import Tensor

from clasp_kernels import attention_salience, backends, use_backend

pytestmark = pytest.mark.usefixtures("cpu_backend")


def attention(
    batch: int, key_heads: int, group: int, rows: int, keys: int, width: int, dtype: torch.dtype
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the arguments with one entry per image, and the others."""
    random = torch.Generator().manual_seed(batch + keys)
    per_image = {
        "query": torch.randn(batch, key_heads * group, rows, width, generator=random).to(dtype),
        "key": torch.randn(batch, key_heads, keys, width, generator=random).to(dtype),
        "key_valid": torch.rand(batch, keys, generator=random) < 0.9,
        "query_weights": torch.rand(batch, rows, generator=random),
    }
    return per_image, {"causal": True, "key_range": (3, keys - 2)}


# Threads share either the heads or the keys of a head, depending on their numbers. The first shapes
# have too few heads even for two threads, the last have enough for any number of threads.
SHAPES = {
    "one head, one row": (1, 1, 1, 1, 1000, 40),
    "one head, few rows": (1, 1, 4, 2, 700, 24),
    "one head, many rows": (1, 1, 2, 50, 333, 17),
    "three heads": (1, 3, 2, 9, 200, 24),
    "images of three heads": (5, 3, 1, 20, 150, 16),
    "more heads than slots": (2, 37, 1, 3, 130, 8),
    "more images than are done together": (70, 2, 1, 2, 70, 8),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_threads_batch_mates_and_repetition_do_not_matter(
    shape: tuple[int, ...], dtype: torch.dtype, threads: None
) -> None:
    per_image, options = attention(*shape, dtype)
    torch.set_num_threads(1)
    expected = attention_salience(**per_image, **options)
    for num_threads in (1, 2, 3, 8):
        torch.set_num_threads(num_threads)
        for _ in range(3):
            assert torch.equal(attention_salience(**per_image, **options), expected)
    for image in range(0, shape[0], 7):
        # A clone has another alignment, and a single image is split between threads.
        alone = {name: value[image : image + 1].clone() for name, value in per_image.items()}
        assert torch.equal(attention_salience(**alone, **options)[0], expected[image])


def test_the_stored_attention_does_not_grow_with_rows_or_heads(threads: None) -> None:
    """Memory beyond inputs and output is bounded per thread.

    The whole attention would take 1 GB, and that of one head 32 MB.
    """
    torch.set_num_threads(2)
    query, key = torch.randn(1, 32, 4096, 4), torch.randn(1, 32, 2048, 4)
    attention_salience(query[:, :, :64], key)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the memory in use
    before = peak_memory()
    attention_salience(query, key)
    assert peak_memory() - before < 6 * 2**20


def peak_memory() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def arguments(**changes: Any) -> tuple[Any, ...]:
    values = {
        "query": torch.zeros(2, 4, 3, 5),
        "key": torch.zeros(2, 2, 7, 5),
        "scale": 1.0,
        "causal": True,
        "key_valid": None,
        "query_weights": None,
        "start": 0,
        "stop": 7,
    }
    return tuple((values | changes).values())


@pytest.mark.parametrize(
    "changes",
    [
        {"query": torch.zeros(2, 4, 3)},
        {"query": torch.zeros(2, 4, 3, 5, dtype=torch.float64)},
        {"query": torch.zeros(2, 5, 3, 5)},
        {"key": torch.zeros(2, 7, 5)},
        {"key": torch.zeros(1, 2, 7, 5)},
        {"key": torch.zeros(2, 2, 7, 4)},
        {"key": torch.zeros(2, 0, 7, 5)},
        {"key": torch.zeros(2, 2, 7, 5, dtype=torch.bfloat16)},
        {"key_valid": torch.ones(2, 6, dtype=torch.bool)},
        {"key_valid": torch.ones(2, 7, dtype=torch.int8)},
        {"query_weights": torch.ones(2, 4)},
        {"query_weights": torch.ones(2, 3, dtype=torch.int64)},
        {"start": -1},
        {"stop": 8},
        {"start": 5, "stop": 4},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_a_direct_call_with_wrong_arguments_is_refused(changes: dict[str, Any]) -> None:
    op = backends.overload("attention_salience", torch.device("cpu"))
    op(*arguments())
    with pytest.raises(RuntimeError, match=next(iter(changes))):
        op(*arguments(**changes))


def test_a_direct_call_with_nothing_in_it() -> None:
    op = backends.overload("attention_salience", torch.device("cpu"))
    assert op(*arguments(query=torch.zeros(2, 4, 0, 5))).tolist() == [[0.0] * 7] * 2
    assert op(*arguments(key=torch.zeros(2, 2, 0, 5), stop=0)).shape == (2, 0)
    assert op(*arguments(start=3, stop=3)).shape == (2, 0)
    no_image = op(*arguments(query=torch.zeros(0, 4, 3, 5), key=torch.zeros(0, 2, 7, 5)))
    assert no_image.shape == (0, 7)
    no_feature = op(*arguments(query=torch.zeros(1, 2, 1, 0), key=torch.zeros(1, 2, 7, 0)))
    torch.testing.assert_close(no_feature, torch.full((1, 7), 1 / 7))


def test_a_direct_call_with_weights_out_of_range_stays_in_bounds() -> None:
    op = backends.overload("attention_salience", torch.device("cpu"))
    for weight in (-1.0, float("nan"), float("inf")):
        assert op(*arguments(query_weights=torch.full((2, 3), weight))).shape == (2, 7)


def test_many_heads_of_many_images() -> None:
    """Uses more images than are processed together, and more heads than partial sums."""
    generator = torch.Generator().manual_seed(7)
    query = torch.randn(9, 80, 2, 8, generator=generator)
    key = torch.randn(9, 40, 5, 8, generator=generator)
    key[6, 0, 3] = math.nan  # the first of several heads that are summed together
    salience = attention_salience(query, key, causal=True)
    for image in range(9):
        one = slice(image, image + 1)
        alone = attention_salience(query[one], key[one], causal=True)
        torch.testing.assert_close(salience[one], alone, rtol=0, atol=0, equal_nan=True)
        with use_backend("reference"):
            expected = attention_salience(query[one], key[one], causal=True)
        torch.testing.assert_close(alone, expected, rtol=1e-5, atol=1e-6, equal_nan=True)
    assert salience[6].isnan().any() and not salience[[*range(6), 7, 8]].isnan().any()
