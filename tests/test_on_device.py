"""The mechanism that repeats the ops' tests on a GPU, tested with the CPU as the device."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from on_device import NAMES, Memory, brought_back, on_device, ops_on
from torch import Tensor

import clasp_kernels
from clasp_kernels import Selection, fuse_layers, gather_tokens, prune_tokens, select_tokens

ROOT = Path(__file__).resolve().parent.parent

# Rewriting assertions takes seconds where no bytecode is kept.
PLAIN = ("-p", "no:cacheprovider", "--assert=plain")

WHOLE = torch.randn(4, 6, 8)
VIEWS = {
    "whole": WHOLE,
    "offset": WHOLE[1:, 1:],
    "gaps": WHOLE[..., ::3],
    "transposed": WHOLE.transpose(0, 2),
    "expanded": WHOLE[:1].expand(4, -1, -1),
    "bytes": WHOLE[0, 0].view(torch.uint8)[3:7],
    "empty": WHOLE[:0],
    "scalar": WHOLE[2, 3, 4],
    "mask": torch.tensor([[True, False], [False, True]]).T,
    "bfloat16": WHOLE.bfloat16()[:, 1:],
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_a_tensor_is_moved_as_it_lies_in_memory(view: Tensor) -> None:
    moved = Memory("cpu").moved(view)
    assert torch.equal(moved, view)
    assert moved.dtype == view.dtype
    assert moved.stride() == view.stride()
    assert moved.storage_offset() == view.storage_offset()
    assert moved.untyped_storage().nbytes() == view.untyped_storage().nbytes()
    assert view.numel() == 0 or moved.data_ptr() != view.data_ptr()


def test_what_shares_memory_still_does() -> None:
    memory = Memory("cpu")
    layers, last = memory.moved([WHOLE[0], WHOLE[1]]), memory.moved(WHOLE[3])
    addresses = [it.untyped_storage().data_ptr() for it in (*layers, last)]
    assert len(set(addresses)) == 1
    assert addresses[0] != WHOLE.untyped_storage().data_ptr()


def test_requiring_grad_goes_along() -> None:
    assert Memory("cpu").moved(torch.ones(2).requires_grad_()).requires_grad
    assert not Memory("cpu").moved(torch.ones(2)).requires_grad


def test_what_is_no_tensor_of_the_cpu_is_left_alone() -> None:
    memory = Memory("cpu")
    for value in (3, None, "rms", (1, 2), [4, 5], {"a": 1}):
        assert memory.moved(value) == value
    for tensor in (torch.ones(2, device="meta"), torch.eye(2).to_sparse()):
        assert memory.moved(tensor) is tensor


def test_results_come_back_as_what_they_are() -> None:
    selection = Selection(torch.ones(1), torch.ones(2), torch.ones(3))
    tokens, back = brought_back((torch.zeros(4), selection))
    assert isinstance(back, Selection)
    assert [it.shape[0] for it in (tokens, *back)] == [4, 1, 2, 3]


def test_an_op_is_given_tensors_of_the_device_and_counts_of_the_host() -> None:
    seen = {}

    def op(features, budget, pivot_counts, *, valid=None):
        seen.update(features=features, budget=budget, pivot_counts=pivot_counts, valid=valid)
        return torch.zeros(2)

    counts, mask = torch.tensor([1]), torch.ones(1, dtype=torch.bool)
    on_device(op, "cpu")([WHOLE], counts, pivot_counts=counts, valid=mask)
    assert seen["features"][0].data_ptr() != WHOLE.data_ptr()
    assert seen["valid"].data_ptr() != mask.data_ptr()
    assert seen["budget"] is counts and seen["pivot_counts"] is counts


def test_an_op_that_writes_to_its_inputs_fails() -> None:
    def op(tokens):
        tokens[0] += 1
        return tokens

    with pytest.raises(AssertionError, match="written to its inputs"):
        on_device(op, "cpu")(torch.zeros(3))


def test_ops_are_replaced_where_they_are_called_from_and_only_meanwhile() -> None:
    module = ModuleType("tests_of_gather")
    module.gather_tokens = gather_tokens
    module.another_name = select_tokens
    module.Selection = Selection
    before = {name: getattr(clasp_kernels, name) for name in NAMES}
    with pytest.raises(KeyError), ops_on("cpu", module):
        for op in (module.gather_tokens, module.another_name, clasp_kernels.fuse_layers):
            assert op not in before.values()
        assert module.Selection is Selection
        raise KeyError
    assert module.gather_tokens is gather_tokens
    assert module.another_name is select_tokens
    assert {name: getattr(clasp_kernels, name) for name in NAMES} == before
    assert fuse_layers in before.values() and prune_tokens in before.values()


def test_tests_of_ops_run_once_more_on_a_device() -> None:
    """With the CPU as the device, the repeated tests pass in addition to the normal ones."""
    pytest.importorskip("triton")
    chosen = ["tests/ops/test_gather_tokens.py", "tests/ops/test_every_op.py"]
    of_gather = "copies_the_indexed_rows or list_form or (inputs_are_left_alone and gather_tokens)"
    of_gather += " or (opcheck and gather_tokens-reference)"
    chosen += ["tests/ops/test_fuse_layers.py", "-k", of_gather]
    options = ["-v", *PLAIN, "--op-device=cpu", "--hypothesis-profile=few"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *chosen],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.findall(r"(\w+)\[(.*?)\] PASSED", done.stdout)
    moved = {(name, how) for name, how in passed if how.endswith("-cpu")}
    assert ("test_copies_the_indexed_rows", "triton-cpu") in moved
    assert ("test_inputs_are_left_alone", "gather_tokens-triton-cpu") in moved
    assert ("test_opcheck", "gather_tokens-reference-cpu-calls") in passed
    assert ("test_list_form_copies_nothing", "reference-cpu") not in moved
    assert ("test_list_form_copies_nothing", "reference") in passed


# Pretend that the CUDA extension's ops take CPU tensors, and print the forced design of each test.
CUDA_ON_THE_CPU = """
import os
from clasp_kernels import backends
from clasp_kernels.backends import chooser, table

choose = backends.choose

def choose_cuda_too(op, device, forced):
    if (device, forced) == ("cpu", "cuda") and op in table.ops_of("cuda"):
        return backends.Choice("cuda", "forced")
    return choose(op, device, forced)

backends.choose = chooser.choose = choose_cuda_too

def pytest_runtest_call(item):
    design, backend = os.environ.get("CLASP_KERNELS_CUDA_DESIGN"), backends.forced_backend()
    print("CALLED", item.name, backend, design)
"""


def test_each_design_of_the_cuda_extension_has_the_tests_of_its_ops(tmp_path: Path) -> None:
    """At the sizes of these tests, ``auto`` chooses ``matrix``."""
    designs = ("auto", "steps")
    (tmp_path / "cuda_on_the_cpu.py").write_text(CUDA_ON_THE_CPU)
    options = ["-q", "-s", *PLAIN, "-p", "cuda_on_the_cpu", "--op-device=cpu"]
    options += ["--hypothesis-profile=few"]
    chosen = ["tests/ops/test_complete_tokens.py", "tests/ops/test_gather_tokens.py"]
    path = os.pathsep.join(map(str, (ROOT, tmp_path)))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *chosen, "-k", "nothing_selected or copies"],
        env={**os.environ, "PYTHONPATH": path, "CLASP_KERNELS_CUDA_DESIGN": "auto"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    called = set(re.findall(r"CALLED \w+\[(\S+)\] (\w+) (\w+)", done.stdout))
    assert {design for _, backend, design in called if backend == "cuda"} == set(designs)
    for design in designs:
        assert (f"cuda-cpu-{design}", "cuda", design) in called
    assert ("cpu-cpu", "cpu", "auto") in called and ("reference-cpu", "reference", "auto") in called
