"""Order of values, conversions and dot products."""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np
from arrays import SCALARS, at_end_of_page, decode, encode, nearest


def check_order_of_values(core: ModuleType, _: str) -> None:
    tiny = float(np.float32(1e-45))
    rising = [-math.inf, -1.0, -tiny, 0.0, tiny, 1.0, math.inf]
    keys = [core.smallest_first(value, index) for value in rising for index in (0, 5, 2**31 - 1)]
    assert keys == sorted(set(keys))
    assert core.smallest_first(-0.0, 3) == core.smallest_first(0.0, 3)
    assert keys[-1] < core.RETIRED
    ranks = [core.descending_rank(value) for value in rising[::-1]]
    assert ranks == sorted(set(ranks))
    assert core.descending_rank(-0.0) == core.descending_rank(0.0)
    for nan in (math.nan, -math.nan):
        assert ranks[-1] < core.descending_rank(nan) < core.RANK_OF_INVALID
    assert core.key_index(core.smallest_first(-0.5, 123)) == 123


def check_widening_every_half(core: ModuleType, isa: str) -> None:
    every = np.arange(2**16, dtype=np.uint16)
    for scalar in ("bfloat16", "float16"):
        with np.errstate(invalid="ignore"):
            expected = decode(every, scalar).astype(np.float32)
        np.testing.assert_array_equal(core.widen(isa, every, scalar), expected)
        for count in range(70):
            part = at_end_of_page(every[-1 - count : -1])
            np.testing.assert_array_equal(core.widen(isa, part, scalar), expected[-1 - count : -1])


def check_dot_products_are_right_and_do_not_depend_on_the_tile(core: ModuleType, isa: str) -> None:
    rng = np.random.default_rng(0)
    widest = core.TILE_TOKENS
    for scalar in SCALARS:
        for dim in [*range(1, 140), 1000, 1024]:
            tokens = at_end_of_page(encode(rng.standard_normal((widest, dim)), scalar))
            rows = at_end_of_page(encode(rng.standard_normal((9, dim)), scalar))
            exact_tokens, exact_rows = decode(tokens, scalar), decode(rows, scalar)
            alone = np.array(
                [
                    [core.tile(isa, scalar, t[None], r[None], None)[0, 0] for r in rows]
                    for t in tokens
                ]
            )
            exact = exact_tokens @ exact_rows.T
            scale = np.linalg.norm(exact_tokens, axis=1)[:, None]
            scale = scale * np.linalg.norm(exact_rows, axis=1)
            assert (np.abs(alone - exact) <= 1e-6 * scale).all(), (scalar, dim)
            if dim > 70 and dim % 16:
                continue
            for num_tokens in range(1, widest + 1):
                for num_rows in range(1, 10):
                    later = tokens[: num_rows % widest] if num_rows % 2 else None
                    dots = core.tile(isa, scalar, tokens[:num_tokens], rows[:num_rows], later)
                    np.testing.assert_array_equal(dots, alone[:num_tokens, :num_rows])
                own = [core.tile(isa, scalar, t[None], t[None], None)[0, 0] for t in tokens]
                squares = core.squares(isa, scalar, tokens[:num_tokens])
                np.testing.assert_array_equal(squares, own[:num_tokens])


def check_dot_products_of_halves_lose_nothing(core: ModuleType, isa: str) -> None:
    """Products that are exact in float32, such as those of small integers, come out exact."""
    rng = np.random.default_rng(1)
    for scalar in SCALARS:
        values = rng.integers(-16, 17, (12, 333)).astype(np.float64)
        encoded = encode(values, scalar)
        dots = core.tile(isa, scalar, encoded[: core.TILE_TOKENS], encoded, None)
        np.testing.assert_array_equal(dots, values[: core.TILE_TOKENS] @ values.T)


def check_rounding_to_halves(core: ModuleType, isa: str) -> None:
    every = np.arange(2**16, dtype=np.uint16)
    rng = np.random.default_rng(9)
    anything = rng.integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    for scalar in ("bfloat16", "float16"):
        with np.errstate(invalid="ignore"):
            exact = decode(every, scalar)
        finite = np.sort(exact[np.isfinite(exact)])
        midway = ((finite[1:] + finite[:-1]) / 2).astype(np.float32)
        around = [np.nextafter(midway, np.float32(way)) for way in (-math.inf, math.inf)]
        edge = np.array([65519.996, 65520, 65536, 3.3895e38, 3.3961e38, math.inf], np.float32)
        values = np.concatenate([anything, midway, *around, edge, -edge])
        values = values[~np.isnan(values)]
        np.testing.assert_array_equal(core.narrow(isa, values, scalar), nearest(values, scalar))
        nan = core.narrow(isa, np.array([math.nan, -math.nan], np.float32), scalar)
        assert np.isnan(decode(nan, scalar)).all()
