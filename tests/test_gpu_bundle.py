"""What `make gpu-bundle` packs for a machine without a network."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import gpu_bundle
import pytest

GIT = ("git", "-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false")


def git(repository: Path, *arguments: str) -> None:
    subprocess.run([*GIT, *arguments], cwd=repository, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a checkout with one commit."""
    root = tmp_path / "checkout"
    root.mkdir()
    git(root, "init")
    (root / "kernel.cu").write_text("committed")
    (root / ".gitignore").write_text("*.so\n")
    (root / "built.so").write_text("ignored")
    git(root, "add", ".")
    git(root, "commit", "-m", "first")
    monkeypatch.setattr(gpu_bundle, "ROOT", root)
    return root


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the only folder in which pip looks: wheels of one package for two Pythons."""
    folder = tmp_path / "index"
    folder.mkdir()
    for tag in ("cp311-cp311-manylinux_2_28_x86_64", "cp312-cp312-manylinux_2_28_x86_64"):
        with zipfile.ZipFile(folder / f"baseline-1.0-{tag}.whl", "w") as wheel:
            wheel.writestr(
                "baseline-1.0.dist-info/METADATA",
                "Metadata-Version: 2.1\nName: baseline\nVersion: 1.0\nRequires-Dist: torch\n",
            )
            wheel.writestr("baseline-1.0.dist-info/WHEEL", f"Wheel-Version: 1.0\nTag: {tag}\n")
            wheel.writestr("baseline-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


@pytest.fixture
def pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Return a function that packs into a folder, which it returns."""

    def run(*options: str, python: str = "3.12") -> Path:
        folder = tmp_path / "out" / "gpu-bundle"
        arguments = ["gpu_bundle.py", str(folder), "--python", python, *options]
        monkeypatch.setattr(sys, "argv", arguments)
        gpu_bundle.main()
        return folder

    return run


def test_the_commit_and_wheels_for_the_other_python_are_packed(
    repository, index, pack, capsys
) -> None:
    folder = pack("--wheels", "baseline==1.0")
    with tarfile.open(f"{folder}.tar.gz") as tar:
        files = {name for name in tar.getnames() if "." in Path(name).name}
    assert files == {
        "gpu-bundle/clasp_kernels/.gitignore",
        "gpu-bundle/clasp_kernels/kernel.cu",
        "gpu-bundle/wheels/baseline-1.0-cp312-cp312-manylinux_2_28_x86_64.whl",
    }
    output = capsys.readouterr().out
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True)
    assert f"COMMIT={head.stdout.decode().strip()} WHEELS=../wheels" in output
    assert "benchmarks/gpu.sh short" in output and "MiB" in output and "Left out" not in output


def test_what_pip_does_not_have_is_named_and_left_out(repository, index, pack, capsys) -> None:
    folder = pack("--wheels", "baseline==1.0", "another==2", "--sources", "third==3")
    assert len(list((folder / "wheels").iterdir())) == 1
    lines = [it for it in capsys.readouterr().out.splitlines() if it.startswith("Left out")]
    assert [line.split(",")[0] for line in lines] == ["Left out: another==2", "Left out: third==3"]
    assert all("No matching distribution" in line for line in lines)


def test_changes_that_are_not_committed_are_refused_and_untracked_files_named(
    repository, pack, capsys
) -> None:
    (repository / "note.txt").touch()
    pack()
    assert "Left out, as git does not track them: note.txt." in capsys.readouterr().out
    (repository / "kernel.cu").write_text("changed")
    with pytest.raises(SystemExit, match=r"changes are not: kernel\.cu\. Commit or stash"):
        pack()


def test_a_bundle_that_is_too_large_is_an_error(repository, pack, monkeypatch) -> None:
    monkeypatch.setattr(gpu_bundle, "MOST_MIB", 0)
    with pytest.raises(SystemExit, match="the bundle has 0 MiB, and may have 0"):
        pack()


def test_a_python_that_is_none_and_a_folder_without_git_are_errors(
    repository, pack, tmp_path, monkeypatch
) -> None:
    with pytest.raises(SystemExit, match=r"GPU_PYTHON must be a version such as 3\.12, got '3'"):
        pack(python="3")
    monkeypatch.setattr(gpu_bundle, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(SystemExit, match="the sources are taken from git, which says: fatal"):
        pack()
