"""What docs/adding-an-op.md says: a line in the table is all that the rest of the package needs."""

from __future__ import annotations

from pathlib import Path

import pytest
from forking import python_with_torch

from clasp_kernels.backends import table
from clasp_kernels.ops._library import define_op

# An op with a Triton launcher, in a process of its own, whose table it may change.
NEW_OP = """
import sys, types, torch, clasp_kernels
from clasp_kernels import backend_report, backends, use_backend
from clasp_kernels.backends import table, triton
from clasp_kernels.ops._library import define_op
from clasp_kernels.reference import forward_only

@forward_only
def double(tokens):
    return tokens * 2

kernels = types.ModuleType("kernels_of_double")
kernels.launch = lambda tokens: tokens + tokens
sys.modules["kernels_of_double"] = kernels
define_op(
    table.OpSpec(
        name="double",
        schema="(Tensor tokens) -> Tensor",
        reference=double,
        fake=torch.empty_like,
        triton="kernels_of_double:launch",
    )
)
tokens = torch.ones(2, 3)

def call(tokens):
    return backends.overload("double", tokens.device)(tokens)
"""


def test_a_line_in_the_table_makes_an_op() -> None:
    code = """
assert torch.equal(call(tokens), tokens * 2)
assert torch.equal(torch.compile(call, fullgraph=True, backend="aot_eager")(tokens), tokens * 2)
assert torch.equal(torch.vmap(call)(tokens[None]), tokens[None] * 2)
assert not call(tokens.clone().requires_grad_()).requires_grad
torch.library.opcheck(torch.ops.clasp_kernels.double.default, (tokens,))
row = next(row for row in backend_report().ops if row.op == "double")
assert (row.device, row.backend) == ("cpu", "reference"), row
assert row.reason.startswith("there is no native kernel for double"), row
"""
    done = python_with_torch(NEW_OP + code)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # nobody is told to install what would not help


def test_its_backends_are_those_that_the_table_names() -> None:
    code = """
assert "double" in table.ops_of("triton")
assert "double" not in table.ops_of("cpu") + table.ops_of("cuda")
assert triton.launcher("double") is kernels.launch
if triton.installed():
    assert torch._C._dispatch_has_kernel_for_dispatch_key("clasp_kernels::double", "CUDA")
assert backends.choose("double", "cuda", "cuda").reason.startswith("there is no CUDA kernel")
for name in ("cpu", "cuda"):
    with use_backend(name):
        try:
            call(tokens)
        except RuntimeError as error:
            assert str(error).startswith(f"double: the {name} backend is forced but cannot"), error
        else:
            raise AssertionError(name)
with use_backend("reference"):
    assert torch.equal(call(tokens), tokens * 2)
"""
    done = python_with_torch(NEW_OP + code)
    assert done.returncode == 0, done.stderr


def test_the_interpreter_runs_its_triton_launcher() -> None:
    pytest.importorskip("triton")
    code = """
kernels.launch = lambda tokens: tokens + 5
with use_backend("triton"):
    assert torch.equal(call(tokens), tokens + 5)
"""
    done = python_with_torch(NEW_OP + code, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr


def test_a_name_is_given_once() -> None:
    with pytest.raises(ValueError, match="there is an op named gather_tokens already"):
        define_op(table.OPS["gather_tokens"])


def test_whatever_lists_ops_reads_the_table() -> None:
    """Only the two modules that export them name most ops."""
    package = Path(table.__file__).parents[1]
    exports = {package / "__init__.py", package / "ops" / "__init__.py"}
    names = list(table.OPS)
    for path in package.rglob("*.py"):
        text = path.read_text()
        named = [op for op in names if f'"{op}"' in text]
        assert len(named) <= len(names) // 2 or path in exports, f"{path} lists {named}"
