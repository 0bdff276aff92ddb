"""The report for bug reports must work whatever is broken, so these tests break everything."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Protocol

import pytest
import torch

import clasp_kernels
from clasp_kernels.cli import environment

PACKAGE = Path(clasp_kernels.__file__).parent
SECTIONS = [
    *("system", "toolchain", "gpu", "packages"),
    *("torch", "extension", "backends", "environment"),
]


class Report(Protocol):
    def __call__(self, first_on_path: Path = ..., **variables: str) -> str: ...


@pytest.fixture(scope="session")
def path_without_typer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that hides Typer, without which the report is plain text."""
    folder = tmp_path_factory.mktemp("without_typer")
    folder.joinpath("typer.py").write_text("raise ModuleNotFoundError(name=__name__)")
    return folder


@pytest.fixture
def print_report(path_without_typer: Path) -> Report:
    def run(first_on_path: Path = PACKAGE.parent, **variables: str) -> str:
        path = f"{first_on_path}{os.pathsep}{path_without_typer}"
        done = subprocess.run(
            [sys.executable, "-m", "clasp_kernels.cli", "doctor"],
            env={**os.environ, "PYTHONPATH": path, **variables},
            cwd=first_on_path,
            capture_output=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        assert done.stderr.decode() == (
            "clasp: typer is not installed; the command line needs the [cli] extra: "
            'pip install "clasp-kernels[cli]"\n'
        )
        return done.stdout.decode()

    return run


def parse(text: str) -> environment.Report:
    """Parse the printed report."""
    report: environment.Report = {}
    section: environment.Section = {}
    for line in text.splitlines():
        if not line.startswith(" "):
            section = report[line] = {}
        elif not line.startswith("   "):
            name, _, value = line.strip().partition("  ")
            section[name] = value.strip()
    return report


@pytest.fixture
def package_copy(tmp_path: Path) -> Path:
    """Return a folder with a copy of the package to break, to be put first on the path."""
    ignored = shutil.ignore_patterns("assets", "__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "clasp_kernels", ignore=ignored)
    return tmp_path


def test_the_report_of_a_sound_installation(print_report: Report) -> None:
    report = parse(print_report())
    assert list(report) == SECTIONS
    assert report["torch"]["version"] == torch.__version__
    assert report["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert report["extension"]["version"] == clasp_kernels.__version__
    cuda = clasp_kernels.backend_report().cuda
    assert report["extension"]["cuda loaded"] == ("yes" if cuda.loaded else "no")
    assert report["extension"]["cuda reason"] == cuda.reason
    served = {row.op: row for row in clasp_kernels.backend_report().ops if row.device == "cpu"}
    for op, row in served.items():
        assert report["backends"][f"{op} on cpu"].startswith(f"{row.backend}: ")
    assert not [
        value for section in report.values() for value in section.values() if "error:" in value
    ]


@pytest.mark.parametrize(
    ("broken", "reported"),
    [
        ("raise ModuleNotFoundError('no module named torch')", "no module named torch"),
        ("raise RuntimeError('driver too old')", "RuntimeError: driver too old"),
        ("def ", "SyntaxError"),
        ("import sys; sys.exit('gone')", "exit status 1: gone"),
        ("import os; os.abort()", "SIGABRT"),
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
    ],
)
def test_a_torch_that_cannot_be_imported(
    tmp_path: Path, broken: str, reported: str, print_report: Report
) -> None:
    (tmp_path / "torch.py").write_text(broken)
    (tmp_path / "clasp_kernels").symlink_to(PACKAGE)
    report = parse(print_report(tmp_path))
    assert list(report) == SECTIONS
    for name in ("torch", "extension", "backends"):
        assert report[name]["status"].startswith("error: ")
        assert reported in report[name]["status"]
    assert report["system"]["python"].startswith(sys.version.split()[0])


def test_an_extension_that_is_no_library(package_copy: Path, print_report: Report) -> None:
    for library in package_copy.glob("clasp_kernels/_C*.so"):
        library.unlink()
    (package_copy / "clasp_kernels" / "_C.abi3.so").write_bytes(b"not an ELF file")
    report = parse(print_report(package_copy))
    assert report["extension"]["loaded"] == "no"
    assert "does not load" in report["extension"]["reason"]
    assert report["backends"]["select_tokens on cpu"].startswith("reference: ")


def test_an_extension_that_was_not_built(package_copy: Path, print_report: Report) -> None:
    for library in package_copy.glob("clasp_kernels/_C*.so"):
        library.unlink()
    report = parse(print_report(package_copy))
    assert report["extension"]["loaded"] == "no"
    assert report["extension"]["library"] == "not found"
    assert "pip install" in report["extension"]["reason"]


def test_a_crash_while_the_extension_loads_costs_only_the_sections_that_load_it(
    package_copy: Path, print_report: Report
) -> None:
    (package_copy / "clasp_kernels" / "backends" / "__init__.py").write_text(
        "import os; os.abort()"
    )
    report = parse(print_report(package_copy))
    assert report["torch"]["version"] == torch.__version__
    assert "SIGABRT" in report["extension"]["status"]
    assert "SIGABRT" in report["backends"]["status"]
    assert "environment" in report


def test_a_package_whose_modules_do_not_parse(package_copy: Path, print_report: Report) -> None:
    (package_copy / "clasp_kernels" / "backends" / "__init__.py").write_text("def ")
    report = parse(print_report(package_copy))
    assert "SyntaxError" in report["extension"]["status"]
    assert report["torch"]["version"] == torch.__version__


def test_a_backend_that_does_not_exist_is_reported_in_its_place(print_report: Report) -> None:
    report = parse(print_report(CLASP_KERNELS_BACKEND="abacus"))
    assert report["environment"]["CLASP_KERNELS_BACKEND"] == "abacus"
    assert "abacus" in report["backends"]["status"]
    assert report["torch"]["version"] == torch.__version__


def test_a_terminal_that_only_knows_ascii(tmp_path: Path, print_report: Report) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError")
    (tmp_path / "clasp_kernels").symlink_to(PACKAGE)
    text = print_report(tmp_path, CLASP_KERNELS_BACKEND="référence", PYTHONIOENCODING="ascii")
    assert r"r\xe9f\xe9rence" in text


def test_a_standard_output_that_is_closed(path_without_typer: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", f"exec '{sys.executable}' -m clasp_kernels.cli doctor >&-"],
        env={**os.environ, "PYTHONPATH": f"{PACKAGE.parent}{os.pathsep}{path_without_typer}"},
        stderr=subprocess.PIPE,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == b"Error: the result cannot be written to stdout: it is closed\n"


def test_a_hang_ends_and_what_came_before_it_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "environment.py"
    script.write_text(
        "import time\n"
        "def _answer(names):\n"
        f'    print(\'{environment.MARKER}\' \'["torch", {{"version": "9"}}]\', flush=True)\n'
        "    time.sleep(60)\n"
    )
    monkeypatch.setattr(environment, "__file__", str(script))
    monkeypatch.setattr(environment, "PROBE_TIMEOUT_SECONDS", 1)
    report = environment.collect()
    assert report["torch"] == {"version": "9"}
    assert report["extension"] == {"status": "error: no answer within 1 s"}
    assert report["backends"] == {"status": "error: no answer within 1 s"}


@pytest.fixture
def no_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable the probes, which import torch for seconds, in tests that do not need them."""
    monkeypatch.setattr(environment, "PROBES", {})


@pytest.mark.usefixtures("no_probes")
def test_no_command_can_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    report = environment.collect()
    assert set(report["toolchain"].values()) == {"not found"}
    assert report["gpu"] == {"nvidia-smi": "not found"}


@pytest.mark.usefixtures("no_probes")
def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "gcc"
    compiler.write_text("#!/bin/sh\necho licence expired >&2\nexit 3\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    toolchain = environment.collect()["toolchain"]
    assert toolchain["gcc"] == "error: RuntimeError: exit status 3: licence expired"


@pytest.mark.usefixtures("no_probes")
def test_variables_that_matter_are_shown_and_others_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CLASP_KERNELS_STRICT", "1")
    monkeypatch.setenv("SECRET_TOKEN", "hidden")
    variables = environment.collect()["environment"]
    assert variables["CLASP_KERNELS_STRICT"] == "1"
    assert "SECRET_TOKEN" not in variables


@pytest.mark.usefixtures("no_probes")
def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "PACKAGES", ("torch", "no-such-distribution"))
    packages = environment.collect()["packages"]
    assert packages["no-such-distribution"] == "not installed"
    assert packages["torch"] != "not installed"


@pytest.mark.parametrize(
    "broken",
    ["platform.platform", "metadata.version", "subprocess.run", "_cpuinfo", "_environment"],
)
@pytest.mark.usefixtures("no_probes")
def test_anything_that_raises_becomes_text(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    def explode(*_: object, **__: object) -> None:
        raise RuntimeError("exploded")

    monkeypatch.setattr(f"clasp_kernels.cli.environment.{broken}", explode)
    text = environment.render(environment.collect())
    assert "error: RuntimeError: exploded" in text
