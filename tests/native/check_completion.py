"""Completion and two-stage selection, checked against float64 and plain Python."""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np
from arrays import SCALARS, at_end_of_page, decode, encode, random_mask

# The largest allowed distance of a pick from the best one. The arithmetic is always float32.
TOLERANCE = 1e-5


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    if not a.any() or not b.any():
        return 0.0
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return math.inf
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def usable(weights: list[float] | None, valid: list[bool]) -> list[float] | None:
    """Returns the weights within bounds, or None if all those of valid tokens are equal."""
    if weights is None:
        return None
    bounded = [min(w, 2.0**50) if w >= 2.0**-50 else 0.0 for w in weights]
    different = {w for w, is_valid in zip(bounded, valid, strict=True) if is_valid}
    return bounded if len(different) > 1 else None


def order(covered: float, weights: list[float] | None, n: int) -> tuple[float, ...]:
    """Returns what the next pick minimizes."""
    if weights is None:
        return covered, n
    if weights[n] == 0:
        return math.inf, math.inf, n
    return -weights[n] * (1 - max(covered, -1.0)), 0.0, n


def greedy(
    features: np.ndarray,
    selected: list[int],
    num_tokens: int,
    valid: list[bool],
    weights: list[float] | None = None,
) -> list[int]:
    """The definition in float64, which is exact if the similarities are."""
    weights = usable(weights, valid)
    covered = [-math.inf] * len(features)
    free = set(np.flatnonzero(valid)) - set(selected)
    picks: list[int] = []
    for latest in selected:
        covered = [
            max(c, cosine(f, features[latest])) for c, f in zip(covered, features, strict=True)
        ]
    while free and len(picks) < num_tokens:
        pick = min(free, key=lambda n: order(covered[n], weights, n))
        picks.append(int(pick))
        free.remove(pick)
        covered = [
            max(c, cosine(f, features[pick])) for c, f in zip(covered, features, strict=True)
        ]
    return picks


def two_stages(
    features: np.ndarray, salience: list[float], budget: int, num_pivots: int, valid: list[bool]
) -> tuple[list[int], list[int]]:
    """Returns the kept tokens and the pivots among them, ascending."""
    ranked = sorted(
        np.flatnonzero(valid).tolist(),
        key=lambda n: (
            math.isnan(salience[n]),
            0 if salience[n] != salience[n] else -salience[n],
            n,
        ),
    )
    pivots = ranked[: min(max(num_pivots, 1), budget)]
    completion = greedy(features, pivots, budget - len(pivots), valid)
    return sorted([*pivots, *completion]), pivots


def certify(
    features: np.ndarray, selected: list[int], picks: list[int], num_tokens: int, valid: list[bool]
) -> None:
    """Checks in float64 that every pick is within TOLERANCE of the best, given earlier picks."""
    norms = np.linalg.norm(features, axis=1)
    unit = features / np.where(norms > 0, norms, 1)[:, None]
    free = np.array(valid)
    free[selected] = False
    assert len(picks) == min(num_tokens, free.sum()), (len(picks), num_tokens, free.sum())
    covered = np.full(len(features), -np.inf)
    if selected:
        covered = (unit @ unit[selected].T).max(1)
    for step, pick in enumerate(picks):
        assert free[pick], f"pick {step} is {pick}, which was not free"
        excess = covered[pick] - covered[free].min() if step or selected else 0.0
        assert excess <= TOLERANCE, f"pick {step} is {pick}, {excess:.2e} from the best"
        free[pick] = False
        covered = np.maximum(covered, unit @ unit[pick])


def lattice(rng: np.random.Generator, num_tokens: int, dim: int) -> np.ndarray:
    """Returns tokens with exact cosines, many ties and some zero vectors.

    Each token has four entries of +-2^k, so every norm is a power of two.
    """
    features = np.zeros((num_tokens, dim))
    for token in features:
        where = rng.choice(dim, 4, replace=False)
        token[where] = rng.choice([-1.0, 1.0], 4) * 2.0 ** rng.integers(-2, 3)
    features[rng.random(num_tokens) < 0.05] = 0
    return features


def random_call(
    rng: np.random.Generator, num_tokens: int, most_selected: int
) -> tuple[list[int], int, list[bool]]:
    """Returns selected tokens, the number of picks, and which tokens are valid."""
    most = min(num_tokens, most_selected)
    selected = rng.permutation(num_tokens)[: rng.integers(0, most + 1)].tolist()
    return selected, int(rng.integers(0, num_tokens + 3)), random_mask(rng, num_tokens)


def check_exact_similarities_give_the_exact_picks(core: ModuleType, isa: str) -> None:
    rng = np.random.default_rng(1)
    worker = core.Worker(isa)
    for trial in range(150):
        num_tokens, dim = int(rng.integers(1, 50)), int(rng.integers(4, 40))
        features = lattice(rng, num_tokens, dim)
        scalar = SCALARS[trial % 3]
        selected, count, valid = random_call(rng, num_tokens, 20)
        encoded = at_end_of_page(encode(features, scalar))
        picks = worker.complete(encoded, scalar, selected, count, valid, 1)
        assert picks == greedy(features, selected, count, valid), trial


def random_weights(rng: np.random.Generator, num_tokens: int) -> list[float] | None:
    """Returns few distinct weights, so that ties are common, or none."""
    if rng.random() < 0.3:
        return None
    values = [0.0, 1.0, 1.0, 2.0, 3.0, -1.0, math.nan, 1e-20]
    if rng.random() < 0.2:
        values = [2.0]
    return rng.choice(values, num_tokens).astype(np.float32).tolist()


def check_exact_gains_give_the_exact_weighted_picks(core: ModuleType, isa: str) -> None:
    rng = np.random.default_rng(11)
    worker = core.Worker(isa)
    for trial in range(60):
        num_tokens, dim = int(rng.integers(1, 80)), int(rng.integers(4, 40))
        features = lattice(rng, num_tokens, dim)
        scalar = SCALARS[trial % 3]
        selected, count, valid = random_call(rng, num_tokens, 20)
        weights = random_weights(rng, num_tokens)
        encoded = at_end_of_page(encode(features, scalar))
        picks = worker.complete(encoded, scalar, selected, count, valid, 1, weights)
        assert picks == greedy(features, selected, count, valid, weights), trial


def check_lazy_weighted_picks_are_the_eager_ones(core: ModuleType, isa: str) -> None:
    """With enough tokens for sweeps, forecasts and whole tiles, in pieces or not."""
    rng = np.random.default_rng(12)
    worker = core.Worker(isa)
    for num_tokens, count in ((250, 60), (400, 20)):
        for kind in range(3):
            features = lattice(rng, num_tokens, 24)
            valid = random_mask(rng, num_tokens)
            selected = rng.permutation(num_tokens)[:37].tolist()
            weights = 2.0 ** rng.integers(-4, 4, num_tokens)
            if kind == 1:
                weights[rng.random(num_tokens) < 0.9] = 0
            if kind == 2:
                weights = np.where(rng.random(num_tokens) < 0.02, 2.0**20, weights)
            weights = weights.tolist()
            expected = greedy(features, selected, count, valid, weights)
            encoded = encode(features, "float32")
            for pieces in (1, 3):
                picks = worker.complete(encoded, "float32", selected, count, valid, pieces, weights)
                assert picks == expected, (num_tokens, kind)


def check_equal_weights_change_nothing(core: ModuleType, isa: str) -> None:
    rng = np.random.default_rng(13)
    worker = core.Worker(isa)
    features = rng.standard_normal((300, 33)).astype(np.float32)
    valid = random_mask(rng, 300)
    given = (features, "float32", [1, 2, 3], 80, valid, 1)
    expected = worker.complete(*given)
    for value in (0.0, 0.3, 1e-30, 1e30, math.nan):
        weights = [value if is_valid else 5.0 for is_valid in valid]
        assert worker.complete(*given, weights) == expected, value
    salience = rng.random(300).tolist()
    given = (features, "float32", salience, 90, 20, valid, 1)
    assert worker.select(*given, [0.7] * 300) == worker.select(*given)


def check_many_picks_among_many_tied_tokens(core: ModuleType, isa: str) -> None:
    """Uses enough tokens for sweeps, forecasts and whole tiles."""
    rng = np.random.default_rng(2)
    worker = core.Worker(isa)
    for dim in (4, 6, 24):
        features = lattice(rng, 250, dim)
        valid = random_mask(rng, 250)
        selected = rng.permutation(250)[:37].tolist()
        encoded = encode(features, "float32")
        picks = worker.complete(encoded, "float32", selected, 90, valid, 1)
        assert picks == greedy(features, selected, 90, valid), dim


def check_picks_are_certified(core: ModuleType, isa: str) -> None:
    rng = np.random.default_rng(3)
    worker = core.Worker(isa)
    for dim in (1, 2, 3, 5, 16, 31, 33, 64, 100, 129, 300, 768):
        num_tokens = int(rng.integers(20, 300))
        centres = rng.standard_normal((8, dim))
        for noise in (0.3, 3.0):
            values = centres[rng.integers(0, 8, num_tokens)]
            values = values + noise * rng.standard_normal((num_tokens, dim))
            for scalar in SCALARS:
                encoded = at_end_of_page(encode(values, scalar))
                selected = rng.permutation(num_tokens)[: rng.integers(0, 18)].tolist()
                valid = random_mask(rng, num_tokens)
                picks = worker.complete(encoded, scalar, selected, num_tokens // 3, valid, 1)
                decoded = decode(encoded, scalar)
                certify(decoded, selected, picks, num_tokens // 3, valid)


def check_any_strides(core: ModuleType, isa: str) -> None:
    rng = np.random.default_rng(4)
    worker = core.Worker(isa)
    features = lattice(rng, 40, 16)
    expected = greedy(features, [7, 2], 20, [True] * 40)
    for scalar in SCALARS:
        encoded = encode(features, scalar)
        wide = np.full((80, 64), 7, encoded.dtype)
        views = {
            "rows apart": wide[::2, :16],
            "columns apart": wide[:40, 3:51:3],
            "both": wide[1::2, ::4],
            "transposed": np.full((16, 40), 7, encoded.dtype).T,
            "reversed": np.full((40, 16), 7, encoded.dtype)[::-1, ::-1],
        }
        for name, view in views.items():
            view[...] = encoded
            picks = worker.complete(view, scalar, [7, 2], 20, [True] * 40, 1)
            assert picks == expected, (scalar, name)
        same = np.broadcast_to(encoded[0], (40, 16))
        assert worker.complete(same, scalar, [3], 4, [True] * 40, 1) == [0, 1, 2, 4]


def check_threads_do_not_matter(core: ModuleType, isa: str) -> None:
    rng = np.random.default_rng(5)
    features = rng.standard_normal((333, 70)).astype(np.float32)
    for scalar in SCALARS:
        encoded = encode(features, scalar)
        whole = core.Worker(isa).complete(encoded, scalar, list(range(30)), 99, [True] * 333, 1)
        for pieces in (2, 3, 7, 400):
            worker = core.Worker(isa)
            # Reused buffers must not affect the next image.
            worker.complete(encoded[5:50], scalar, [1], 9, [True] * 45, pieces)
            picks = worker.complete(encoded, scalar, list(range(30)), 99, [True] * 333, pieces)
            assert picks == whole, (scalar, pieces)


def check_no_number_comes_last(core: ModuleType, isa: str) -> None:
    rng = np.random.default_rng(6)
    worker = core.Worker(isa)
    for scalar in SCALARS:
        features = lattice(rng, 60, 12)
        features[4, 3], features[9, 0], features[20, 11] = math.nan, math.inf, -math.inf
        features[33] = math.nan
        encoded = encode(features, scalar)
        for selected in ([], [0], [8, 30]):
            picks = worker.complete(encoded, scalar, selected, 60, [True] * 60, 1)
            assert picks == greedy(features, selected, 60, [True] * 60), (scalar, selected)
            assert picks[-4:] == [4, 9, 20, 33]
        # All similarities to a selected NaN token are non-finite, or 0 for zero vectors.
        picks = worker.complete(encoded, scalar, [33], 60, [True] * 60, 1)
        zero = [n for n in range(60) if not features[n].any()]
        rest = [n for n in range(60) if n not in (33, *zero)]
        assert picks == zero + rest, scalar
    # Near the largest float32, so the squares overflow.
    huge = (3e38 * rng.choice([-1.0, 1.0], (9, 5))).astype(np.float32)
    assert sorted(worker.complete(huge, "float32", [2], 9, [True] * 9, 1)) == [0, 1, *range(3, 9)]


def check_zero_vectors_are_similar_to_nothing(core: ModuleType, isa: str) -> None:
    features = np.array([[1, 0], [0, 0], [-1, 0], [0, 1], [1, 1]], np.float32)
    picks = core.Worker(isa).complete(features, "float32", [0], 5, [True] * 5, 1)
    assert picks == [2, 1, 3, 4]
    nothing = np.zeros((5, 0), np.float32)
    assert core.Worker(isa).complete(nothing, "float32", [2], 9, [True] * 5, 1) == [0, 1, 3, 4]


def check_empty_and_tiny_images(core: ModuleType, isa: str) -> None:
    worker = core.Worker(isa)
    one = np.ones((1, 3), np.float32)
    assert worker.complete(one[:0], "float32", [], 3, [], 1) == []
    assert worker.complete(one, "float32", [], 3, [True], 1) == [0]
    assert worker.complete(one, "float32", [0], 3, [True], 1) == []
    assert worker.complete(one, "float32", [], 3, [False], 1) == []
    assert worker.complete(one, "float32", [], 0, [True], 1) == []
    # No candidate is left, and more than one chunk of selections to compare with.
    many = np.ones((20, 3), np.float32)
    assert worker.complete(many, "float32", list(range(20)), 3, [True] * 20, 1) == []
    assert worker.complete(many, "float32", list(range(19)), 3, [False] * 20, 1) == []
    assert worker.select(one[:0], "float32", [], 2, 1, [], 1) == ([], [])
    assert worker.select(one, "float32", [math.nan], 2, 1, [True], 1) == ([0], [True])


def check_a_repeated_selection_is_harmless(core: ModuleType, isa: str) -> None:
    """Python rejects a repeated index; a direct call of the operator must stay in bounds too."""
    features = encode(lattice(np.random.default_rng(7), 12, 8), "bfloat16")
    worker = core.Worker(isa)
    once = worker.complete(features, "bfloat16", [3, 5], 12, [True] * 12, 1)
    assert worker.complete(features, "bfloat16", [3, 5] * 50, 12, [True] * 12, 1) == once


def check_two_stages(core: ModuleType, isa: str) -> None:
    rng = np.random.default_rng(8)
    worker = core.Worker(isa)
    for trial in range(150):
        num_tokens, dim = int(rng.integers(1, 60)), int(rng.integers(4, 30))
        features = lattice(rng, num_tokens, dim)
        scalar = SCALARS[trial % 3]
        # Few distinct values, so that ties and the order of special values matter.
        choices = [0.0, -0.0, 1.5, -2.0, math.inf, -math.inf, math.nan]
        salience = rng.choice(choices, num_tokens).tolist()
        valid = random_mask(rng, num_tokens)
        budget, num_pivots = int(rng.integers(0, num_tokens + 3)), int(rng.integers(0, 12))

        kept, pivots = two_stages(features, salience, budget, num_pivots, valid)

        encoded = at_end_of_page(encode(features, scalar))
        indices, is_pivot = worker.select(encoded, scalar, salience, budget, num_pivots, valid, 1)
        assert indices == kept, trial
        assert is_pivot == [n in pivots for n in kept], trial
