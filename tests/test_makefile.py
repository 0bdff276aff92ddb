"""Setting up: the steps that make reruns, and that an installed torch is kept."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import setup_env

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")

# A fake interpreter of an environment: it answers the queries of setup_env.py and logs the
# arguments of pip.
FAKE_PYTHON = """\
#!{python}
import json, os, pathlib, sys
here = pathlib.Path(__file__).parent
torch = here / "torch_version"
match sys.argv[1:]:
    case ["-c", _, "torch"]:
        print(torch.read_text() if torch.exists() else "")
    case ["-c", code] if "triton" in code:
        print((here / "has_triton").exists())
    case ["-m", "pip", "install", *arguments]:
        with open(here / "log", "a") as log:
            print(json.dumps(arguments), file=log)
        if arguments[0].startswith("torch"):
            torch.write_text(arguments[0].partition("==")[2])
    case [script, *_] if script.endswith(".py"):
        os.execv({python!r}, [{python!r}, *sys.argv[1:]])
    case arguments:
        sys.exit(f"not foreseen: {{arguments}}")
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a small checkout with a fake environment in .venv."""
    root = tmp_path / "checkout"
    names = ("Makefile", "pyproject.toml", "requirements.lock", "setup.py", ".ci/run")
    for name in (*names, "tools/setup_env.py", "tools/cuda_toolkit.py"):
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
    """Return the environment without the variables that an outer make sets."""
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
    """Return the set-up steps that make would run now."""
    done = make(checkout, "--dry-run", *arguments)
    assert done.returncode == 0, done.stderr
    named = {"tools/setup_env.py": "requirements", "--editable": "package"}
    return [named[word] for word in done.stdout.split() if word in named]


def pip_log(checkout: Path) -> list[list[str]]:
    """Return the arguments of each `pip install`."""
    log = checkout / ".venv" / "bin" / "log"
    return [json.loads(line) for line in log.read_text().splitlines()]


def names_of(arguments: list[str]) -> set[str]:
    """Return the packages in the arguments of a `pip install`."""
    return {argument.partition("==")[0] for argument in arguments if "==" in argument}


def test_what_make_needs_is_made_once(checkout: Path) -> None:
    assert steps(checkout, "test") == ["requirements", "package"]
    assert steps(checkout, "lint") == ["requirements"]
    set_up(checkout)
    assert steps(checkout, "test") == steps(checkout, "demo") == steps(checkout, "bench") == []


def test_what_changed_decides_what_is_made_again(checkout: Path) -> None:
    set_up(checkout)
    # -W pretends that the file has just changed.
    assert steps(checkout, "test", "-W", "csrc/op.cpp") == ["package"]
    assert steps(checkout, "test", "-W", "setup.py") == ["package"]
    assert steps(checkout, "test", "-W", "tools/cuda_toolkit.py") == ["package"]
    assert steps(checkout, "test", "-W", "pyproject.toml") == ["package"]
    assert steps(checkout, "test", "-W", "requirements.lock") == ["requirements", "package"]
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
    torch, locked, package = pip_log(checkout)
    assert torch == ["torch==2.99.0", "--index-url", "https://example.invalid"]
    assert "--no-deps" in locked and "triton" in names_of(locked)
    assert package == ["--no-build-isolation", "--no-deps", "--editable", "."]


def test_an_installed_torch_and_its_triton_are_kept(checkout: Path) -> None:
    (checkout / ".venv" / "bin" / "torch_version").write_text("2.12.1+cu130")
    (checkout / ".venv" / "bin" / "has_triton").touch()
    set_up(checkout)
    locked, package = pip_log(checkout)
    assert "--no-deps" in locked and "--no-deps" in package
    assert {"ninja", "transformers"} <= names_of(locked)
    assert not {"torch", "triton"} & names_of(locked)


@pytest.mark.parametrize("version", ["2.9.1+cpu", "1.13.0"])
def test_a_torch_that_is_too_old_is_refused_in_one_sentence(checkout: Path, version: str) -> None:
    (checkout / ".venv" / "bin" / "torch_version").write_text(version)
    done = make(checkout, "test")
    assert done.returncode != 0
    assert f".venv has torch {version}, but 2.10 or later is needed" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((checkout / ".venv").glob(".clasp-kernels-*"))


@pytest.mark.parametrize("module", ["venv", "ensurepip"])
def test_a_python_that_cannot_make_environments(
    module: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == module else find(name)
    )
    with pytest.raises(SystemExit, match=rf"has no {module} module.* apt install python3") as error:
        setup_env.main(str(tmp_path / "venv"), "torch")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "venv").exists()


def test_a_python_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    with pytest.raises(SystemExit, match=r"Python 3.10 or later is needed, .* give PYTHON="):
        runpy.run_path(setup_env.__file__)


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
    """If PYTHON= is in a virtual environment, its packages are not system packages."""
    if sys.prefix == sys.base_prefix:
        pytest.skip("these tests do not run in a virtual environment")
    setup_env.make_venv(tmp_path / "venv")
    seen = setup_env.installed(tmp_path / "venv" / "bin" / "python", "torch")
    assert seen == importlib.metadata.version("torch")


def test_help_names_every_target() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = next(line for line in text.splitlines() if line.startswith(".PHONY:")).split()[1:]
    shown = make(ROOT).stdout
    assert [name for name in phony if f"make {name} " not in shown] == ["FORCE"]


@pytest.mark.parametrize("failing", ["lint", "docs", "compile-check", "test-deep", "test", None])
def test_ci_fails_when_a_step_fails(checkout: Path, failing: str | None) -> None:
    steps = "\n".join(
        f"{name}:\n\t@echo {name}; {'false' if name == failing else 'true'}"
        for name in ("lint", "docs", "compile-check", "test-deep", "test")
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
        assert done.stdout.split() == ["lint", "docs", "compile-check", "test-deep", "test"]
