"""The compile check must fail on code that another compiler or includer would reject."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")

HEADER = "#pragma once\n#include <cstdint>\ninline int64_t twice(int64_t x) { return 2 * x; }\n"
# Kernels that a compiler with more instruction sets switched on rejects.
KERNELS = "#if defined(__AVX2__) || defined(__ARM_FEATURE_SVE)\n#error\n#endif\n"
SOURCE = '#include "shared/twice.h"\nint64_t four(int64_t x) { return twice(twice(x)); }\n'


def compile_check(folder: Path, **files: str) -> subprocess.CompletedProcess[str]:
    """Run the check in a checkout with these files; shared__twice_h is csrc/shared/twice.h."""
    for name in ("setup.py", "tools/compile_check.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for name, text in files.items():
        stem, _, suffix = name.replace("__", "/").rpartition("_")
        path = folder / "csrc" / f"{stem}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return subprocess.run(
        [sys.executable, folder / "tools" / "compile_check.py"],
        env={**os.environ, "CXX": "g++"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_sound_code_passes_and_nothing_is_left_out_without_a_word(tmp_path: Path) -> None:
    done = compile_check(tmp_path, shared__twice_h=HEADER, cpu__four_cpp=SOURCE)
    assert done.returncode == 0, done.stdout + done.stderr
    for compiler in ("g++", "clang++", "aarch64-linux-gnu-g++"):
        verdict = "ok " if shutil.which(compiler) else "not checked: "
        lines = [line for line in done.stdout.splitlines() if line.startswith(verdict)]
        assert any(f" {compiler}:" in line for line in lines), done.stdout


def test_unsound_code_fails(tmp_path: Path) -> None:
    done = compile_check(
        tmp_path,
        shared__twice_h=HEADER,
        shared__leans_on_its_includer_h=HEADER.replace("#include <cstdint>", ""),
        shared__needs_torch_h="#include <torch/headeronly/macros/Macros.h>\n",
        needs_torch_h="#include <torch/headeronly/macros/Macros.h>\n",
        cpu__four_cpp=SOURCE,
        cpu__warns_cpp=SOURCE.replace("{", "{ int idle;"),
        simd__dispatch_h=f"#pragma once\n{KERNELS}",
        cpu__capability_cpp='#include "simd/dispatch.h"\n',
    )
    assert done.returncode == 1
    complaints = {line.partition(": ")[0] for line in done.stdout.splitlines() if ": g++ " in line}
    assert complaints == {
        "csrc/shared/leans_on_its_includer.h",
        "csrc/shared/needs_torch.h",
        "csrc/cpu/warns.cpp",
        "csrc/cpu/capability.cpp",
    }
