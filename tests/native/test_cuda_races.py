"""No two threads of a CUDA kernel access the same memory, one of them writing, without a barrier of
their warp or block in between; whatever the order in which they happen to run."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import checks
import harness
from arrays import encode

pytestmark = pytest.mark.deep


@pytest.fixture(scope="module")
def kernels() -> ModuleType:
    return checks.load(harness.build_races())


def races(kernels: ModuleType) -> str:
    """What was found since the last call, with lines of the source where binutils are installed."""
    found = "\n".join(kernels.take_races())
    places = sorted(set(re.findall(r"\+(0x[0-9a-f]+)", found)))
    if not places or not shutil.which("addr2line"):
        return found
    command = ["addr2line", "-Cfpsae", kernels.__file__, *places]
    return found + "\n" + subprocess.run(command, capture_output=True, text=True).stdout


def test_a_race_is_found(kernels: ModuleType) -> None:
    kernels.exchange(True)
    assert not races(kernels)
    kernels.exchange(False)
    assert re.match(r"write at \+0x\w+, read at \+0x\w+", races(kernels))


@pytest.mark.parametrize(
    ("scalar", "dim", "order"), [("float32", 24, "forwards"), ("bfloat16", 13, "shuffled")]
)
@pytest.mark.parametrize("design", ["matrix", "steps"])
def test_kernels_have_no_races(
    kernels: ModuleType, design: str, scalar: str, dim: int, order: str
) -> None:
    rng = np.random.default_rng(1)
    batch, tokens = 2, 70
    values = encode(rng.standard_normal((batch * tokens, dim)), scalar)
    features = values.reshape(batch, tokens, dim)
    salience = rng.random((batch, tokens)).astype(np.float32)
    valid = (rng.random((batch, tokens)) < 0.9).astype(np.uint8)
    how = (design, values.strides[0] % 16 == 0, order)
    kernels.select(
        *(how, scalar, features, salience, 18, np.array([18, 7]), np.array([9, 3]), valid)
    )
    kernels.complete(how, scalar, features, np.array([[1, -1, 4]] * batch), 7, valid)
    assert not races(kernels)
