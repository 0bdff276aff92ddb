"""The reference has each op's signature and runs on the device of its tensors."""

from __future__ import annotations

import inspect

import pytest
import torch

from clasp_kernels import backend_report, reference, use_backend

OPS = sorted({row.op for row in backend_report().ops})


@pytest.mark.parametrize("op", OPS)
def test_has_the_signature_of_the_schema(op: str) -> None:
    schema = getattr(torch.ops.clasp_kernels, op).default._schema
    expected = [argument.name for argument in schema.arguments]
    assert list(inspect.signature(getattr(reference, op)).parameters) == expected


@pytest.mark.parametrize("op", OPS)
def test_both_overloads_have_one_schema(op: str) -> None:
    packet = getattr(torch.ops.clasp_kernels, op)
    default, forced = str(packet.default._schema), str(packet.reference._schema)
    assert forced == default.replace(f"{op}(", f"{op}.reference(")


@pytest.mark.parametrize("op", OPS)
def test_serves_every_device(op: str) -> None:
    for device in ("CPU", "CUDA", "XPU", "MPS"):
        table = torch._C._dispatch_dump_table(f"clasp_kernels::{op}.reference")
        line = next(row for row in table.splitlines() if row.startswith(f"{device}:"))
        assert line.endswith("[default backend kernel]"), line


def test_is_a_fixed_point_of_forcing_it() -> None:
    """Forcing the reference calls its function directly, whatever backends are loaded."""
    features, salience = torch.randn(2, 30, 8), torch.rand(2, 30)
    with use_backend("reference"):
        from clasp_kernels import select_tokens

        selection = select_tokens(features, salience, 9, 4)
    direct = reference.select_tokens(features, salience, 9, None, 4, None, None)
    torch.testing.assert_close(tuple(selection), direct)


@pytest.mark.parametrize(
    ("num_tokens", "budget", "num_pivots", "pivot_counts"),
    [
        (4, [9, -1], 2, None),
        (4, None, 0, None),
        (4, None, 0, [3, 0]),
        (4, [3, 4], 2, [9, -5]),
        (4, None, 7, None),
        (0, None, 2, None),
    ],
)
def test_cuts_counts_as_the_kernel_does(num_tokens, budget, num_pivots, pivot_counts) -> None:
    features, salience = torch.randn(2, 9, 5), torch.rand(2, 9)
    counts = [None if c is None else torch.tensor(c) for c in (budget, pivot_counts)]
    op = torch.ops.clasp_kernels.select_tokens
    arguments = (features, salience, num_tokens, counts[0], num_pivots, counts[1], None)
    expected = op.default(*arguments)
    assert expected[0].shape == (2, num_tokens)
    torch.testing.assert_close(op.reference(*arguments), expected)


@pytest.mark.parametrize(("start", "stop"), [(5, 9), (6, 8), (4, 2)])
def test_attention_salience_refuses_a_range_outside_the_keys(start: int, stop: int) -> None:
    query, key = torch.randn(2, 2, 3, 4), torch.randn(2, 2, 6, 4)
    with pytest.raises(RuntimeError):
        reference.attention_salience(query, key, 1.0, False, None, None, start, stop)
