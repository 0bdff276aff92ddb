"""`make cuda-build-check` says in a sentence what is wrong, wherever it goes wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cuda_build_check
import cuda_build_probe
import pytest
import torch

from clasp_kernels import backend_report
from clasp_kernels.backends import cpu, table

ROOT = Path(__file__).resolve().parent.parent
# A fake Python of an environment. FAILS: what fails of what it does.
PRETENDS = r"""#!/usr/bin/env bash
build="CUDA=${CLASP_KERNELS_BUILD_CUDA:-} ARCH=${TORCH_CUDA_ARCH_LIST:-}"
echo "ran $* in $PWD $build ${PYTHONPATH:-}"
case "$*" in *${FAILS:-nothing}*) exit 3 ;; esac
while [ $# -gt 0 ]; do
    [ "$1" != --wheel-dir ] || touch "$2/clasp_kernels-1-cp310-abi3-linux_x86_64.whl"
    shift
done
"""


def check(tmp_path: Path, **more: str) -> subprocess.CompletedProcess[str]:
    fake = tmp_path / "environment" / "bin" / "python"
    fake.parent.mkdir(parents=True, exist_ok=True)
    fake.write_text(PRETENDS)
    fake.chmod(0o755)
    return subprocess.run(
        [sys.executable, cuda_build_check.__file__, tmp_path / "environment", "torch==9"],
        env={**os.environ, "PYTHONPATH": "elsewhere", "CLASP_KERNELS_BUILD_CUDA": "0", **more},
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_builds_one_architecture_and_tries_it_outside_of_the_checkout(tmp_path) -> None:
    done = check(tmp_path)
    assert done.returncode == 0, done.stderr
    ran = [line for line in done.stdout.splitlines() if line.startswith("ran ")]
    torch_, tools, _, built, installed, tried = ran
    assert " torch==9 " in torch_ and " ninja " in tools
    assert "--no-build-isolation" in built and " CUDA=1 ARCH=9.0 " in built
    assert "clasp_kernels-1-cp310-abi3-linux_x86_64.whl" in installed
    assert f"ran {cuda_build_probe.__file__} in " in tried and "CUDA= ARCH=" in tried
    assert str(ROOT) not in tried.split(" in ")[1]
    assert not any("elsewhere" in line for line in ran)


@pytest.mark.parametrize(
    ("fails", "sentence"),
    [
        ("torch==9", "error: could not install torch==9, which has gigabytes: status 3 of "),
        ("version.cuda", "error: CUDA_TORCH=torch==9 must be a CUDA build of torch, and is none."),
        ("pip wheel", "error: could not build the wheel: status 3 of "),
        ("probe.py", "error: could not try it: status 3 of "),
    ],
)
def test_what_fails_is_named(tmp_path, fails, sentence) -> None:
    done = check(tmp_path, FAILS=fails)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith(sentence)


def test_a_package_that_is_not_the_wheel_or_does_not_load_is_wrong() -> None:
    wrong = list(cuda_build_probe.loading())
    assert "is the checkout's package" in wrong[0]
    report = backend_report()
    assert any("CUDA extension" in it for it in wrong) == (not report.cuda.loaded)


@pytest.mark.skipif(torch.version.cuda is not None, reason="the CUDA extension may be there")
def test_ops_that_are_not_registered_are_wrong() -> None:
    wrong = list(cuda_build_probe.registration())
    for op in table.ops_of("cuda"):
        assert f"the CUDA extension has registered no kernel of {op} for CUDA." in wrong
    said = list(cuda_build_probe.serving())
    assert len(said) == len(table.ops_of("cuda")) and "built without CUDA" in said[0]


@pytest.mark.skipif(not cpu.load().loaded, reason="the C++ extension is not built")
def test_results_and_shapes_are_compared_and_an_exception_is_wrong(monkeypatch) -> None:
    assert list(cuda_build_probe.results()) == []
    assert list(cuda_build_probe.shapes()) == []
    monkeypatch.setattr("calling.run", lambda op, arguments: (torch.rand(2, 2),))
    assert len(list(cuda_build_probe.results())) == 4 * len(table.ops_of("cpu"))
    assert len(list(cuda_build_probe.shapes())) == len(table.OPS)
    monkeypatch.setattr("calling.run", lambda op, arguments: 1 / 0)
    [sentence] = cuda_build_probe.outcome(cuda_build_probe.shapes)
    assert sentence == "shapes fails: ZeroDivisionError: division by zero"
