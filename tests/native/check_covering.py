"""Facility location, checked against float64 and plain Python."""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np
from arrays import SCALARS, at_end_of_page, decode, encode, random_mask
from check_completion import lattice, random_call, random_weights, usable

# How far a similarity may be off.
TOLERANCE = 1e-5
# A workspace of the fewest rows that the kernel keeps, for images that do not fit.
TINY = 1


def similarities(features: np.ndarray) -> np.ndarray:
    """Cosines, or 0 where they are negative, not finite or of zero vectors."""
    with np.errstate(all="ignore"):
        norms = np.sqrt((features * features).sum(1))
        cosine = features @ features.T / np.outer(norms, norms)
    return np.where(np.isfinite(cosine) & (cosine > 0), cosine, 0.0)


class Cover:
    """The definition in float64."""

    def __init__(
        self,
        features: np.ndarray,
        selected: list[int],
        valid: list[bool],
        weights: list[float] | None,
        preference: list[float] | None,
    ) -> None:
        self.similarity = similarities(features)
        ones = [1.0] * len(features)
        self.weights = np.where(valid, usable(weights, valid) or ones, 0.0)
        self.preference = np.array(usable(preference, valid) or ones)
        self.best = self.similarity[selected].max(0, initial=0.0)
        self.free = np.array(valid, bool)
        self.free[selected] = False

    def gains(self) -> np.ndarray:
        added = np.maximum(self.similarity - self.best, 0) @ self.weights
        return np.where(self.free, self.preference * added, -1.0)

    def pick(self, token: int) -> None:
        self.free[token] = False
        self.best = np.maximum(self.best, self.similarity[token])


def greedy(*given: object, num_tokens: int) -> list[int]:
    cover = Cover(*given)
    picks: list[int] = []
    while cover.free.any() and len(picks) < num_tokens:
        picks.append(int(cover.gains().argmax()))  # the first of equal ones
        cover.pick(picks[-1])
    return picks


def certify(picks: list[int], *given: object, num_tokens: int) -> None:
    """Checks that every pick gained as much as the best one, given earlier picks."""
    cover = Cover(*given)
    assert len(picks) == min(num_tokens, cover.free.sum())
    tolerance = TOLERANCE * max(cover.preference.max(initial=0), 1e-20) * cover.weights.sum()
    for step, pick in enumerate(picks):
        assert cover.free[pick], f"pick {step} is {pick}, which was not free"
        gains = cover.gains()
        assert gains[pick] >= gains.max() - tolerance, f"pick {step} is {pick}"
        cover.pick(pick)


def check_exact_gains_give_the_exact_picks(core: ModuleType, isa: str) -> None:
    rng = np.random.default_rng(1)
    workers = [core.Coverer(isa), core.Coverer(isa, TINY)]
    for trial in range(120):
        num_tokens, dim = int(rng.integers(1, 60)), int(rng.integers(4, 20))
        features = lattice(rng, num_tokens, dim)
        scalar = SCALARS[trial % 3]
        selected, count, valid = random_call(rng, num_tokens, 9)
        weights, preference = (random_weights(rng, num_tokens) for _ in range(2))
        encoded = at_end_of_page(encode(features, scalar))
        expected = greedy(features, selected, valid, weights, preference, num_tokens=count)
        for worker in workers:
            picks = worker.cover(encoded, scalar, selected, count, valid, 1, weights, preference)
            assert picks == expected, trial


def check_covers_are_certified(core: ModuleType, isa: str) -> None:
    rng = np.random.default_rng(2)
    for dim in (1, 3, 31, 64, 129, 300, 1024):
        num_tokens = int(rng.integers(60, 260))
        centres = rng.standard_normal((8, dim))
        values = centres[rng.integers(0, 8, num_tokens)]
        values = values + rng.standard_normal((num_tokens, dim))
        for scalar in SCALARS:
            encoded = at_end_of_page(encode(values, scalar))
            decoded = decode(encoded, scalar)
            selected = rng.permutation(num_tokens)[: rng.integers(0, 18)].tolist()
            valid = random_mask(rng, num_tokens)
            weights = rng.random(num_tokens).astype(np.float32).tolist()
            given = (selected, num_tokens // 3, valid)
            plain = core.Coverer(isa).cover(encoded, scalar, *given)
            certify(plain, decoded, selected, valid, None, None, num_tokens=num_tokens // 3)
            picks = core.Coverer(isa).cover(encoded, scalar, *given, 1, weights, weights[::-1])
            certify(
                picks, decoded, selected, valid, weights, weights[::-1], num_tokens=num_tokens // 3
            )


def check_neither_threads_nor_the_workspace_matter(core: ModuleType, isa: str) -> None:
    rng = np.random.default_rng(3)
    features = rng.standard_normal((333, 70)).astype(np.float32)
    features[rng.integers(0, 333, 40)] = features[5]
    weights = rng.random(333).astype(np.float32).tolist()
    selected, everything = list(range(30)), [True] * 333
    for scalar in SCALARS:
        encoded = encode(features, scalar)
        given = (encoded, scalar, selected, 99, everything)
        whole = core.Coverer(isa).cover(*given, 1, weights)
        for pieces in (2, 7, 400):
            for workspace in (10**9, 4 * 333 * 40, TINY):
                worker = core.Coverer(isa, workspace)
                # Reused buffers must not affect the next image.
                worker.cover(encoded[5:50], scalar, [1], 9, [True] * 45, pieces)
                assert worker.cover(*given, pieces, weights) == whole, (scalar, pieces, workspace)


def check_covering_takes_any_strides(core: ModuleType, isa: str) -> None:
    rng = np.random.default_rng(4)
    features = lattice(rng, 40, 16)
    expected = greedy(features, [7, 2], [True] * 40, None, None, num_tokens=20)
    for scalar in SCALARS:
        encoded = encode(features, scalar)
        wide = np.full((80, 64), 7, encoded.dtype)
        for view in (wide[::2, :16], wide[:40, 3:51:3], np.full((16, 40), 7, encoded.dtype).T):
            view[...] = encoded
            picks = core.Coverer(isa).cover(view, scalar, [7, 2], 20, [True] * 40)
            assert picks == expected, scalar


def check_what_is_no_number_represents_nothing(core: ModuleType, isa: str) -> None:
    rng = np.random.default_rng(5)
    worker = core.Coverer(isa)
    for scalar in SCALARS:
        features = lattice(rng, 60, 12)
        features[4, 3], features[9, 0], features[20, 11] = math.nan, math.inf, -math.inf
        encoded = encode(features, scalar)
        for selected in ([], [0], [4, 30]):
            picks = worker.cover(encoded, scalar, selected, 60, [True] * 60)
            expected = greedy(features, selected, [True] * 60, None, None, num_tokens=60)
            assert picks == expected, (scalar, selected)
    # Near the largest float32, so the squares overflow.
    huge = (3e38 * rng.choice([-1.0, 1.0], (9, 5))).astype(np.float32)
    assert worker.cover(huge, "float32", [2], 9, [True] * 9) == [0, 1, *range(3, 9)]


def check_empty_and_tiny_covers(core: ModuleType, isa: str) -> None:
    for worker in (core.Coverer(isa), core.Coverer(isa, TINY)):
        one = np.ones((1, 3), np.float32)
        assert worker.cover(one[:0], "float32", [], 3, []) == []
        assert worker.cover(one, "float32", [], 3, [True]) == [0]
        assert worker.cover(one, "float32", [0], 3, [True]) == []
        assert worker.cover(one, "float32", [], 3, [False]) == []
        assert worker.cover(one, "float32", [], 0, [True]) == []
        nothing = np.zeros((5, 0), np.float32)
        assert worker.cover(nothing, "float32", [2], 9, [True] * 5) == [0, 1, 3, 4]
        many = np.ones((20, 3), np.float32)
        assert worker.cover(many, "float32", list(range(20)), 3, [True] * 20) == []
        # A repeated index is refused in Python; a direct call has to stay in bounds too.
        assert worker.cover(many, "float32", [3, 3, 5], 2, [True] * 20) == [0, 1]
