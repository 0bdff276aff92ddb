"""Building: the content of the wheel, the linked libraries, and error messages."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from building import ROOT, assert_one_sentence, build_extension, copy_project, run
from torch.utils import cpp_extension

pytestmark = pytest.mark.deep


def build_wheel(project: Path) -> subprocess.CompletedProcess[str]:
    return run(
        *(sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-v"),
        *("--wheel-dir", project / "dist", project),
        cwd=project,
        # For speed: optimisation does not matter here, and test_cuda_build.py builds CUDA kernels.
        env={"CXXFLAGS": "-O0", "CLASP_KERNELS_BUILD_CUDA": "0"},
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the project in which a wheel has been built."""
    project = copy_project(tmp_path_factory.mktemp("project"))
    done = build_wheel(project)
    assert done.returncode == 0, done.stdout + done.stderr
    return project


@pytest.fixture(scope="module")
def wheel(project: Path) -> Path:
    (wheel,) = (project / "dist").iterdir()
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the wheel's content, like site-packages."""
    folder = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_one_wheel_serves_every_python_from_3_10(wheel: Path) -> None:
    assert re.fullmatch(r"clasp_kernels-0\.1\.0-cp310-abi3-\w+\.whl", wheel.name)


def test_the_wheel_holds_code_extension_and_assets(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {
        "clasp_kernels/__init__.py",
        "clasp_kernels/_C.abi3.so",
        "clasp_kernels/_build_info.py",
        "clasp_kernels/py.typed",
    } <= names
    assets = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "clasp_kernels" / "assets").rglob("*")
        if path.is_file()
    }
    assert assets <= names, f"not in the wheel: {sorted(assets - names)}"
    assert not [name for name in names if name.startswith(("csrc", "tests"))]


def test_the_extension_of_the_wheel_serves_the_ops(installed: Path, tmp_path: Path) -> None:
    # Set the path inside, so that neither the checkout nor an editable install comes first.
    code = """
import sys
sys.path.insert(0, sys.argv[1])
import clasp_kernels, torch
assert clasp_kernels.__file__.startswith(sys.argv[1]), clasp_kernels.__file__
with clasp_kernels.use_backend("cpu"):
    kept = clasp_kernels.select_tokens(torch.eye(4)[None], torch.arange(4.0)[None], 2, 1)
print(kept.indices.tolist())
"""
    done = run(sys.executable, "-c", code, installed, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[[0, 3]]"


def test_the_wheel_runs_where_there_is_no_compiler(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    done = run(*pip, "install", "-q", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    # Import torch from its folder. This does not process .pth files, so an editable install of the
    # package is not found.
    site = Path(torch.__file__).parent.parent
    code = """
import shutil
assert not any(map(shutil.which, ("cc", "c++", "gcc", "g++", "clang", "clang++", "ninja")))
import clasp_kernels, torch
with clasp_kernels.use_backend("cpu"):
    kept = clasp_kernels.select_tokens(torch.eye(4)[None], torch.arange(4.0)[None], 2, 1)
print(clasp_kernels.__file__, kept.indices.tolist())
"""
    env = {"PATH": str(environment / "bin"), "PYTHONPATH": str(site)}
    done = run(python, "-c", code, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    file, _, indices = done.stdout.strip().partition(" ")
    assert Path(file).is_relative_to(environment)
    assert indices == "[[0, 3]]"


def test_build_info_names_torch_and_compiler(installed: Path) -> None:
    namespace: dict[str, str] = {}
    exec((installed / "clasp_kernels" / "_build_info.py").read_text(), namespace)
    assert namespace["TORCH_VERSION"] == torch.__version__
    assert re.search(r"\d+\.\d+", namespace["COMPILER"])


def needs(tool: str) -> str:
    path = shutil.which(tool)
    if path is None:
        pytest.skip(f"{tool} is not installed")
    return path


def test_the_extension_uses_stable_interfaces_only(installed: Path) -> None:
    library = installed / "clasp_kernels" / "_C.abi3.so"
    done = run(needs("nm"), "-D", "--undefined-only", library, cwd=installed)
    symbols = {line.split()[-1].partition("@")[0] for line in done.stdout.splitlines()}
    assert any(name.startswith(("aoti_torch_", "torch_")) for name in symbols)
    # torch's C++ symbols contain its namespaces. The stable ABI only has C symbols.
    unstable = [name for name in symbols if re.match(r"_Z\w*?(2at|3c10|5torch|8pybind11)", name)]
    assert not unstable
    python = {name for name in symbols if name.startswith(("Py", "_Py"))}
    assert python == {"PyModule_Create2"}, "outside the limited API of Python 3.10?"


@pytest.mark.skipif("sys.platform != 'linux' or os.uname().machine != 'x86_64'")
def test_only_dispatched_functions_need_a_recent_processor(installed: Path) -> None:
    """All other functions must run on any x86-64, so they must not use wide registers."""
    library = installed / "clasp_kernels" / "_C.abi3.so"
    listing = run(needs("objdump"), "-d", "-C", "--no-show-raw-insn", library, cwd=installed).stdout
    function, wide = "", set()
    for line in listing.splitlines():
        if match := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            function = match[1]
        elif re.search(r"%[yz]mm\d|\tv[a-z]", line):
            wide.add(function)
    assert wide, "where are the AVX kernels?"
    assert not [name for name in wide if not re.search(r"avx2::|avx512::|avx512_bf16::", name)]


def test_a_second_build_compiles_nothing_and_keeps_nothing_that_is_gone(project: Path) -> None:
    (library,) = project.glob("build/native-*/_C.abi3.so")
    before = library.stat().st_mtime_ns
    (package,) = project.glob("build/lib*/clasp_kernels")
    (package / "deleted_since.py").touch()
    done = build_wheel(project)
    assert "no work to do" in done.stdout + done.stderr
    assert library.stat().st_mtime_ns == before
    (wheel,) = (project / "dist").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        assert "clasp_kernels/deleted_since.py" not in archive.namelist()
        assert "clasp_kernels/_C.abi3.so" in archive.namelist()


def test_without_torch(tmp_path: Path) -> None:
    project = copy_project(tmp_path)
    (tmp_path / "absent").mkdir()
    (tmp_path / "absent" / "torch.py").write_text("raise ImportError('No module named torch')")
    done = build_extension(project, PYTHONPATH=str(tmp_path / "absent"))
    assert_one_sentence(done, "install torch>=2.10", "--no-build-isolation")


def test_with_a_torch_that_is_too_old(tmp_path: Path) -> None:
    project = copy_project(tmp_path)
    done = build_extension(project, PYTHONPATH=str(fake_torch(tmp_path, "2.9.1")))
    assert_one_sentence(done, "torch 2.9.1 is installed", "torch 2.10")


def fake_torch(folder: Path, version: str) -> Path:
    """Write a torch that only knows its version and headers, for time, and return its folder."""
    package = folder / "fake" / "torch"
    (package / "utils").mkdir(parents=True)
    (package / "__init__.py").write_text(f"__version__ = {version!r}")
    (package / "utils" / "__init__.py").touch()
    (package / "utils" / "cpp_extension.py").write_text(
        f"def include_paths(): return {cpp_extension.include_paths()!r}\n"
        f"def library_paths(): return {cpp_extension.library_paths()!r}\n"
    )
    return package.parent


def test_without_a_compiler(tmp_path: Path) -> None:
    project = copy_project(tmp_path)
    path = str(fake_torch(tmp_path, torch.__version__))
    done = build_extension(project, CXX="/nowhere/g++", PYTHONPATH=path)
    assert_one_sentence(done, "'/nowhere/g++'", "CXX")
    (tmp_path / "empty").mkdir()
    done = build_extension(project, CXX="", PATH=str(tmp_path / "empty"), PYTHONPATH=path)
    assert_one_sentence(done, "no C++ compiler was found", "g++")


def test_when_the_source_does_not_compile(tmp_path: Path) -> None:
    project = copy_project(tmp_path)
    for source in (project / "csrc" / "cpu").glob("*.cpp"):  # those that compile take a minute
        source.unlink()
    (project / "csrc" / "cpu" / "select.cpp").write_text("#error this is the mistake\n")
    path = str(fake_torch(tmp_path, torch.__version__))
    done = build_extension(project, CXXFLAGS="-O0", PYTHONPATH=path)
    assert_one_sentence(done, "did not compile")
    assert "this is the mistake" in done.stdout + done.stderr


def test_metadata_needs_neither_torch_nor_a_compiler(tmp_path: Path) -> None:
    project = copy_project(tmp_path)
    (tmp_path / "absent").mkdir()
    (tmp_path / "absent" / "torch.py").write_text("raise ImportError('No module named torch')")
    done = run(
        *(sys.executable, "setup.py", "--quiet", "sdist"),
        cwd=project,
        env={"PYTHONPATH": str(tmp_path / "absent"), "PATH": "", "CXX": ""},
    )
    assert done.returncode == 0, done.stderr
    (archive,) = (project / "dist").iterdir()
    assert archive.name == "clasp_kernels-0.1.0.tar.gz"
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    # The files needed to build from the archive, including the CUDA kernels.
    assert {"setup.py", "tools/cuda_toolkit.py"} <= names
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.*")}
    assert sources <= names, f"not in the archive: {sorted(sources - names)}"
