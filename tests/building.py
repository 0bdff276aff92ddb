"""Build copies of the project, and read the output of the build."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def copy_project(target: Path) -> Path:
    """Copy the files of a source distribution, without build outputs of the checkout."""
    target.mkdir(exist_ok=True)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target / name)
    (target / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "cuda_toolkit.py", target / "tools")
    shutil.copytree(ROOT / "csrc", target / "csrc")
    built = shutil.ignore_patterns("*.so", "_build_info.py", "__pycache__")
    shutil.copytree(ROOT / "clasp_kernels", target / "clasp_kernels", ignore=built)
    return target


def run(
    *command: str | Path, cwd: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=os.environ | (env or {}),
        capture_output=True,
        text=True,
        check=False,
    )


def build_extension(project: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Build the extension, by default without CUDA kernels, which can take minutes."""
    env = {"CLASP_KERNELS_BUILD_CUDA": "0"} | env
    return run(sys.executable, "setup.py", "build_ext", *arguments, cwd=project, env=env)


def assert_one_sentence(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode != 0
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("clasp_kernels: ")]
    for part in parts:
        assert part in line
