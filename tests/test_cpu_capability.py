"""The instruction set of the CPU kernels: how it is reported and forced."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from forking import python_with_torch

from clasp_kernels import backend_report, backends
from clasp_kernels.backends import cpu
from clasp_kernels.cli import environment

STATUS = cpu.load()
pytestmark = pytest.mark.skipif(not STATUS.loaded, reason="the C++ extension is not built")

VARIABLE = "CLASP_KERNELS_CPU_CAPABILITY"
LEVELS = ("avx512_bf16", "avx512", "avx2", "baseline")

# Check in float64 that every pick is within 1e-5 of the best, given the picks before it.
CERTIFY = """
import torch, clasp_kernels
generator = torch.Generator().manual_seed(0)
features = torch.randn(2, 90, 37, generator=generator)
salience = torch.randn(2, 90, generator=generator)
pivots = salience.topk(10).indices
with clasp_kernels.use_backend("cpu"):
    picks = clasp_kernels.complete_tokens(features, pivots, 30)
    kept = clasp_kernels.select_tokens(features, salience, 40, 10).indices
for image in range(2):
    unit = torch.nn.functional.normalize(features[image].double(), dim=-1)
    chosen = pivots[image].tolist()
    for pick in picks[image].tolist():
        free = [n for n in range(90) if n not in chosen]
        covered = (unit @ unit[chosen].T).amax(1)
        assert pick in free and covered[pick] <= covered[free].min() + 1e-5
        chosen.append(pick)
    assert kept[image].tolist() == sorted(chosen)
print(clasp_kernels.backend_report().native.capability)
"""


@functools.cache
def available() -> list[str]:
    """Return the levels of this machine, read from the error message of an invalid request."""
    done = python_with_torch(
        "import clasp_kernels.backends.cpu as n, torch, clasp_kernels.ops; print(n.load().problem)",
        **{VARIABLE: "none of them"},
    )
    named = done.stdout.removeprefix(f"{VARIABLE} must be one of ").partition(" on this machine")
    return named[0].split(", ")


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_can_be_forced(level: str) -> None:
    if level not in available():
        pytest.skip(f"this machine has no {level}")
    done = python_with_torch(CERTIFY, **{VARIABLE: level})
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{level}\n"


@pytest.mark.parametrize("value", [None, ""])
def test_the_best_level_is_used_unless_one_is_forced(value: str | None) -> None:
    environment = {} if value is None else {VARIABLE: value}
    done = python_with_torch(CERTIFY, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{available()[0]}\n"
    assert [level for level in LEVELS if level in available()] == available()


# The import works; every later call raises the error, also when repeated.
REFUSED = """
import torch, clasp_kernels, clasp_kernels.ops
features, salience = torch.randn(1, 6, 3), torch.rand(1, 6)
calls = {
    "op": lambda: clasp_kernels.select_tokens(features, salience, 3, 2),
    "forced": lambda: clasp_kernels.use_backend("cpu").__enter__()
    and clasp_kernels.complete_tokens(features, torch.tensor([[0]]), 2),
    "report": clasp_kernels.backend_report,
    "one image": lambda: torch.ops.clasp_kernels.complete_tokens(
        features, torch.tensor([[0]]), 2, None
    ),
    "several images": lambda: torch.ops.clasp_kernels.complete_tokens(
        features.expand(4, -1, -1), torch.tensor([[0]] * 4), 2, None
    ),
}
for _ in range(2):
    for call in calls.values():
        try:
            call()
        except RuntimeError as error:
            print(error)
with clasp_kernels.use_backend("reference"):
    clasp_kernels.select_tokens(features, salience, 3, 2)
"""


@pytest.mark.parametrize("value", ["avx1024", "AVX2", "avx2 "])
def test_a_level_that_is_not_there_is_an_error_when_it_is_needed(value: str) -> None:
    done = python_with_torch(REFUSED, **{VARIABLE: value})
    assert done.returncode == 0, done.stderr
    allowed = ", ".join(available())
    problem = f"{VARIABLE} must be one of {allowed} on this machine, got '{value}'."
    assert done.stdout.splitlines() == [problem] * 10
    assert done.stderr == ""


def test_the_level_is_read_once() -> None:
    code = f"""
import os, clasp_kernels
before = clasp_kernels.backend_report().native.capability
os.environ["{VARIABLE}"] = "nonsense"
assert clasp_kernels.backend_report().native.capability == before
"""
    done = python_with_torch(code)
    assert done.returncode == 0, done.stderr


def test_the_report_names_the_level() -> None:
    report = backend_report()
    assert report.native.capability in LEVELS
    assert f"instruction set: {report.native.capability}" in str(report).splitlines()
    assert environment.collect()["extension"]["cpu capability"] == report.native.capability


def test_a_library_that_cannot_name_its_level_is_not_used(monkeypatch) -> None:
    """A build of an older checkout, for example, would ignore the forced level."""
    capability, problem = cpu._capability(Path(torch._C.__file__))
    assert capability is None
    assert "belongs to another version of clasp_kernels. Build it with `pip install" in problem
    monkeypatch.setattr(cpu, "_status", STATUS._replace(problem=problem))
    with pytest.raises(RuntimeError, match="to another version"):
        backends.choose("select_tokens", "cpu", "auto")
    with pytest.raises(RuntimeError, match="to another version"):
        backend_report()
