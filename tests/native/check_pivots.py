"""The most salient tokens, checked against a sort in plain Python."""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np
from arrays import at_end_of_page

NAN, INF = math.nan, math.inf


def ranked(salience: np.ndarray, valid: list[bool]) -> list[int]:
    """The valid tokens, best first: by value, NaN last, ties to the lower index."""
    values = salience.tolist()
    number = [(1, 0.0) if value != value else (0, -value) for value in values]
    return sorted((n for n in range(len(values)) if valid[n]), key=lambda n: (number[n], n))


def check_pivots_at_every_count(core: ModuleType, isa: str) -> None:
    """Uses few distinct values, special ones included, so that most counts end among ties."""
    rng = np.random.default_rng(20)
    worker = core.PivotWorker(isa)
    tiny = float(np.float32(1e-45))
    kinds = {
        "special": [0.0, -0.0, 1.5, -2.0, INF, -INF, NAN, -NAN, tiny, -tiny],
        "two": [0.25, 0.5],
        "equal": [1.0],
        "zeros": [0.0, -0.0],
        "no numbers": [NAN, -INF],
        "neighbours": np.nextafter(np.float32(1), np.float32([0, 2])).tolist(),
    }
    for name, choices in kinds.items():
        for num_tokens in (1, 2, 15, 16, 17, 63, 64, 65, 130):
            salience = at_end_of_page(rng.choice(choices, num_tokens).astype(np.float32))
            for valid in ([True] * num_tokens, (rng.random(num_tokens) < 0.6).tolist()):
                expected = ranked(salience, valid)
                for count in range(num_tokens + 2):
                    pivots = worker.run(salience, count, valid)
                    assert pivots == expected[:count], (name, num_tokens, count)


def check_pivots_of_large_images(core: ModuleType, isa: str) -> None:
    """Covers both ways of sorting, which change at 256 pivots."""
    rng = np.random.default_rng(21)
    worker = core.PivotWorker(isa)
    for num_tokens in (257, 1000, 4099):
        anything = rng.integers(0, 2**32, num_tokens, dtype=np.uint32).view(np.float32)
        coarse = rng.integers(-20, 20, num_tokens).astype(np.float32)
        normal = rng.standard_normal(num_tokens).astype(np.float32)
        for salience in (at_end_of_page(anything), at_end_of_page(coarse), normal, np.sort(normal)):
            for valid in ([True] * num_tokens, (rng.random(num_tokens) < 0.9).tolist()):
                expected = ranked(salience, valid)
                for count in (1, 32, 255, 256, 257, num_tokens - 1, num_tokens):
                    assert worker.run(salience, count, valid) == expected[:count], count


def check_no_pivots(core: ModuleType, isa: str) -> None:
    worker = core.PivotWorker(isa)
    values = np.ones(3, np.float32)
    assert worker.run(values[:0], 2, []) == []
    assert worker.run(values, 0, [True] * 3) == []
    assert worker.run(values, 2, [False] * 3) == []
    assert worker.run(values, 5, [False, True, True]) == [1, 2]
