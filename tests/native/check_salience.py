"""Attention salience of one key head, checked against float64."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import numpy as np
from arrays import SCALARS, at_end_of_page, decode, encode, random_mask

SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)
FLOAT32_MAX = float(np.finfo(np.float32).max)


def check_exponential_is_right_to_a_place(core: ModuleType, isa: str) -> None:
    """Tests every 641st float from 0 down to where exp is subnormal, and all around that edge."""
    most = int(np.float32(104).view(np.uint32))
    edge = int(np.float32(-math.log(SMALLEST_NORMAL)).view(np.uint32))
    bits = np.concatenate([np.arange(0, most, 641), np.arange(edge - 300, edge + 300)])
    x = -bits.astype(np.uint32).view(np.float32)
    exact = np.exp(x.astype(np.float64))
    actual = core.exponentials(isa, x).astype(np.float64)
    normal = exact >= SMALLEST_NORMAL
    error = np.abs(actual - exact)[normal] / np.spacing(exact[normal].astype(np.float32))
    assert error.max() <= 1.25, error.max()  # 1 with fused multiply-add
    assert (actual[~normal] == 0).all()


def check_exponential_of_what_is_no_number(core: ModuleType, isa: str) -> None:
    values = np.array([0.0, -0.0, -math.inf, math.nan, -math.nan, -3e38, -1e-45], np.float32)
    expected = np.array([1, 1, 0, math.nan, math.nan, 0, 1], np.float32)
    for count in range(40):  # full vectors and their remainders
        actual = core.exponentials(isa, np.resize(values, count))
        np.testing.assert_array_equal(actual, np.resize(expected, count))


def check_weights_are_shares(core: ModuleType, _: str) -> None:
    for weights in ([1.0], [1, 0, 3], [2e38, 2e38, 1e38], [1e-45, 3e-45], [0, 0], [1e-45, 1e38]):
        exact = np.array(weights, np.float32).astype(np.float64)
        expected = exact / (exact.sum() or 1.0)
        np.testing.assert_allclose(core.normalized_weights(weights), expected, 1e-6, 1e-37)


@dataclass
class Head:
    """One key head: the inputs of the core, all float32 until they are encoded."""

    queries: np.ndarray  # [group, T, d]
    keys: np.ndarray  # [S, d]
    scalar: str = "float32"
    scale: float = 0.25
    causal: bool = False
    weights: list[float] = field(default_factory=list)
    valid: list[bool] = field(default_factory=list)
    reported: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        rows, keys = self.queries.shape[1], self.keys.shape[0]
        self.weights = self.weights or [1 / rows] * rows
        self.valid = self.valid or [True] * keys
        self.reported = self.reported if self.reported[1] else (0, keys)

    def run(self, worker: Any, pieces: int = 1) -> np.ndarray:
        """Returns the core's result, with NaN for the keys that it reports as undefined."""
        columns, without = worker.run(
            at_end_of_page(encode(self.queries, self.scalar)),
            at_end_of_page(encode(self.keys, self.scalar)),
            *(self.scalar, self.scale, self.causal, *self.reported),
            *(self.weights, self.valid, pieces),
        )
        return self.with_nan(columns, without)

    def with_nan(self, columns: np.ndarray, without: int) -> np.ndarray:
        start, stop = self.reported
        unknown = np.array(self.valid) & (np.arange(len(self.valid)) < without)
        columns[unknown[start:stop]] = math.nan
        return columns

    def exact(self) -> np.ndarray:
        """The definition in float64."""
        keys = decode(encode(self.keys, self.scalar), self.scalar)
        queries = decode(encode(self.queries, self.scalar), self.scalar)
        num_rows, num_keys = queries.shape[1], keys.shape[0]
        columns = np.zeros(num_keys)
        for head in queries:
            for t, query in enumerate(head):
                if self.weights[t] == 0:
                    continue
                allowed = np.array(self.valid)
                if self.causal:
                    allowed &= np.arange(num_keys) <= num_keys - num_rows + t
                if allowed.any():
                    with np.errstate(invalid="ignore", over="ignore"):
                        logits = self.scale * (keys[allowed] @ query)
                        logits[logits < -FLOAT32_MAX] = -math.inf
                        e = np.exp(logits - logits.max())
                        columns[allowed] += self.weights[t] * e / e.sum()
        return columns[slice(*self.reported)]


def random_head(rng: np.random.Generator, group: int, rows: int, keys: int, dim: int) -> Head:
    return Head(
        rng.standard_normal((group, rows, dim)),
        rng.standard_normal((keys, dim)),
        scale=float(np.float32(rng.choice([1.0, -0.5, 3.0]) / math.sqrt(dim))),
    )


def assert_right(actual: np.ndarray, head: Head) -> None:
    # Logits of up to 30 are accurate to 1e-6 relative or 3e-5 absolute, which is the relative error
    # of a probability.
    np.testing.assert_allclose(actual, head.exact(), rtol=3e-5, atol=1e-6)


# group, T, S, d: one row; few rows, with the keys across the lanes; whole and partial vectors of
# rows; several blocks of rows and of keys; sizes that do not divide each other.
SHAPES = [
    *[(1, 1, 1, 1), (1, 1, 64, 16), (1, 1, 65, 64), (4, 1, 200, 33), (2, 3, 63, 7)],
    *[(1, 8, 129, 24), (3, 3, 100, 20), (1, 16, 64, 40), (1, 17, 130, 5), (2, 31, 257, 12)],
    *[(1, 64, 70, 3), (5, 13, 193, 18), (1, 70, 20, 6), (1, 5, 3000, 9), (2, 20, 4500, 4)],
]


def check_salience_is_right(core: ModuleType, isa: str) -> None:
    rng = np.random.default_rng(20)
    worker = core.SalienceWorker(isa)
    for trial, shape in enumerate([*SHAPES, *SHAPES]):
        head = random_head(rng, *shape)
        head.scalar = SCALARS[trial % 3]
        assert_right(head.run(worker), head)
        head.causal = trial % 2 == 0
        head.valid = random_mask(rng, shape[2])
        head.weights = (rng.random(shape[1]) * (rng.random(shape[1]) < 0.8)).tolist()
        start = int(rng.integers(0, shape[2]))
        head.reported = (start, int(rng.integers(start + 1, shape[2] + 1)))
        assert_right(head.run(worker), head)


def check_neither_pieces_nor_the_range_change_a_bit(core: ModuleType, isa: str) -> None:
    rng = np.random.default_rng(21)
    for group, rows, keys, dim in SHAPES:
        head = random_head(rng, group, rows, keys, dim)
        head.causal = rows % 2 == 1
        head.valid = random_mask(rng, keys)
        whole = head.run(core.SalienceWorker(isa))
        worker = core.SalienceWorker(isa)
        for pieces in (2, 3, 100):
            np.testing.assert_array_equal(head.run(worker, pieces), whole)
        for start, stop in ((0, 1), (keys // 2, keys), (keys // 3, keys // 3 + 1), (0, keys)):
            part = replace(head, reported=(start, stop)).run(worker, 2)
            np.testing.assert_array_equal(part, whole[start:stop])


def check_any_strides_of_queries_and_keys(core: ModuleType, isa: str) -> None:
    rng = np.random.default_rng(22)
    worker = core.SalienceWorker(isa)
    for group, rows in ((2, 1), (2, 20)):
        head = random_head(rng, group, rows, 90, 18)
        for scalar in SCALARS:
            head.scalar = scalar
            expected = head.run(worker)
            queries, keys = encode(head.queries, scalar), encode(head.keys, scalar)
            views = {
                "heads inside": (queries.transpose(1, 0, 2).copy().transpose(1, 0, 2), keys),
                "features first": (
                    queries.transpose(0, 2, 1).copy().transpose(0, 2, 1),
                    keys.T.copy().T,
                ),
                "apart": (np.repeat(queries, 3, 2)[..., ::3], np.repeat(keys, 2, 0)[::2]),
                "reversed": (
                    queries[::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1],
                    keys[::-1].copy()[::-1],
                ),
            }
            for name, (some_queries, some_keys) in views.items():
                actual = head.with_nan(
                    *worker.run(
                        some_queries, some_keys, scalar, head.scale, False, 0, 90, head.weights,
                        head.valid, 1,
                    )
                )  # fmt: skip
                np.testing.assert_array_equal(actual, expected, name)


def check_what_is_masked_may_hold_anything(core: ModuleType, isa: str) -> None:
    rng = np.random.default_rng(23)
    worker = core.SalienceWorker(isa)
    for shape in SHAPES:
        _, rows, keys, _ = shape
        head = random_head(rng, *shape)
        head.causal = keys > rows
        head.valid = random_mask(rng, keys)
        head.weights = [0.5 if t % 3 else 0.0 for t in range(rows)]
        clean = head.run(worker)
        head.keys[~np.array(head.valid)] = rng.choice([math.nan, math.inf, -math.inf, 3e38])
        head.queries[:, ::3] = math.nan
        np.testing.assert_array_equal(head.run(worker), clean)
        assert (clean[~np.array(head.valid)] == 0).all()


def check_a_row_without_a_probability(core: ModuleType, isa: str) -> None:
    """NaN for all keys that the row may see and for no other, as with torch's softmax."""
    rng = np.random.default_rng(24)
    worker = core.SalienceWorker(isa)
    for shape in SHAPES:
        group, rows, keys, _ = shape
        for garbage in (math.nan, math.inf, -math.inf):
            head = random_head(rng, *shape)
            head.scale, head.causal = 0.5, True
            head.valid = random_mask(rng, keys)
            row = int(rng.integers(0, rows))
            head.queries[group - 1, row] = garbage
            head.queries[0, 0] = math.nan if garbage == math.inf else head.queries[0, 0]
            assert_right(head.run(worker), head)
        # The row's logits are all -inf, without NaN or inf.
        head.keys = np.abs(head.keys) + 0.1
        head.queries[group - 1, row] = -3e38
        head.scale = 1e30
        assert_right(head.run(worker), head)


def check_logits_of_any_size(core: ModuleType, isa: str) -> None:
    rng = np.random.default_rng(25)
    worker = core.SalienceWorker(isa)
    for shape in SHAPES:
        head = random_head(rng, *shape)
        # Exact products that are far apart: each row attends only to its largest logits.
        head.queries = rng.integers(-3, 4, head.queries.shape).astype(np.float64)
        head.keys = rng.integers(-3, 4, head.keys.shape).astype(np.float64)
        for scale in (1000.0, -1e30, 1e-30, 0.0):
            head.scale = float(np.float32(scale))
            assert_right(head.run(worker), head)
