"""Builds the wheel with CUDA kernels next to a CUDA build of torch and tries it; needs no GPU.

    cuda_build_check.py FOLDER TORCH

Needs only the standard library, and runs under the interpreter that the environment in FOLDER is
created from. TORCH is what is installed there, such as "torch==2.14.1". cuda_build_probe.py says
what is tried.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROBE = ROOT / "tools" / "cuda_build_probe.py"
LOCK = ROOT / "requirements.lock"
# To build the wheel, and for the inputs of the ops' tests.
NEEDED = ("setuptools", "wheel", "ninja", "numpy", "hypothesis")
# One architecture: this proves that the extension builds and loads, `make compile-check` compiles
# for all.
BUILD = {"CLASP_KERNELS_BUILD_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "9.0"}
HAS_CUDA = "import torch; raise SystemExit(torch.version.cuda is None)"


def main(folder: str, torch: str) -> None:
    environment = Path(folder).resolve()
    python = environment / "bin" / "python"
    if not python.exists():
        run("make an environment", [sys.executable, "-m", "venv", environment])
    pip = [python, "-m", "pip"]
    quiet = ["--quiet", "--disable-pip-version-check"]
    run(f"install {torch}, which has gigabytes", [*pip, "install", *quiet, *torch.split()])
    run("install what the build needs", [*pip, "install", *quiet, "-c", LOCK, *NEEDED])
    if subprocess.run([python, "-c", HAS_CUDA], env=inherited(), check=False).returncode != 0:
        sys.exit(f"error: CUDA_TORCH={torch} must be a CUDA build of torch, and is none.")
    with tempfile.TemporaryDirectory(prefix="cuda-build-") as outside:
        wheels = ["--no-build-isolation", "--no-deps", "--wheel-dir", outside]
        run("build the wheel", [*pip, "wheel", *quiet, *wheels, ROOT], more=BUILD)
        [wheel] = Path(outside).glob("*.whl")
        print(f"    {wheel.name}: {wheel.stat().st_size / 2**20:.1f} MiB", flush=True)
        force = ["--no-deps", "--force-reinstall"]
        run("install the wheel", [*pip, "install", *quiet, *force, wheel])
        # Not from the checkout, whose package would be imported.
        run("try it", [python, PROBE], cwd=outside)


def run(
    what: str, command: Sequence[object], cwd: str | None = None, more: Mapping[str, str] = {}
) -> None:
    """Runs a command, says how long it took, and ends this program if it fails."""
    print(f"{what} ...", flush=True)
    start = time.monotonic()
    done = subprocess.run([*map(str, command)], cwd=cwd, env={**inherited(), **more}, check=False)
    if done.returncode != 0:
        shown = shlex.join(map(str, command))
        sys.exit(f"error: could not {what}: status {done.returncode} of `{shown}`.")
    print(f"    {time.monotonic() - start:.0f} s", flush=True)


def inherited() -> dict[str, str]:
    """The environment without what would change what is built, imported or chosen."""
    ours = ("CLASP_KERNELS_", "PYTHONPATH", "TRITON_INTERPRET")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


if __name__ == "__main__":
    main(*sys.argv[1:])
