"""requirements.lock satisfies pyproject.toml on every Python, and does not contain torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import setup_env
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
# Of the extra `all`. The others are engines, which pin requirements of their own.
ENGINES = {"lmms-eval", "ray", "vllm"}
EXTRAS: dict[str, list[str]] = {
    name: extra
    for name, extra in PYPROJECT["project"]["optional-dependencies"].items()
    if name not in ENGINES
}
LOCK = [
    Requirement(line)
    for line in (ROOT / "requirements.lock").read_text().splitlines()
    if re.match(r"\w", line)
]


def locked(python: str) -> dict[str, str]:
    """Return the locked version of each package for this Python on Linux."""
    here = {
        "python_version": python,
        "python_full_version": f"{python}.1",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
    }
    chosen = [line for line in LOCK if line.marker is None or line.marker.evaluate(here)]
    versions = {canonicalize_name(line.name): str(line.specifier) for line in chosen}
    assert len(versions) == len(chosen)
    assert all(re.fullmatch(r"==[^=*]+", version) for version in versions.values())
    return {name: version.removeprefix("==") for name, version in versions.items()}


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_the_lock_has_what_every_extra_asks_for(python: str) -> None:
    versions = locked(python)
    asked = [*PYPROJECT["build-system"]["requires"], *(line for e in EXTRAS.values() for line in e)]
    for requirement in map(Requirement, asked):
        if requirement.name != PYPROJECT["project"]["name"]:
            version = versions[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), f"{requirement}: run make lock"


def test_the_lock_brings_no_torch() -> None:
    unwanted = re.compile(r"^torch(vision|audio)?$|nvidia|cuda")
    assert not [line for line in LOCK if unwanted.search(line.name)]


def test_registers_are_judged_with_the_triton_that_is_installed() -> None:
    cases = (ROOT / "tools" / "triton_cases.py").read_text()
    judged = re.search(r'^JUDGED_WITH = "(.*)"$', cases, re.M)
    assert judged is not None
    assert locked("3.11")["triton"].startswith(f"{judged[1]}.")


def test_setting_up_refuses_what_the_package_refuses() -> None:
    python, torch = (".".join(map(str, v)) for v in (setup_env.MIN_PYTHON, setup_env.MIN_TORCH))
    assert PYPROJECT["project"]["requires-python"] == f">={python}"
    assert PYPROJECT["project"]["dependencies"] == [f"torch>={torch}"]


def test_the_command_line_asks_for_nothing_that_it_does_not_import() -> None:
    asked = {Requirement(line).name for line in EXTRAS["cli"]} - {PYPROJECT["project"]["name"]}
    sources = "\n".join(path.read_text() for path in (ROOT / "clasp_kernels").rglob("*.py"))
    assert {"rich", "typer"} <= asked
    assert not [n for n in asked if not re.search(rf"^ *(import|from) {n}\b", sources, re.M)]
