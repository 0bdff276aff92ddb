"""The GPU's selection, its blocks of threads emulated, against float64 and plain Python."""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np
from arrays import SCALARS, at_end_of_page, decode, encode, random_mask
from check_completion import certify, greedy, lattice, two_stages

PATHS = ("matrix", "steps")


def check_gpu_design_follows_the_size_of_an_image(core: ModuleType) -> None:
    for num_tokens, design in ((0, "matrix"), (1, "matrix"), (8192, "matrix"), (8193, "steps")):
        assert core.gpu_design(num_tokens, None) == design
        assert core.gpu_design(num_tokens, "auto") == design
        assert core.gpu_design(num_tokens, "steps") == "steps"
    assert core.gpu_design(8192, "matrix") == "matrix"
    for arguments in ((8193, "matrix"), (1, "cluster"), (1, "tiles"), (1, "")):
        try:
            core.gpu_design(*arguments)
        except ValueError as error:
            assert "CLASP_KERNELS_CUDA_DESIGN" in str(error), error
        else:
            raise AssertionError(arguments)


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
