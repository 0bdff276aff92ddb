"""Make or complete the virtual environment that the Makefile works in.

Runs under the interpreter the environment is made from, with the standard library alone.
``requirements`` makes the environment and installs torch (only where there is none) and everything
else that pyproject.toml asks for; ``package`` builds and installs this checkout in editable mode.
The two are apart because a change in csrc/ needs only the second, and linting only the first.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import site
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MIN_PYTHON = (3, 10)

# Run by the environment's own interpreter, so that its site-packages are the ones asked about.
# pip carries the TOML reader that Python 3.10 lacks.
PACKAGE_VERSION = """
import importlib.metadata, sys
try:
    print(importlib.metadata.version(sys.argv[1]))
except importlib.metadata.PackageNotFoundError:
    pass
"""
READ_PYPROJECT = """
import json, sys
try:
    import tomllib
except ModuleNotFoundError:
    from pip._vendor import tomli as tomllib
with open(sys.argv[1], "rb") as file:
    print(json.dumps(tomllib.load(file)))
"""


# The Triton that `make compile-check` judges registers with, as other releases allot others
# (tools/triton_cases.py). Only where torch has not brought its own.
TRITON = "triton==3.7.*"


class SetupError(Exception):
    """Something the person at the keyboard can mend; its text says how."""


def run(*command: str | Path) -> None:
    try:
        subprocess.run([str(part) for part in command], check=True, cwd=ROOT)
    except subprocess.CalledProcessError as error:
        shown = " ".join(str(part) for part in command)
        raise SetupError(f"this command failed with status {error.returncode}: {shown}") from None


def output(python: Path, code: str, *arguments: str | Path) -> str:
    command = [str(python), "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SetupError(f"{python} does not work: {last_line(done.stderr)}")
    return done.stdout.strip()


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it gave no reason"])[-1]


def installed(python: Path, package: str) -> str | None:
    """The version that `python` sees, read from metadata because importing may take seconds."""
    return output(python, PACKAGE_VERSION, package) or None


def make_venv(venv: Path) -> Path:
    """The environment's interpreter; an environment that exists is used as it is."""
    python = venv / "bin" / "python"
    if python.exists():
        return python
    if venv.exists():
        raise SetupError(
            f"VENV={venv} exists but has no bin/python: remove it, or give another VENV=."
        )
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if missing:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise SetupError(
            f"{sys.executable} has no {missing[0]} module and so cannot make a virtual environment:"
            f" install it (Debian and Ubuntu: apt install python{version}-venv), or give"
            " PYTHON= another Python or VENV= an existing environment."
        )
    share = installed(Path(sys.executable), "torch") is not None
    run(sys.executable, "-m", "venv", *(["--system-site-packages"] if share else []), venv)
    if share and sys.prefix != sys.base_prefix:
        # A virtual environment's own packages are no system packages: show them by their path,
        # and with addsitedir what they in turn show.
        purelib = output(python, "import sysconfig; print(sysconfig.get_path('purelib'))")
        Path(purelib, "parent_environment.pth").write_text(
            "".join(f"import site; site.addsitedir({path!r})\n" for path in site.getsitepackages())
        )
    return python


def requirements_of(pyproject: dict[str, object]) -> list[str]:
    """What building, running and developing need, torch and the package itself left out.

    An extra may name the package's other extras (``clasp_kernels[hf,cli]``); as all extras are
    taken, those lines say nothing new.
    """
    project = pyproject["project"]
    build_system = pyproject["build-system"]
    assert isinstance(project, dict) and isinstance(build_system, dict)
    wanted = [*build_system["requires"], *project.get("dependencies", [])]
    for extra in project.get("optional-dependencies", {}).values():
        wanted += extra
    own = {project["name"], project["name"].replace("_", "-"), project["name"].replace("-", "_")}
    names = {requirement: name_of(requirement) for requirement in wanted}
    return sorted({line for line, name in names.items() if name not in own and name != "torch"})


def name_of(requirement: str) -> str:
    end = next((i for i, c in enumerate(requirement) if not (c.isalnum() or c in "._-")), None)
    return requirement[:end]


def install_requirements(venv: Path, torch: str) -> None:
    python = make_venv(venv)
    version = installed(python, "torch")
    if version is None:
        print(f"Installing {torch}. A CUDA build is some gigabytes; TORCH= chooses another.")
        run(python, "-m", "pip", "install", *torch.split())
        version = installed(python, "torch")
        if version is None:
            raise SetupError(f"TORCH={torch!r} installed no torch.")
    print(f"Using torch {version} in {venv}.")
    pyproject = json.loads(output(python, READ_PYPROJECT, ROOT / "pyproject.toml"))
    with tempfile.TemporaryDirectory() as folder:
        # Whatever a requirement asks for, pip may keep this torch or fail: never replace it.
        constraints = Path(folder) / "constraints.txt"
        triton = [] if installed(python, "triton") else [TRITON]
        constraints.write_text("\n".join([f"torch=={version}", *triton]))
        run(python, "-m", "pip", "install", "-c", constraints, *requirements_of(pyproject))


def install_package(venv: Path) -> None:
    # No build isolation: an isolated build would download a second torch of its own.
    run(
        venv / "bin" / "python",
        *("-m", "pip", "install", "--no-build-isolation", "--no-deps", "--editable", "."),
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make or complete the virtual environment.")
    parser.add_argument("--venv", type=Path, required=True)
    steps = parser.add_subparsers(dest="step", required=True)
    steps.add_parser("requirements").add_argument("--torch", required=True)
    steps.add_parser("package")
    arguments = parser.parse_args(argv)
    # Not resolved: a symlinked interpreter would lead out of the environment.
    venv = Path(os.path.abspath(arguments.venv))
    try:
        if sys.version_info < MIN_PYTHON:
            raise SetupError(
                f"Python {'.'.join(map(str, MIN_PYTHON))} or later is needed,"
                f" {sys.executable} is {sys.version.split()[0]}: give PYTHON= another."
            )
        if arguments.step == "requirements":
            install_requirements(venv, arguments.torch)
        else:
            install_package(venv)
    except (SetupError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
