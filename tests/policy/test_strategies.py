"""Strategies A to E: layer weights that move from shallow to deep."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clasp_kernels.policy import STRATEGIES, strategy_weights


@given(st.integers(1, 48))
def test_weights_are_a_mixture_and_get_deeper_from_a_to_e(num_layers):
    rows = [strategy_weights(letter, num_layers) for letter in STRATEGIES]
    depths = []
    for row in rows:
        assert len(row) == num_layers
        assert min(row) >= 0
        assert sum(row) == pytest.approx(1.0)
        depths.append(sum(layer * weight for layer, weight in enumerate(row)))
    if num_layers > 1:
        assert all(shallow < deep for shallow, deep in pairwise(depths))
    for row, mirrored in zip(rows, reversed(rows), strict=True):
        assert row == pytest.approx(mirrored[::-1])


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="strategy must be one of A, B, C, D, E, got 'F'"):
        strategy_weights("F", 4)
    with pytest.raises(ValueError, match="num_layers must be at least 1, got 0"):
        strategy_weights("A", 0)


def test_policy_imports_neither_torch_nor_transformers():
    import subprocess
    import sys

    code = "import sys, clasp_kernels.policy; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "set()"
