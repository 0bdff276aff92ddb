"""Setting up: what make runs again and when, and that an installed torch is left alone."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")

# Stands in for an environment's interpreter: it answers the questions setup_env.py asks, and
# writes down what pip is told, constraints included.
FAKE_PYTHON = """\
#!{python}
import os, pathlib, sys
here = pathlib.Path(__file__).parent
torch = here / "torch_version"
match sys.argv[1:]:
    case ["-c", code, *arguments]:
        if "metadata" in code:
            version = here / f"{{arguments[0]}}_version"
            print(version.read_text() if version.exists() else "")
        else:
            os.execv({python!r}, [{python!r}, *sys.argv[1:]])
    case ["-m", "pip", "install", *arguments]:
        with open(here / "log", "a") as log:
            for argument in arguments:
                path = pathlib.Path(argument)
                if path.name == "constraints.txt":
                    argument = "[" + " ".join(path.read_text().split()) + "]"
                print(argument, end=" ", file=log)
            print(file=log)
        if arguments[0].startswith("torch"):
            torch.write_text(arguments[0].partition("==")[2])
    case [script, *_] if script.endswith(".py"):
        os.execv({python!r}, [{python!r}, *sys.argv[1:]])
    case arguments:
        sys.exit(f"not foreseen: {{arguments}}")
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout small enough to make anything of, with a fake environment in .venv."""
    root = tmp_path / "checkout"
    tools = ("tools/setup_env.py", "tools/cuda_toolkit.py")
    for name in ("Makefile", "pyproject.toml", "setup.py", *tools, ".ci/run"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    (root / "csrc").mkdir()
    (root / "csrc" / "op.cpp").touch()
    (root / "clasp_kernels").mkdir()
    (root / "clasp_kernels" / "_C.abi3.so").touch()
    fake = root / ".venv" / "bin" / "python"
    fake.parent.mkdir(parents=True)
    fake.write_text(FAKE_PYTHON.format(python=sys.executable))
    fake.chmod(0o755)
    return root


def outside_make() -> dict[str, str]:
    """The environment without what an outer make hands down to its recipes."""
    handed_down = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "VENV", "TORCH")
    return {name: value for name, value in os.environ.items() if name not in handed_down}


def make(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", f"PYTHON={sys.executable}", *arguments],
        cwd=checkout,
        env=outside_make(),
        capture_output=True,
        text=True,
        check=False,
    )


def set_up(checkout: Path, *arguments: str) -> None:
    done = make(checkout, ".venv/.clasp-kernels-package", *arguments)
    assert done.returncode == 0, done.stderr


def steps(checkout: Path, *arguments: str) -> list[str]:
    """The set-up steps that make would take now."""
    done = make(checkout, "--dry-run", *arguments)
    assert done.returncode == 0, done.stderr
    commands = [line.split() for line in done.stdout.splitlines() if "setup_env.py" in line]
    return [word for words in commands for word in words if word in ("requirements", "package")]


def pip_log(checkout: Path) -> list[str]:
    log = checkout / ".venv" / "bin" / "log"
    return log.read_text().splitlines() if log.exists() else []


def load_setup_env() -> ModuleType:
    spec = importlib.util.spec_from_file_location("setup_env", ROOT / "tools" / "setup_env.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_make_needs_is_made_once(checkout: Path) -> None:
    assert steps(checkout, "test") == ["requirements", "package"]
    assert steps(checkout, "lint") == ["requirements"]
    set_up(checkout)
    assert steps(checkout, "test") == steps(checkout, "demo") == steps(checkout, "bench") == []


def test_what_changed_decides_what_is_made_again(checkout: Path) -> None:
    set_up(checkout)
    # -W: what if this file were new?
    assert steps(checkout, "test", "-W", "csrc/op.cpp") == ["package"]
    assert steps(checkout, "test", "-W", "setup.py") == ["package"]
    assert steps(checkout, "test", "-W", "tools/cuda_toolkit.py") == ["package"]
    assert steps(checkout, "test", "-W", "pyproject.toml") == ["requirements", "package"]
    (checkout / "clasp_kernels" / "_C.abi3.so").unlink()
    (checkout / "clasp_kernels" / "_C_cuda.abi3.so").touch()
    assert steps(checkout, "test") == ["package"]


def test_clean_removes_both_extensions(checkout: Path) -> None:
    package = checkout / "clasp_kernels"
    (package / "_C_cuda.abi3.so").touch()
    assert make(checkout, "clean").returncode == 0
    assert list(package.iterdir()) == []


def test_an_environment_that_another_checkout_took_is_taken_back(checkout: Path) -> None:
    set_up(checkout)
    other = checkout.with_name("other")
    shutil.copytree(checkout, other, symlinks=True)
    assert steps(other, "test", f"VENV={checkout / '.venv'}") == ["package"]


def test_no_torch_yet(checkout: Path) -> None:
    set_up(checkout, "TORCH=torch==2.99.0 --index-url https://example.invalid")
    first, second, third = pip_log(checkout)
    assert first.split() == ["torch==2.99.0", "--index-url", "https://example.invalid"]
    assert second.startswith("-c [torch==2.99.0 triton==3.7.*] ")
    assert third.split() == ["--no-build-isolation", "--no-deps", "--editable", "."]


def test_an_installed_torch_is_kept(checkout: Path) -> None:
    (checkout / ".venv" / "bin" / "torch_version").write_text("2.12.1+cu130")
    (checkout / ".venv" / "bin" / "triton_version").write_text("3.9.0")
    set_up(checkout)
    requirements, package = pip_log(checkout)
    # pip may install nothing that this torch does not satisfy, and is not asked for torch at all.
    assert requirements.startswith("-c [torch==2.12.1+cu130] ")
    asked = requirements.partition("]")[2].split()
    assert not [name for name in asked if name.startswith(("torch", "clasp"))]
    assert {"ninja", "pybind11", "ruff", "typer"} <= set(asked)
    assert "--no-deps" in package


def test_registers_are_judged_with_the_triton_that_is_installed() -> None:
    cases = (ROOT / "tools" / "triton_cases.py").read_text()
    judged = re.search(r'^JUDGED_WITH = "(.*)"$', cases, re.M)
    assert judged is not None
    assert f"triton=={judged[1]}.*" == load_setup_env().TRITON


def test_a_requirement_in_any_spelling() -> None:
    setup_env = load_setup_env()
    pyproject = {
        "project": {
            "name": "clasp-kernels",
            "dependencies": ["torch >= 2.10"],
            "optional-dependencies": {
                "a": ["rich>=13; python_version > '3'", "numpy"],
                "b": ["clasp_kernels[a]", "torch-geometric", "numpy"],
            },
        },
        "build-system": {"requires": ["setuptools>=77"]},
    }
    assert setup_env.requirements_of(pyproject) == [
        *("numpy", "rich>=13; python_version > '3'", "setuptools>=77", "torch-geometric"),
    ]


def test_the_command_line_asks_for_nothing_that_it_does_not_import() -> None:
    setup_env = load_setup_env()
    pyproject = setup_env.output(sys.executable, setup_env.READ_PYPROJECT, ROOT / "pyproject.toml")
    extra = json.loads(pyproject)["project"]["optional-dependencies"]["cli"]
    asked = {setup_env.name_of(requirement) for requirement in extra} - {"clasp-kernels"}
    sources = "\n".join(path.read_text() for path in (ROOT / "clasp_kernels").rglob("*.py"))
    assert {"rich", "typer"} <= asked
    assert [
        name for name in asked if not re.search(rf"^ *(import|from) {name}\b", sources, re.M)
    ] == []


@pytest.mark.parametrize("module", ["venv", "ensurepip"])
def test_a_python_that_cannot_make_environments(
    module: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup_env = load_setup_env()
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == module else find(name)
    )
    status = setup_env.main(["--venv", str(tmp_path / "venv"), "requirements", "--torch", "torch"])
    error = capsys.readouterr().err
    assert status == 1
    assert error.count("\n") == 1
    assert f"has no {module} module" in error and "apt install python3" in error
    assert not (tmp_path / "venv").exists()


def test_a_folder_that_is_no_environment(checkout: Path) -> None:
    shutil.rmtree(checkout / ".venv")
    (checkout / ".venv").mkdir()
    done = make(checkout, "test")
    assert done.returncode != 0
    assert "has no bin/python" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("venv", ["", " ", "my environment"])
def test_a_path_that_make_cannot_follow_is_refused_in_one_sentence(
    checkout: Path, venv: str
) -> None:
    done = make(checkout, "--dry-run", "test", f"VENV={venv}")
    assert done.returncode != 0
    assert done.stdout == ""
    assert f"VENV='{venv.strip()}' must be the path of one folder, without spaces" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_pip_that_fails_is_named_and_leaves_no_stamp(checkout: Path) -> None:
    python = checkout / ".venv" / "bin" / "python"
    python.write_text(
        python.read_text().replace('["-m", "pip", "install", *arguments]', '["never"]')
    )
    done = make(checkout, "test")
    assert done.returncode != 0
    assert "this command failed with status 1" in done.stderr and "Traceback" not in done.stderr
    assert not list((checkout / ".venv").glob(".clasp-kernels-*"))


def test_a_torch_of_a_parent_environment_is_seen(tmp_path: Path) -> None:
    """PYTHON= inside a virtual environment: its packages are no system packages."""
    if sys.prefix == sys.base_prefix:
        pytest.skip("these tests do not run in a virtual environment")
    code = f"""
import sys; sys.path.insert(0, {str(ROOT / "tools")!r})
import pathlib, setup_env
print(setup_env.installed(setup_env.make_venv(pathlib.Path({str(tmp_path / "venv")!r})), "torch"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == importlib.metadata.version("torch")


def test_help_names_every_target() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = next(line for line in text.splitlines() if line.startswith(".PHONY:")).split()[1:]
    shown = make(ROOT).stdout
    assert [name for name in phony if f"make {name} " not in shown] == ["FORCE"]


@pytest.mark.parametrize("failing", ["lint", "compile-check", "test", None])
def test_ci_fails_when_a_step_fails(checkout: Path, failing: str | None) -> None:
    steps = "\n".join(
        f"{name}:\n\t@echo {name}; {'false' if name == failing else 'true'}"
        for name in ("lint", "compile-check", "test")
    )
    (checkout / "Makefile").write_text(steps + "\n")
    done = subprocess.run(
        ["bash", checkout / ".ci" / "run"],
        env=outside_make(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) == (failing is None)
    if failing is None:
        assert done.stdout.split() == ["lint", "compile-check", "test"]
