"""No two threads of a CUDA kernel race, in any order of execution.

A race is two accesses to the same memory, at least one of them a write, without a barrier of their
block in between.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import cuda_on_host

pytestmark = pytest.mark.deep

OPS = torch.ops.clasp_simt_races


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(cuda_on_host.load("simt_races")))
    loaded.simt_take_races.restype = ctypes.c_char_p
    return loaded


def races(library: ctypes.CDLL) -> str:
    """Returns the races since the last call, with source lines if binutils are installed."""
    found = library.simt_take_races().decode()
    places = sorted(set(re.findall(r"\+(0x[0-9a-f]+)", found)))
    if not places or not shutil.which("addr2line"):
        return found
    command = ["addr2line", "-Cfpsae", library._name, *places]
    return found + "\n" + subprocess.run(command, capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    ("kernel", "found"),
    [
        ("simt_exchange", r"write at \+0x\w+, read at \+0x\w+"),
        ("simt_overwrite", r"read at \+0x\w+, write at \+0x\w+"),
    ],
)
def test_a_race_is_found(library: ctypes.CDLL, kernel: str, found: str) -> None:
    getattr(library, kernel)(True)
    assert not races(library)
    getattr(library, kernel)(False)
    assert re.match(found, races(library))


@pytest.mark.parametrize(
    ("dtype", "dim", "order"),
    [(torch.float32, 24, "forwards"), (torch.bfloat16, 13, "shuffled")],
    ids=str,
)
@pytest.mark.parametrize("design", ["matrix", "steps"])
def test_kernels_have_no_races(
    library: ctypes.CDLL,
    design: str,
    dtype: torch.dtype,
    dim: int,
    order: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CLASP_KERNELS_CUDA_DESIGN", design)
    monkeypatch.setenv("SIMT_ORDER", order)
    torch.manual_seed(1)
    features, salience = torch.randn(2, 70, dim).to(dtype), torch.rand(2, 70)
    valid = torch.rand(2, 70) < 0.9
    counts = (18, torch.tensor([18, 7]), 9, torch.tensor([9, 3]))
    for weights in (None, torch.stack([torch.rand(70), torch.ones(70)])):
        OPS.select_tokens(features, salience, *counts, valid, weights)
        OPS.complete_tokens(features, torch.tensor([[1, -1, 4]] * 2), 7, valid, weights)
    assert not races(library)
