"""The CUDA kernels of csrc/cuda, run on the host with a fiber for every GPU thread (simt/simt.h),
against float64 and plain Python."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import checks
import harness
from arrays import SCALARS, at_end_of_page, decode, encode
from check_completion import certify, greedy, lattice, two_stages

# Which threads of a block come first; none of it may matter.
ORDERS = ("forwards", "backwards", "shuffled")
# The two half precisions differ in little but what they are converted by.
ORDERS_OF_SCALARS = [
    *(("float32", order) for order in ORDERS),
    *zip(("bfloat16", "float16", "bfloat16"), ORDERS, strict=True),
]


DESIGNS = ("matrix", "steps")


@pytest.fixture(scope="module")
def kernels() -> ModuleType:
    return checks.load(harness.build_cuda())


class Images:
    """Features [B, N, D] of a dtype, which end where readable memory does, and which are valid."""

    def __init__(self, values: np.ndarray, scalar: str, valid: np.ndarray | None = None) -> None:
        self.encoded = at_end_of_page(encode(values, scalar))
        self.values = np.stack([decode(image, scalar) for image in self.encoded])
        self.scalar = scalar
        self.valid = np.ones(values.shape[:2], bool) if valid is None else valid
        # Rows that 16 bytes divide start where 16 divides, as the end of a page does.
        self.is_aligned = self.encoded.strides[1] % 16 == 0

    def mask(self, image: int) -> list[bool]:
        return self.valid[image].tolist()


def complete(
    kernels: ModuleType,
    design: str,
    images: Images,
    selected: list[list[int]],
    count: int,
    *,
    order: str = "forwards",
    is_aligned: bool | None = None,
) -> list[list[int]]:
    launch = (design, images.is_aligned if is_aligned is None else is_aligned, order)
    given = np.array(selected, np.int64).reshape(len(selected), -1)
    valid = images.valid.astype(np.uint8) * 3  # any of which but 0 is true
    return kernels.complete(launch, images.scalar, images.encoded, given, count, valid).tolist()


def expected_picks(images: Images, selected: list[list[int]], count: int) -> list[list[int]]:
    found = []
    for image, values in enumerate(images.values):
        known = [n for n in selected[image] if 0 <= n < len(values)]
        picks = greedy(values, known, count, images.mask(image))
        found.append(picks + [-1] * (count - len(picks)))
    return found


def lattices(rng: np.random.Generator, batch: int, num_tokens: int, dim: int) -> np.ndarray:
    return np.stack([lattice(rng, num_tokens, dim) for _ in range(batch)])


def assert_both_stages(
    kernels: ModuleType, design: str, scalar: str, order: str, num_tokens: int, dim: int
) -> None:
    rng = np.random.default_rng(1)
    budgets, shares = [12, 0, num_tokens + 10, 9, 20], [5, 3, 2, 99, 15]
    batch, width = len(budgets), max(budgets)
    values = lattices(rng, batch, num_tokens, dim)
    images = Images(values, scalar, rng.random((batch, num_tokens)) < 0.8)
    images.valid[4, : num_tokens - 6] = False  # fewer are left than there may be pivots
    choices = [0.0, -0.0, 1.5, -2.0, math.inf, -math.inf, math.nan]
    salience = rng.choice(choices, (batch, num_tokens)).astype(np.float32)
    indices, is_pivot, counts = kernels.select(
        (design, images.is_aligned, order),
        *(scalar, images.encoded, salience, width, np.array(budgets), np.array(shares)),
        images.valid.astype(np.uint8),
    )
    for i in range(batch):
        kept, pivots = two_stages(
            images.values[i], salience[i].tolist(), budgets[i], shares[i], images.mask(i)
        )
        padding = width - len(kept)
        assert indices[i].tolist() == kept + [-1] * padding
        assert is_pivot[i].tolist() == [n in pivots for n in kept] + [False] * padding
        assert counts[i] == len(kept)


@pytest.mark.parametrize(("scalar", "order"), ORDERS_OF_SCALARS)
@pytest.mark.parametrize("design", DESIGNS)
def test_both_stages(kernels: ModuleType, design: str, scalar: str, order: str) -> None:
    for num_tokens, dim in ((30, 40), (27, 13)):
        assert_both_stages(kernels, design, scalar, order, num_tokens, dim)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("design", DESIGNS)
def test_more_tokens_than_a_thread_writes(kernels: ModuleType, design: str, order: str) -> None:
    """Of the kept tokens, that is, in image order: 32."""
    assert_both_stages(kernels, design, "float32", order, 75, 24)


@pytest.mark.parametrize(("scalar", "order"), ORDERS_OF_SCALARS)
@pytest.mark.parametrize("design", DESIGNS)
def test_completion(kernels: ModuleType, design: str, scalar: str, order: str) -> None:
    rng = np.random.default_rng(2)
    images = Images(lattices(rng, 2, 31, 24), scalar, rng.random((2, 31)) < 0.9)
    # What is no token is passed over, also what does not fit an int32.
    for selected in ([[], []], [[-1, 7, 30, 2**40, 7], [31, 0, -(2**63), 5, 2]]):
        for count in (9, 34):
            picks = complete(kernels, design, images, selected, count, order=order)
            assert picks == expected_picks(images, selected, count)


@pytest.mark.parametrize("scalar", SCALARS)
@pytest.mark.parametrize("design", DESIGNS)
def test_the_layout_of_features_does_not_change_a_bit(
    kernels: ModuleType, design: str, scalar: str
) -> None:
    values = np.random.default_rng(3).standard_normal((1, 29, 56))
    images = Images(values, scalar)
    assert images.is_aligned
    picks = [
        complete(kernels, design, images, [[3]], 25, is_aligned=flag) for flag in (True, False)
    ]
    assert picks[0] == picks[1]


@pytest.mark.parametrize("scalar", SCALARS)
@pytest.mark.parametrize("design", DESIGNS)
def test_picks_are_certified(kernels: ModuleType, design: str, scalar: str) -> None:
    rng = np.random.default_rng(4)
    for dim in (1, 3, 200):
        images = Images(rng.standard_normal((1, 30, dim)), scalar, rng.random((1, 30)) < 0.9)
        (picks,) = complete(kernels, design, images, [[4, 9]], 20)
        certify(images.values[0], [4, 9], [n for n in picks if n >= 0], 20, images.mask(0))


@pytest.mark.parametrize("scalar", SCALARS)
@pytest.mark.parametrize("design", DESIGNS)
def test_what_is_no_number(kernels: ModuleType, design: str, scalar: str) -> None:
    values = lattice(np.random.default_rng(7), 30, 12)[None]
    values[0, 4, 3], values[0, 9, 0], values[0, 20, 11] = math.nan, math.inf, -math.inf
    images = Images(values, scalar)
    for selected in ([[]], [[0, 20]], [[4]]):
        picks = complete(kernels, design, images, selected, 30)
        assert picks == expected_picks(images, selected, 30)


@pytest.mark.parametrize(("scalar", "order"), ORDERS_OF_SCALARS)
def test_similarities_of_the_matrix(kernels: ModuleType, scalar: str, order: str) -> None:
    """Close to float64, of float32 too; and the second half of the tokens, which equals the first
    half, to the bit, although it is on the other side of products with the first."""
    half = np.random.default_rng(8).standard_normal((1, 64, 248))  # some slices of shared memory
    images = Images(np.concatenate([half, half[:, ::-1]], axis=1), scalar)
    assert images.is_aligned
    unit = images.values[0] / np.linalg.norm(images.values[0], axis=1, keepdims=True)
    for flag in (True, False):
        (found,) = kernels.similarities(("matrix", flag, order), scalar, images.encoded)
        np.testing.assert_allclose(found, unit @ unit.T, atol=8e-7, rtol=0)
        assert (found == found.T).all()
        assert (found[:64, :64] == found[:64, :63:-1]).all()


@pytest.mark.parametrize("scalar", SCALARS)
@pytest.mark.parametrize("design", DESIGNS)
def test_tokens_that_are_equal_tie(kernels: ModuleType, design: str, scalar: str) -> None:
    """Whichever side of a product they are on: token 0 and a later one, compared with one between
    them, are picked in the order of their indices."""
    for seed in range(6):
        values = np.random.default_rng(seed).standard_normal((1, 70, 250))
        last = values.shape[1] - 1
        values[0, last] = values[0, 0]
        images = Images(values, scalar, np.zeros(values.shape[:2], bool))
        images.valid[0, [0, last]] = True
        assert complete(kernels, design, images, [[last // 2, 7, last - 3]], 2) == [[0, last]]
