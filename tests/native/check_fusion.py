"""Layer fusion, checked against float64 and exact sums."""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np
from arrays import SCALARS, at_end_of_page, decode, encode, nearest, unreadable

# Half a unit in the last place.
ROUNDING = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}


def fuse(
    core: ModuleType,
    isa: str,
    layers: list[np.ndarray],
    scalar: str,
    weights: list[float],
    normalize: str = "none",
    bounds: list[int] | None = None,
) -> np.ndarray:
    bounds = bounds or [0, len(layers[0])]
    out = at_end_of_page(np.full((bounds[-1] - bounds[0], layers[0].shape[1]), 7, layers[0].dtype))
    core.fuse(isa, layers, scalar, weights, normalize, bounds, out)
    return out


def expected(
    layers: list[np.ndarray], scalar: str, weights: list[float], normalize: str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sum in float64, and the sum of magnitudes that errors are relative to."""
    total = magnitude = np.zeros(layers[0].shape)
    for layer, weight in zip(layers, weights, strict=True):
        term = decode(layer, scalar)
        if normalize == "l2":
            norm = np.sqrt(np.square(term).sum(1, keepdims=True))
            term = term / np.where(norm > 0, norm, 1)
        if normalize == "rms":
            term = term / np.sqrt(np.square(term).mean(1, keepdims=True) + 1e-6)
        total = total + np.float64(np.float32(weight)) * term
        magnitude = magnitude + abs(np.float64(np.float32(weight)) * term)
    return total, magnitude


def random_layers(
    rng: np.random.Generator, count: int, num_tokens: int, dim: int, scalar: str
) -> list[np.ndarray]:
    shape = (num_tokens, dim)
    return [at_end_of_page(encode(rng.standard_normal(shape), scalar)) for _ in range(count)]


def check_fusion_is_accurate(core: ModuleType, isa: str) -> None:
    rng = np.random.default_rng(20)
    for trial, dim in enumerate([*range(1, 70), 96, 127, 128, 129, 255, 257, 500]):
        scalar = SCALARS[trial % 3]
        count = int(rng.integers(1, 28))
        layers = random_layers(rng, count, 3, dim, scalar)
        weights = rng.standard_normal(count).tolist()
        for normalize in ("none", "l2", "rms"):
            fused = decode(fuse(core, isa, layers, scalar, weights, normalize), scalar)
            exact, magnitude = expected(layers, scalar, weights, normalize)
            allowed = 1e-6 * magnitude + 1.01 * ROUNDING[scalar] * abs(exact)
            allowed += 2.0**-25 if scalar == "float16" else 0  # the spacing of subnormals
            assert (abs(fused - exact) <= allowed).all(), (dim, scalar, normalize)


def check_exact_sums_are_rounded_to_nearest(core: ModuleType, isa: str) -> None:
    """Sums of integers give the same bits in any order; many lie midway between two values."""
    rng = np.random.default_rng(21)
    for dim in (1, 7, 33, 64, 130, 300):
        for count in (1, 2, 8, 9, 16, 17, 24):
            for scalar in SCALARS:
                values = [rng.integers(-128, 129, (5, dim)) for _ in range(count)]
                layers = [at_end_of_page(encode(value, scalar)) for value in values]
                weights = rng.integers(-9, 10, count)
                total = sum(w * v for w, v in zip(weights, values, strict=True))
                fused = fuse(core, isa, layers, scalar, weights.tolist())
                wanted = nearest(np.asarray(total, np.float32), scalar)
                np.testing.assert_array_equal(fused, wanted, str((dim, count, scalar)))


def check_neither_threads_nor_strides_nor_blocks_of_tokens_matter(
    core: ModuleType, isa: str
) -> None:
    rng = np.random.default_rng(22)
    for num_tokens, dim, count in ((150, 1000, 9), (40, 131, 4), (300, 700, 17)):
        for scalar, normalize in zip(SCALARS, ("rms", "none", "l2"), strict=True):
            layers = random_layers(rng, count, num_tokens, dim, scalar)
            weights = rng.standard_normal(count).tolist()
            whole = fuse(core, isa, layers, scalar, weights, normalize)
            one_by_one = list(range(num_tokens + 1))
            for bounds in ([0, 1, 90, num_tokens], one_by_one):
                bounds = sorted({min(bound, num_tokens) for bound in bounds})
                pieces = fuse(core, isa, layers, scalar, weights, normalize, bounds)
                np.testing.assert_array_equal(pieces, whole)
            part = fuse(core, isa, layers, scalar, weights, normalize, [13, 31])
            np.testing.assert_array_equal(part, whole[13:31])

            wide = np.full((2 * num_tokens + 1, 3 * dim + 1), 7, layers[0].dtype)
            views = [
                wide[1::2, 1 : dim + 1],
                wide[:num_tokens, 1::3],
                wide[num_tokens - 1 :: -1, dim - 1 :: -1][:num_tokens],
                np.full((dim, num_tokens), 7, wide.dtype).T,
            ]
            for view in views:
                strided = list(layers)
                view[...] = layers[-1]
                strided[-1] = view
                fused = fuse(core, isa, strided, scalar, weights, normalize)
                np.testing.assert_array_equal(fused, whole)
            same = np.broadcast_to(layers[0][:1], layers[0].shape)
            fused = fuse(core, isa, [same], scalar, weights[:1], normalize)
            assert (fused == fused[:1]).all()


def check_layers_of_weight_zero_are_not_read(core: ModuleType, isa: str) -> None:
    rng = np.random.default_rng(23)
    for scalar in SCALARS:
        for normalize in ("none", "l2", "rms"):
            layers = random_layers(rng, 12, 4, 50, scalar)
            weights = rng.standard_normal(12).tolist()
            for layer in (0, 3, 11):
                weights[layer] = -0.0 if layer == 3 else 0.0
            used = [i for i in range(12) if weights[i]]
            alone = [layers[i] for i in used], scalar, [weights[i] for i in used], normalize
            for layer in (0, 3, 11):
                layers[layer] = unreadable(layers[layer])
            fused = fuse(core, isa, layers, scalar, weights, normalize)
            np.testing.assert_array_equal(fused, fuse(core, isa, *alone))
            assert not fuse(core, isa, layers, scalar, [0.0] * 12, normalize).any()


def check_norms_at_the_ends_of_the_range(core: ModuleType, isa: str) -> None:
    for normalize in ("l2", "rms"):
        huge = np.full((1, 9), 1e20, np.float32)
        assert not fuse(core, isa, [huge], "float32", [1.0], normalize).any()
        zero = np.zeros((1, 9), np.float32)
        assert not fuse(core, isa, [zero], "float32", [1.0], normalize).any()
    tiny = np.full((1, 9), 1e-25, np.float32)
    np.testing.assert_array_equal(fuse(core, isa, [tiny], "float32", [1.0], "l2"), tiny)
    # Computing weight / norm first would overflow or underflow.
    for size, weight in ((1e-18, 1e30), (1e18, 1e-30)):
        layer = np.full((1, 4), size, np.float32)
        fused = fuse(core, isa, [layer], "float32", [weight], "l2")
        np.testing.assert_allclose(fused, weight / 2, rtol=1e-6)


def check_what_is_not_finite_stays_in_its_column(core: ModuleType, isa: str) -> None:
    for scalar in SCALARS:
        values = np.ones((2, 37))
        values[0, 5], values[0, 36], values[1, 11] = math.nan, math.inf, -math.inf
        layers = [encode(values, scalar), encode(np.ones((2, 37)), scalar)]
        fused = decode(fuse(core, isa, layers, scalar, [2.0, 1.0]), scalar)
        np.testing.assert_array_equal(fused, np.where(np.isfinite(values), 3, values))
        nan = decode(fuse(core, isa, layers, scalar, [1.0, math.nan]), scalar)
        assert np.isnan(nan).all()
        # The norm is infinite: finite elements become 0, and inf / inf is NaN.
        fused = decode(fuse(core, isa, layers[:1], scalar, [1.0], "l2"), scalar)
        assert np.isnan(fused[1, 11]) and not np.delete(fused[1], 11).any()
