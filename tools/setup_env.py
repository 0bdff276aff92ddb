"""Creates or completes the Makefile's virtual environment: setup_env.py VENV TORCH.

Needs only the standard library, and runs under the interpreter that the environment is created
from. Installs torch only if it is missing, and everything else as pinned in requirements.lock. uv,
which writes that lock, is not an option: it ignores the settings by which pip finds the right build
of torch, and a machine may have only python3.
"""

import importlib.util
import os
import re
import site
import subprocess
import sys
from pathlib import Path

MIN_PYTHON, MIN_TORCH = (3, 10), (2, 10)
if sys.version_info < MIN_PYTHON:
    sys.exit(
        f"error: Python 3.10 or later is needed, {sys.executable} is {sys.version.split()[0]}:"
        " give PYTHON= another."
    )

LOCK = Path(__file__).resolve().parent.parent / "requirements.lock"
VERSION = """
import importlib.metadata, sys
print(next((found.version for found in importlib.metadata.distributions(name=sys.argv[1])), ""))
"""
# torch's CUDA builds pin their own Triton. torch's builds for AMD name their Triton differently.
HAS_TRITON = "import importlib.util; print(importlib.util.find_spec('triton') is not None)"


def run(*command: str | Path, stdout: int | None = None) -> str:
    done = subprocess.run(command, stdout=stdout, text=True)
    if done.returncode != 0:
        shown = " ".join(map(str, command[:4]))
        sys.exit(f"error: this command failed with status {done.returncode}: {shown} ...")
    return done.stdout


def installed(python: str | Path, package: str) -> str:
    """Returns the version that `python` sees, or "". Reads metadata, as an import may take
    seconds."""
    return run(python, "-c", VERSION, package, stdout=subprocess.PIPE).strip()


def make_venv(venv: Path) -> None:
    if venv.exists():
        sys.exit(
            f"error: VENV={venv} exists but has no bin/python: remove it, or give another VENV=."
        )
    for module in ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            debian = f"apt install python3.{sys.version_info.minor}-venv"
            sys.exit(
                f"error: {sys.executable} has no {module} module and so cannot make a virtual"
                f" environment: install it (Debian and Ubuntu: {debian}), or give"
                " PYTHON= another Python or VENV= an existing environment."
            )
    share = ["--system-site-packages"] if installed(sys.executable, "torch") else []
    run(sys.executable, "-m", "venv", *share, venv)
    if share and sys.prefix != sys.base_prefix:
        # --system-site-packages does not cover the packages of a parent virtual environment. Add
        # them by path; addsitedir also processes their .pth files.
        (packages,) = venv.glob("lib/python3.*/site-packages")
        (packages / "parent_environment.pth").write_text(
            "".join(f"import site; site.addsitedir({path!r})\n" for path in site.getsitepackages())
        )


def main(venv: str, torch: str) -> None:
    # Not resolved: a symlinked interpreter would lead out of the environment.
    python = Path(os.path.abspath(venv), "bin", "python")
    if not python.exists():
        make_venv(python.parent.parent)
    pip_install = (python, "-m", "pip", "install")
    if not installed(python, "torch"):
        print(f"Installing {torch}; a CUDA build has gigabytes, see TORCH=.", flush=True)
        run(*pip_install, *torch.split())
    version = installed(python, "torch") or sys.exit(f"error: {torch} installed no torch.")
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < MIN_TORCH:
        sys.exit(
            f"error: {venv} has torch {version}, but 2.10 or later is needed: upgrade it there, or"
            " give another VENV=, PYTHON= or TORCH=."
        )
    print(f"Using torch {version} in {venv}.", flush=True)
    locked = [line for line in LOCK.read_text().splitlines() if re.match(r"\w", line)]
    if run(python, "-c", HAS_TRITON, stdout=subprocess.PIPE).strip() == "True":
        locked = [line for line in locked if not line.startswith("triton==")]
    # The lock is complete. --no-deps keeps it from replacing torch.
    run(*pip_install, "--no-deps", *locked)


if __name__ == "__main__":
    main(*sys.argv[1:])
