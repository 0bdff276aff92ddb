"""The reference as such: it has each op's signature and runs where the op would."""

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
    """Forcing the reference calls the function itself, whatever else is loaded."""
    features, salience = torch.randn(2, 30, 8), torch.rand(2, 30)
    with use_backend("reference"):
        from clasp_kernels import select_tokens

        selection = select_tokens(features, salience, 9, 4)
    direct = reference.select_tokens(features, salience, 9, None, 4, None, None)
    torch.testing.assert_close(tuple(selection), direct)
