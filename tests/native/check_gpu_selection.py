"""The GPU's selection, its blocks of threads emulated, against float64 and plain Python."""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np
from arrays import SCALARS, at_end_of_page, decode, encode, random_mask
from check_completion import certify, greedy, lattice, two_stages

PATHS = ("matrix", "steps", "cluster5", "cluster8")


def check_gpu_design_follows_the_size_of_an_image(core: ModuleType) -> None:
    for num_tokens, design in ((0, "matrix"), (1, "matrix"), (8192, "matrix"), (8193, "steps")):
        for has_cluster in (False, True):
            assert core.gpu_design(num_tokens, None, has_cluster) == design
            assert core.gpu_design(num_tokens, "auto", has_cluster) == design
            assert core.gpu_design(num_tokens, "steps", has_cluster) == "steps"
    assert core.gpu_design(8192, "matrix", False) == "matrix"
    assert core.gpu_design(1, "cluster", True) == "cluster"
    refused = ((8193, "matrix", True), (1, "cluster", False), (1, "tiles", True), (1, "", True))
    for arguments in refused:
        try:
            core.gpu_design(*arguments)
        except ValueError as error:
            assert "CLASP_KERNELS_CUDA_DESIGN" in str(error), error
        else:
            raise AssertionError(arguments)


def check_gpu_clusters_hold_an_image(core: ModuleType) -> None:
    """Element size, N and D; the blocks of the smallest cluster that holds it, 0 if none does."""
    expected = {
        (2, 1, 1): 1,
        (2, 80, 1024): 1,
        (2, 81, 1024): 2,
        (2, 576, 1024): 8,
        (2, 577, 1024): 8,
        (2, 729, 1152): 16,
        (2, 768, 1536): 16,
        (2, 769, 1025): 0,
        (2, 1, 1537): 0,
        (2, 1280, 1024): 16,
        (2, 1281, 1): 0,
        (4, 40, 1024): 1,
        (4, 576, 1024): 16,
        (4, 640, 1024): 16,
        (4, 641, 1024): 0,
        (4, 1, 1025): 0,
    }
    for (element, num_tokens, dim), blocks in expected.items():
        assert core.gpu_smallest_cluster(element, num_tokens, dim) == blocks, (num_tokens, dim)


def check_gpu_clusters_grow_where_there_is_room(core: ModuleType) -> None:
    def size(smallest: int, num_tokens: int, batch: int, processors: int, largest: int = 16) -> int:
        return core.gpu_cluster_size(smallest, num_tokens, batch, processors, largest)

    assert size(8, 576, 1, 132) == size(8, 576, 64, 132) == 8
    assert size(16, 1000, 1, 132) == 16
    assert size(1, 80, 1, 132) == 8
    assert size(1, 80, 16, 132) == 8
    assert size(1, 80, 17, 132) == 4
    assert size(1, 80, 132, 132) == 1
    # Blocks with fewer tokens than a tile have would not be done sooner.
    assert size(1, 16, 1, 132) == 1
    assert size(1, 17, 1, 132) == 2
    # Nor is every size launched by every slice of a GPU.
    assert size(1, 80, 1, 132, 4) == 4
    assert size(2, 80, 1, 132, 2) == 2


def check_gpu_blocks_of_a_cluster_share_its_tokens(core: ModuleType) -> None:
    """First and count: every token once, and no more to a block than its registers may hold."""
    for num_blocks in (1, 2, 4, 8, 16):
        for num_tokens in (*range(1, 50), 80 * num_blocks, 80 * num_blocks - 1):
            shares = core.gpu_token_shares(num_tokens, num_blocks)
            assert len(shares) == num_blocks
            assert [n for first, count in shares for n in range(first, first + count)] == list(
                range(num_tokens)
            )
            assert all(0 <= first <= num_tokens for first, _ in shares)
            assert max(count for _, count in shares) == math.ceil(num_tokens / num_blocks)


def check_gpu_waves_stay_within_the_workspace(core: ModuleType) -> None:
    limit = 256 << 20
    for num_tokens in (1, 31, 576, 577, 2880, 8192):
        size = core.gpu_matrix_bytes(num_tokens)
        assert size >= 4 * num_tokens**2 and size % (128 * num_tokens) == 0
        for num_images in (1, 64, 100_000):
            wave = core.gpu_images_per_wave(num_images, size)
            assert 1 <= wave <= num_images and wave * size <= limit
            assert wave == num_images or (wave + 1) * size > limit
    assert core.gpu_images_per_wave(3, 0) == 3
    assert core.gpu_images_per_wave(3, 2 * limit) == 1


def check_every_tile_pair_once(core: ModuleType) -> None:
    for num_blocks in (0, 1, 2, 9, 45, 257):
        pairs = core.tile_pairs(num_blocks)
        assert len(set(pairs)) == len(pairs) == num_blocks * (num_blocks + 1) // 2
        assert all(0 <= row <= column < num_blocks for row, column in pairs)


def check_gpu_similarities_are_symmetric_to_the_bit(core: ModuleType) -> None:
    for num_tokens in (1, 4, 11):
        values = np.random.default_rng(10).standard_normal((num_tokens, 33))
        similarities = np.array(core.gpu_similarities(encode(values, "float32"), "float32"))
        similarities = similarities.reshape(num_tokens, num_tokens)
        unit = values / np.linalg.norm(values, axis=1, keepdims=True)
        np.testing.assert_allclose(similarities, unit @ unit.T, atol=1e-5)
        assert (similarities == similarities.T).all()


def check_gpu_picks_where_similarities_are_exact(core: ModuleType) -> None:
    rng = np.random.default_rng(11)
    for trial in range(120):
        num_tokens, dim = int(rng.integers(0, 70)), int(rng.integers(4, 24))
        features = lattice(rng, num_tokens, dim)
        scalar = SCALARS[trial % 3]
        selected = rng.permutation(num_tokens)[: rng.integers(0, min(num_tokens, 20) + 1)].tolist()
        count, valid = int(rng.integers(0, num_tokens + 3)), random_mask(rng, num_tokens)
        expected = greedy(features, selected, count, valid)
        # What is no token is passed over.
        given = [-1, *selected, -1]
        encoded = at_end_of_page(encode(features, scalar))
        for path in PATHS:
            for backwards in (False, True):
                picks = core.gpu_complete(path, encoded, scalar, given, count, valid, backwards)
                assert picks == expected, (trial, path, backwards)


def check_gpu_picks_are_certified(core: ModuleType) -> None:
    rng = np.random.default_rng(12)
    for dim in (1, 2, 5, 33, 100):
        num_tokens = int(rng.integers(20, 120))
        values = rng.standard_normal((num_tokens, dim))
        for scalar in SCALARS:
            encoded = encode(values, scalar)
            selected = rng.permutation(num_tokens)[: rng.integers(0, 18)].tolist()
            valid = random_mask(rng, num_tokens)
            for path in PATHS:
                count = num_tokens // 3
                picks = core.gpu_complete(path, encoded, scalar, selected, count, valid, False)
                certify(decode(encoded, scalar), selected, picks, count, valid)


def check_gpu_picks_of_what_is_no_number(core: ModuleType) -> None:
    features = lattice(np.random.default_rng(13), 60, 12)
    features[4, 3], features[9, 0], features[20, 11] = math.nan, math.inf, -math.inf
    features[33] = math.nan
    encoded = encode(features, "float32")
    for path in PATHS:
        for selected in ([], [0], [8, 30], [33]):
            picks = core.gpu_complete(path, encoded, "float32", selected, 60, [True] * 60, False)
            assert picks == greedy(features, selected, 60, [True] * 60), (path, selected)


def check_gpu_stages(core: ModuleType) -> None:
    rng = np.random.default_rng(14)
    for trial in range(150):
        num_tokens, dim = int(rng.integers(0, 70)), int(rng.integers(4, 30))
        features = lattice(rng, num_tokens, dim)
        scalar = SCALARS[trial % 3]
        choices = [0.0, -0.0, 1.5, -2.0, math.inf, -math.inf, math.nan]
        salience = rng.choice(choices, num_tokens).tolist()
        valid = random_mask(rng, num_tokens)
        budget, num_pivots = int(rng.integers(0, num_tokens + 3)), int(rng.integers(-1, 12))
        width = budget + int(rng.integers(0, 3))

        kept, pivots = two_stages(features, salience, budget, num_pivots, valid)
        padding = width - len(kept)

        encoded = at_end_of_page(encode(features, scalar))
        for path in PATHS:
            for backwards in (False, True):
                indices, is_pivot, count = core.gpu_select(
                    path, encoded, scalar, salience, width, budget, num_pivots, valid, backwards
                )
                assert indices == kept + [-1] * padding, (trial, path, backwards)
                assert is_pivot == [n in pivots for n in kept] + [False] * padding, trial
                assert count == len(kept), trial


def check_gpu_clusters_pick_several_tokens_a_pass(core: ModuleType) -> None:
    rng = np.random.default_rng(15)
    features = encode(rng.standard_normal((180, 60)), "float32")
    one_by_one = core.gpu_complete("steps", features, "float32", [3], 60, [True] * 180, False)
    picks = core.gpu_complete("cluster8", features, "float32", [3], 60, [True] * 180, False)
    assert picks == one_by_one
    assert 60 / 3 <= core.gpu_cluster_passes(features, 3, 60, 8) < 60 / 1.5
