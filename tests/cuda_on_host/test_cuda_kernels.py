"""The CUDA kernels of csrc/cuda on the host, checked against float64 and plain Python.

A fiber runs for every GPU thread (simt.h).
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import cuda_on_host
import oracle
from arrays import SCALARS, at_end_of_page, decode, encode, random_mask
from check_completion import certify, greedy, lattice, two_stages

OPS = torch.ops.clasp_simt
DESIGN = "CLASP_KERNELS_CUDA_DESIGN"
DESIGNS = ("matrix", "steps")
# Orders in which threads and blocks run. Results must not depend on them.
ORDERS = ("forwards", "backwards", "shuffled")
# The two 16-bit types differ in little but their conversion.
ORDERS_OF_SCALARS = [
    *(("float32", order) for order in ORDERS),
    *zip(("bfloat16", "float16", "bfloat16"), ORDERS, strict=True),
]
SALIENCES = (0.0, -0.0, 1.5, -2.0, math.inf, -math.inf, math.nan)
# Half of these count as 0, and the last two are equal.
WEIGHTS = (1.0, 2.0, 3.0, 0.0, -0.0, -1.0, math.nan, 1e-20, 2.0**-50, math.inf, 3e38)

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.fixture(scope="module", autouse=True)
def extension() -> None:
    cuda_on_host.load()


@pytest.fixture(params=DESIGNS)
def design(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(DESIGN, request.param)
    return request.param


@pytest.fixture
def order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SIMT_ORDER", request.param)
    return request.param


each_order = pytest.mark.parametrize("order", ORDERS, indirect=True)
each_scalar_in_an_order = pytest.mark.parametrize(
    ("scalar", "order"), ORDERS_OF_SCALARS, indirect=["order"]
)


class Images(NamedTuple):
    """Features [B, N, D] that end where readable memory ends, and the mask of valid tokens."""

    features: Tensor
    values: np.ndarray
    valid: np.ndarray

    @staticmethod
    def of(values: np.ndarray, scalar: str, valid: np.ndarray | None = None) -> Images:
        encoded = at_end_of_page(encode(values, scalar))
        features = torch.from_numpy(encoded.view(np.int16) if scalar != "float32" else encoded)
        decoded = np.array([decode(image, scalar) for image in encoded])
        valid = np.ones(values.shape[:2], bool) if valid is None else valid
        return Images(features.view(getattr(torch, scalar)), decoded, valid)

    def mask(self, image: int) -> list[bool]:
        return self.valid[image].tolist()

    @property
    def mask_tensor(self) -> Tensor:
        # Any byte other than 0 is true.
        return torch.from_numpy(self.valid.astype(np.uint8) * 3).view(torch.bool)


def unaligned(features: Tensor) -> list[Tensor]:
    """Returns copies of the features in layouts that forbid 16-byte reads.

    Unaligned are: every token; all tokens but the first; all images but the first. The last copy
    has strided features.
    """
    batch, tokens, dim = features.shape
    rows = [features.new_zeros(batch, tokens, dim + 8)[..., 1 : dim + 1]]
    rows.append(features.new_zeros(batch, tokens, dim + 1)[..., :dim])
    rows.append(features.new_zeros(batch, tokens * dim + 1)[:, :-1].unflatten(1, (tokens, dim)))
    rows.append(features.new_zeros(batch, tokens, 2 * dim)[..., ::2])
    return [row.copy_(features) for row in rows]


def complete(
    images: Images, selected: list[list[int]], count: int, weights: Tensor | None = None
) -> list[list[int]]:
    given = torch.tensor(selected, dtype=torch.int64).reshape(len(selected), -1)
    return OPS.complete_tokens(images.features, given, count, images.mask_tensor, weights).tolist()


def assert_completes(
    images: Images, selected: list[list[int]], count: int, weights: Tensor | None = None
) -> None:
    picks = complete(images, selected, count, weights)
    for image, values in enumerate(images.values):
        known = [n for n in selected[image] if 0 <= n < len(values)]
        expected = greedy_picks(images, image, known, count, weights)
        assert picks[image] == expected + [-1] * (count - len(expected)), image


def greedy_picks(
    images: Images, image: int, selected: list[int], count: int, weights: Tensor | None
) -> list[int]:
    values, mask = images.values[image], images.mask(image)
    if weights is None:
        return greedy(values, selected, count, mask)
    one = slice(image, image + 1)
    picks = oracle.complete_tokens(
        *(torch.from_numpy(values)[None], torch.tensor([selected]), count),
        *(weights[one], torch.tensor([mask])),
    )
    return [n for n in picks[0].tolist() if n >= 0]


def assert_selects(
    images: Images,
    salience: np.ndarray,
    width: int,
    budgets: list[int],
    shares: list[int],
    most_pivots: int,
    weights: Tensor | None = None,
) -> None:
    """``width`` and ``most_pivots`` are the limits of the budgets and pivot counts per image."""
    indices, is_pivot, counts = OPS.select_tokens(
        *(images.features, torch.from_numpy(salience.astype(np.float32)), width),
        *(torch.tensor(budgets), most_pivots, torch.tensor(shares), images.mask_tensor, weights),
    )
    for i, values in enumerate(images.values):
        budget, share = min(max(budgets[i], 0), width), min(shares[i], max(most_pivots, 1))
        kept, pivots = two_stages(values, salience[i].tolist(), budget, share, images.mask(i))
        if weights is not None:
            picks = greedy_picks(images, i, pivots, budget - len(pivots), weights)
            kept = sorted([*pivots, *picks])
        padding = width - len(kept)
        assert indices[i].tolist() == kept + [-1] * padding, i
        assert is_pivot[i].tolist() == [n in pivots for n in kept] + [False] * padding, i
        assert counts[i] == len(kept), i


def weights_of(rng: np.random.Generator, images: Images) -> Tensor:
    """Returns weights [B, N] that end where readable memory ends.

    In the first image, they are equal but for the tokens that are not valid.
    """
    weights = rng.choice(WEIGHTS, images.valid.shape).astype(np.float32)
    weights[0, images.valid[0]] = rng.choice(WEIGHTS)
    return torch.from_numpy(at_end_of_page(weights))


def in_other_layouts(weights: Tensor) -> list[Tensor]:
    """Returns copies of the weights, transposed, and as every second column of a wider tensor."""
    batch, tokens = weights.shape
    views = [weights.new_empty(tokens, batch).T, weights.new_zeros(batch, 2 * tokens + 1)[:, 1::2]]
    return [view.copy_(weights) for view in views]


def lattices(rng: np.random.Generator, batch: int, num_tokens: int, dim: int) -> np.ndarray:
    values = [lattice(rng, num_tokens, dim) for _ in range(batch)]
    return np.array(values).reshape(batch, num_tokens, dim)


def assert_both_stages(scalar: str, num_tokens: int, dim: int) -> None:
    rng = np.random.default_rng(1)
    budgets, shares = [12, 0, num_tokens + 10, 9, 20], [5, 3, 2, 99, 15]
    batch, width = len(budgets), 20
    values = lattices(rng, batch, num_tokens, dim)
    images = Images.of(values, scalar, rng.random((batch, num_tokens)) < 0.8)
    images.valid[4, : num_tokens - 6] = False  # fewer valid tokens than pivots
    salience = rng.choice(SALIENCES, (batch, num_tokens))
    assert_selects(images, salience, width, budgets, shares, width)


@each_scalar_in_an_order
def test_both_stages(design: str, scalar: str, order: str) -> None:
    for num_tokens, dim in ((30, 40), (27, 13)):
        assert_both_stages(scalar, num_tokens, dim)


@each_order
def test_more_tokens_than_a_thread_writes(design: str, order: str) -> None:
    """Each thread writes up to 32 kept tokens, one word of bits."""
    assert_both_stages("float32", 75, 24)


@each_order
@pytest.mark.parametrize("num_tokens", [129, 300])
def test_more_tokens_than_a_block_has_threads(num_tokens: int, order: str, monkeypatch) -> None:
    """Threads of the scan hold several tokens, and ranks are counted in several rounds."""
    monkeypatch.setenv(DESIGN, "matrix")
    rng = np.random.default_rng(11)
    images = Images.of(
        lattices(rng, 1, num_tokens, 8), "bfloat16", rng.random((1, num_tokens)) < 0.9
    )
    assert_completes(images, [rng.permutation(num_tokens)[:7].tolist()], num_tokens // 2)
    salience = rng.choice(SALIENCES, (1, num_tokens))
    assert_selects(images, salience, num_tokens // 2, [num_tokens // 2], [9], 9)


@each_scalar_in_an_order
def test_completion(design: str, scalar: str, order: str) -> None:
    rng = np.random.default_rng(2)
    images = Images.of(lattices(rng, 2, 31, 24), scalar, rng.random((2, 31)) < 0.9)
    # Indices that are not tokens are skipped, even if they do not fit an int32.
    for selected in ([[], []], [[-1, 7, 30, 2**40, 7], [31, 0, -(2**63), 5, 2]]):
        for count in (9, 34):
            assert_completes(images, selected, count)


@each_order
def test_sizes_and_counts_of_all_kinds(design: str, order: str) -> None:
    """Images of 0 to 69 tokens, few or many of them valid.

    From no to all tokens are selected before, and more picks are requested than there are tokens.
    """
    rng = np.random.default_rng(12)
    for trial in range(12):
        num_tokens, dim = int(rng.integers(0, 70)), int(rng.integers(4, 24))
        masks = np.array([random_mask(rng, num_tokens) for _ in range(2)]).reshape(2, num_tokens)
        images = Images.of(lattices(rng, 2, num_tokens, dim), SCALARS[trial % 3], masks)
        num_selected = int(rng.integers(0, min(num_tokens, 20) + 1))
        selected = [[-1, *rng.permutation(num_tokens)[:num_selected].tolist(), -1] for _ in "ab"]
        assert_completes(images, selected, int(rng.integers(0, num_tokens + 3)))

        salience = rng.choice(SALIENCES, (2, num_tokens))
        budgets = rng.integers(0, num_tokens + 3, 2).tolist()
        width = max(budgets) + int(rng.integers(0, 3))
        assert_selects(images, salience, width, budgets, rng.integers(-1, 12, 2).tolist(), 12)


@pytest.mark.parametrize("scalar", SCALARS)
def test_the_layout_of_features_does_not_change_a_bit(design: str, scalar: str) -> None:
    # With 32 tokens, images stay aligned in layouts where tokens are not.
    images = Images.of(np.random.default_rng(3).standard_normal((2, 32, 56)), scalar)
    expected = complete(images, [[3], [7]], 25)
    for features in unaligned(images.features):
        assert complete(images._replace(features=features), [[3], [7]], 25) == expected


@pytest.mark.parametrize("scalar", SCALARS)
def test_picks_are_certified(design: str, scalar: str) -> None:
    rng = np.random.default_rng(4)
    for dim in (1, 3, 200):
        images = Images.of(rng.standard_normal((1, 30, dim)), scalar, rng.random((1, 30)) < 0.9)
        (picks,) = complete(images, [[4, 9]], 20)
        certify(images.values[0], [4, 9], [n for n in picks if n >= 0], 20, images.mask(0))


@pytest.mark.parametrize("scalar", SCALARS)
def test_what_is_no_number(design: str, scalar: str) -> None:
    values = lattice(np.random.default_rng(7), 40, 12)[None]
    values[0, 4, 3], values[0, 9, 0], values[0, 20, 11] = math.nan, math.inf, -math.inf
    values[0, 33] = math.nan
    images = Images.of(values, scalar)
    for selected in ([[]], [[0, 20]], [[4]], [[33]], [[8, 30]]):
        assert_completes(images, selected, 40)


@each_scalar_in_an_order
def test_similarities_of_the_matrix(scalar: str, order: str) -> None:
    """Similarities are close to float64, for float32 features too.

    The second half of the tokens equals the first half in reverse order. Its similarities are equal
    bit for bit, although it is the other operand of the products with the first half.
    """
    half = np.random.default_rng(8).standard_normal((1, 64, 248))  # several slices of shared memory
    images = Images.of(np.concatenate([half, half[:, ::-1]], axis=1), scalar)
    unit = images.values[0] / np.linalg.norm(images.values[0], axis=1, keepdims=True)
    for is_aligned in (True, False):
        found = torch.full((128, 128), math.nan)
        OPS.similarities(images.features, found, is_aligned)
        np.testing.assert_allclose(found.numpy(), unit @ unit.T, atol=8e-7, rtol=0)
        assert torch.equal(found, found.T)
        assert torch.equal(found[:64, :64], found[:64, 64:].flip(1))


@pytest.mark.parametrize("scalar", SCALARS)
def test_tokens_that_are_equal_tie(design: str, scalar: str) -> None:
    """Equal tokens tie on either side of a product.

    Token 0 and its copy, token 69, are compared with tokens between them and picked by index.
    """
    for seed in range(6):
        values = np.random.default_rng(seed).standard_normal((1, 70, 250))
        values[0, 69] = values[0, 0]
        images = Images.of(values, scalar, np.zeros((1, 70), bool))
        images.valid[0, [0, 69]] = True
        assert complete(images, [[34, 7, 66]], 2) == [[0, 69]]


@each_scalar_in_an_order
def test_completion_with_weights(design: str, scalar: str, order: str) -> None:
    """From no to many tokens are selected before, which have weights too."""
    rng = np.random.default_rng(21)
    for num_tokens, count in ((1, 2), (31, 9), (67, 70)):
        values = lattices(rng, 3, num_tokens, 24)
        images = Images.of(values, scalar, rng.random((3, num_tokens)) < 0.9)
        weights = weights_of(rng, images)
        for selected in ([[]] * 3, rng.permuted([range(num_tokens)] * 3, axis=1)[:, :7].tolist()):
            assert_completes(images, selected, count, weights)


@each_scalar_in_an_order
def test_both_stages_with_weights(design: str, scalar: str, order: str) -> None:
    rng = np.random.default_rng(22)
    budgets, shares = [12, 20, 0, 50, 9], [5, 1, 2, 2, 99]
    images = Images.of(lattices(rng, 5, 45, 24), scalar, rng.random((5, 45)) < 0.8)
    images.valid[3] = False
    salience = rng.choice(SALIENCES, (5, 45))
    assert_selects(images, salience, 20, budgets, shares, 20, weights_of(rng, images))


@each_order
@pytest.mark.parametrize("num_tokens", [129, 300])
def test_weights_of_more_tokens_than_a_block_has_threads(
    design: str, num_tokens: int, order: str
) -> None:
    rng = np.random.default_rng(23)
    values = lattices(rng, 2, num_tokens, 8)
    images = Images.of(values, "bfloat16", rng.random((2, num_tokens)) < 0.9)
    weights = weights_of(rng, images)
    assert_completes(images, [[0, 5]] * 2, 40, weights)
    # In one image, the weight of a single token is smaller or larger than all others.
    for different in (0, num_tokens - 1):
        images.valid[:, different] = True
        for value in (0.0, 5.0):
            weights[:] = 2.0
            weights[1, different] = value
            assert_completes(images, [[5], [-1]], 5, weights)


def test_weights_of_the_larger_scan_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DESIGN, "matrix")
    rng = np.random.default_rng(24)
    images = Images.of(lattices(rng, 1, 1025, 8), "float32", rng.random((1, 1025)) < 0.9)
    weights = torch.from_numpy(rng.choice(WEIGHTS, (1, 1025)).astype(np.float32))
    assert_completes(images, [[3]], 4, weights)


@pytest.mark.parametrize("scalar", SCALARS)
def test_equal_weights_change_no_bit(design: str, scalar: str) -> None:
    rng = np.random.default_rng(25)
    images = Images.of(rng.standard_normal((2, 70, 37)), scalar, rng.random((2, 70)) < 0.8)
    selected = [[3, 8], [-1, -1]]
    expected = complete(images, selected, 60)
    for value in WEIGHTS:
        weights = torch.full((2, 70), value)
        weights[1] = 7.0
        weights[~images.mask_tensor] = 0.5
        assert complete(images, selected, 60, weights) == expected, value
    # One number for all tokens, whatever their number.
    one = torch.tensor(3.0).expand(2, 70)
    assert complete(images, selected, 60, one) == expected
    weights[0, images.valid[0].nonzero()[0][-1]] = 0.0
    assert complete(images, selected, 60, weights) != expected


@pytest.mark.parametrize("scalar", SCALARS)
def test_weighted_picks_are_certified(design: str, scalar: str) -> None:
    rng = np.random.default_rng(26)
    for dim in (1, 3, 200):
        images = Images.of(rng.standard_normal((2, 45, dim)), scalar, rng.random((2, 45)) < 0.9)
        weights = torch.from_numpy(rng.random((2, 45)).astype(np.float32))
        weights[1, ::3] = torch.tensor(math.nan)
        for selected in ([[4, 9]] * 2, [[-1]] * 2):
            picks = complete(images, selected, 40, weights)
            oracle.certify_completion(
                *(images.features, torch.tensor(selected), torch.tensor(picks)),
                *(weights, torch.from_numpy(images.valid)),
            )


def test_weights_in_any_layout_and_batch(design: str) -> None:
    rng = np.random.default_rng(27)
    images = Images.of(rng.standard_normal((4, 50, 16)), "float16", rng.random((4, 50)) < 0.9)
    weights = weights_of(rng, images)
    expected = complete(images, [[1]] * 4, 45, weights)
    for view in in_other_layouts(weights):
        assert complete(images, [[1]] * 4, 45, view) == expected
    for image in range(4):
        one = slice(image, image + 1)
        alone = Images(images.features[one], images.values[one], images.valid[one])
        assert complete(alone, [[1]], 45, weights[one]) == expected[image : image + 1]


@pytest.mark.parametrize("scalar", SCALARS)
def test_what_is_no_number_with_weights(design: str, scalar: str) -> None:
    """It comes after every token with a weight, by index, and before those of weight 0."""
    rng = np.random.default_rng(28)
    values = lattice(rng, 40, 12)[None]
    values[0, 4, 3], values[0, 9, 0], values[0, 20, 11] = math.nan, math.inf, -math.inf
    images = Images.of(values, scalar)
    weights = torch.from_numpy(rng.choice(WEIGHTS, (1, 40)).astype(np.float32))
    weights[0, [4, 9, 20]] = torch.tensor([2.0**-50, 3.0, 1.0])
    for selected in ([[]], [[0, 20]], [[4]], [[8, 30]]):
        assert_completes(images, selected, 40, weights)
