"""Building the CUDA extension: when it is built, for which GPUs, and the messages if it is not.

The tests need neither a GPU nor a CUDA build of torch: a fake torch claims to be one, with the
headers and libraries of the installed torch. nvcc is fake too, except in the last tests, which
compile the kernels if a real nvcc is installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from building import assert_one_sentence, build_extension, copy_project, run
from torch.utils import cpp_extension

KNOWN = ("75", "80", "86", "90", "100", "120")

TORCH = """\
__version__ = {version!r}
class version:
    cuda = {cuda!r}
"""
CPP_EXTENSION = """\
def include_paths(): return {includes!r}
def library_paths(): return {libraries!r}
"""
# The symbols of libtorch_cuda.so that the extension uses.
LIBTORCH_CUDA = """\
extern "C" int aoti_torch_get_current_cuda_stream(int, void**) { return 1; }
extern "C" int torch_c10_cuda_check_msg(int, const char*, const char*, unsigned, bool, char**) {
  return 1;
}
extern "C" void torch_c10_cuda_free_error_msg(char*) {}
"""
NVCC = """\
#!{python}
import pathlib, subprocess, sys
arguments = sys.argv[1:]
if "--version" in arguments:
    print("nvcc: NVIDIA (R) Cuda compiler driver")
    print("Cuda compilation tools, release {release}, V{release}.88")
elif "--list-gpu-arch" in arguments:
    print("".join(f"compute_{{name}}\\n" for name in {known!r}))
elif "--dryrun" in arguments:
    print('#$ LIBRARIES=  "-L{lib}/stubs" "-L{lib}"', file=sys.stderr)
else:
    with open(pathlib.Path(__file__).with_name("log"), "a") as log:
        print(*arguments, sep="\\0", file=log)
    output = arguments[arguments.index("-o") + 1]
    pathlib.Path(arguments[arguments.index("-MF") + 1]).write_text(output + ":\\n")
    empty = ["c++", "-x", "c++", "-fPIC", "-c", "/dev/null", "-o", output]
    sys.exit(subprocess.run(empty).returncode)
"""

pytestmark = [
    pytest.mark.deep,
    pytest.mark.skipif(shutil.which("c++") is None, reason="there is no c++"),
]


@dataclass
class Machine:
    """A project to build with a fake torch and a fake toolkit."""

    folder: Path
    project: Path

    @property
    def home(self) -> Path:
        return self.folder / "cuda"

    def install_torch(self, version: str, cuda: str | None) -> None:
        """Write a fake torch for setup.py, and a libtorch_cuda.so to link with."""
        package = self.folder / "torch" / "torch"
        (package / "utils").mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").write_text(TORCH.format(version=version, cuda=cuda))
        (package / "utils" / "__init__.py").touch()
        libraries = [*cpp_extension.library_paths(), str(self.folder)]
        paths = CPP_EXTENSION.format(includes=cpp_extension.include_paths(), libraries=libraries)
        (package / "utils" / "cpp_extension.py").write_text(paths)
        source = self.folder / "torch_cuda.cpp"
        source.write_text(LIBTORCH_CUDA)
        name = "libtorch_cuda.so"
        flags = ("-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", self.folder / name)
        done = run("c++", source, *flags, cwd=self.folder)
        assert done.returncode == 0, done.stderr

    def install_toolkit(self, release: str, known: tuple[str, ...] = KNOWN) -> None:
        nvcc = self.home / "bin" / "nvcc"
        library = self.home / "lib" / "libcudart_static.a"
        for path in (nvcc, library):
            path.parent.mkdir(parents=True, exist_ok=True)
        text = NVCC.format(python=sys.executable, release=release, known=known, lib=library.parent)
        nvcc.write_text(text)
        nvcc.chmod(0o755)
        library.write_bytes(b"!<arch>\n")  # an empty archive

    def environment(self, **env: str) -> dict[str, str]:
        # Clear the variables of the user who runs the tests.
        cleared = dict.fromkeys(("CUDA_HOME", "TORCH_CUDA_ARCH_LIST", "CXX"), "")
        ours = {"PYTHONPATH": str(self.folder / "torch"), "CUDA_HOME": str(self.home)}
        return {**cleared, "CLASP_KERNELS_BUILD_CUDA": "auto", "CXXFLAGS": "-O0", **ours, **env}

    def build(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        return build_extension(self.project, *arguments, **self.environment(**env))

    def nvcc_commands(self) -> list[list[str]]:
        log = self.home / "bin" / "log"
        return [line.split("\0") for line in log.read_text().splitlines()] if log.exists() else []

    def libraries(self) -> set[str]:
        return {path.name for path in self.project.glob("build/lib*/clasp_kernels/*.so")}

    def build_info(self) -> dict[str, object]:
        (path,) = self.project.glob("build/lib*/clasp_kernels/_build_info.py")
        namespace: dict[str, object] = {}
        exec(path.read_text(), namespace)
        return namespace


def small_project(folder: Path, *others: str) -> Path:
    """Copy the project without the CPU kernels, so that it compiles in a second.

    Of csrc/cpu, module.cpp and the named other files stay. test_build.py compiles all of them.
    """
    project = copy_project(folder)
    for source in (project / "csrc" / "cpu").glob("*.cpp"):
        if source.name not in ("module.cpp", *others):
            source.unlink()
    return project


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Return a machine with a fake CUDA build of torch and a matching fake toolkit."""
    machine = Machine(tmp_path, small_project(tmp_path / "project"))
    machine.install_torch("2.13.0+cu130", "13.0")
    machine.install_toolkit("13.0")
    return machine


def notes(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the project's own messages of a successful build."""
    assert done.returncode == 0, done.stdout + done.stderr
    start = "clasp_kernels: "
    lines = (done.stdout + done.stderr).splitlines()
    return [line.removeprefix(start) for line in lines if line.startswith(start)]


def gencodes(command: list[str]) -> list[str]:
    return [word.removeprefix("-gencode=") for word in command if word.startswith("-gencode=")]


@pytest.mark.parametrize("wanted", ["auto", "1", ""])
def test_it_is_built_where_torch_and_toolkit_fit(machine: Machine, wanted: str) -> None:
    done = machine.build(CLASP_KERNELS_BUILD_CUDA=wanted)
    assert notes(done) == []
    assert machine.libraries() == {"_C.abi3.so", "_C_cuda.abi3.so"}
    info = machine.build_info()
    assert info["TORCH_VERSION"] == "2.13.0+cu130"
    assert info["CUDA_VERSION"] == "13.0"
    assert info["CUDA_ARCHITECTURES"] == ("8.0", "9.0", "10.0+PTX")
    assert info["CUDA_PROBLEM"] == ""
    sources = {path.name for path in (machine.project / "csrc" / "cuda").glob("*.cu")}
    commands = machine.nvcc_commands()
    assert {Path(command[command.index("-c") + 1]).name for command in commands} == sources
    for command in commands:
        assert gencodes(command) == [
            *("arch=compute_80,code=sm_80", "arch=compute_90,code=sm_90"),
            *("arch=compute_100,code=sm_100", "arch=compute_100,code=compute_100"),
        ]
        assert {"-std=c++20", "-O3", "-DUSE_CUDA", "-Xcompiler=-fPIC"} <= set(command)
        assert "-ccbin" not in command and "--use_fast_math" not in command
        assert any(word.startswith("-DTORCH_TARGET_VERSION=") for word in command)


def test_a_second_build_compiles_nothing(machine: Machine) -> None:
    notes(machine.build())
    compiled = len(machine.nvcc_commands())
    assert "no work to do" in machine.build().stdout
    notes(machine.build(NVCC_APPEND_FLAGS="-lineinfo"))
    assert len(machine.nvcc_commands()) == 2 * compiled, "nvcc reads that variable by itself"


def test_the_compiler_that_cxx_names_is_told_to_nvcc(machine: Machine) -> None:
    notes(machine.build(CXX="env c++ -pipe"))
    for command in machine.nvcc_commands():
        assert command[command.index("-ccbin") + 1] == "c++"
        assert "-Xcompiler=-pipe" in command


def test_architectures_are_those_of_the_variable(machine: Machine) -> None:
    notes(machine.build(TORCH_CUDA_ARCH_LIST="8.6 9.0a;12.0+PTX"))
    assert machine.build_info()["CUDA_ARCHITECTURES"] == ("8.6", "9.0a", "12.0+PTX")
    assert gencodes(machine.nvcc_commands()[0]) == [
        *("arch=compute_86,code=sm_86", "arch=compute_90a,code=sm_90a"),
        *("arch=compute_120,code=sm_120", "arch=compute_120,code=compute_120"),
    ]


def test_architectures_that_cannot_be_built_are_left_out_with_a_line(machine: Machine) -> None:
    machine.install_torch("2.13.0+cu126", "12.6")
    machine.install_toolkit("12.6", ("50", "75", "80", "86", "90"))
    done = machine.build()
    assert notes(done) == ["not built for GPUs of 10.0: nvcc 12.6 does not know them."]
    # The PTX for later GPUs is then that of the newest remaining architecture.
    assert machine.build_info()["CUDA_ARCHITECTURES"] == ("8.0", "9.0+PTX")
    done = machine.build(TORCH_CUDA_ARCH_LIST="7.5;8.0")
    assert notes(done) == ["not built for GPUs of 7.5: the CUDA kernels need 8.0."]
    assert machine.build_info()["CUDA_ARCHITECTURES"] == ("8.0",)


def no_toolkit(machine: Machine) -> None:
    (machine.home / "bin" / "nvcc").unlink()


def no_static_runtime(machine: Machine) -> None:
    (machine.home / "lib" / "libcudart_static.a").unlink()


def a_broken_nvcc(machine: Machine) -> None:
    (machine.home / "bin" / "nvcc").write_text("#!/bin/sh\necho no licence >&2\nexit 3\n")


@pytest.mark.parametrize(
    ("change", "problem", "remedy"),
    [
        (
            lambda machine: machine.install_torch("2.13.0+cpu", None),
            "torch 2.13.0+cpu is a CPU build",
            "install a CUDA build of torch",
        ),
        (
            lambda machine: machine.install_torch("2.13.0+rocm7.1", None),
            "torch 2.13.0+rocm7.1 is a ROCm build",
            "install a CUDA build of torch",
        ),
        (
            lambda machine: machine.install_torch("2.13.0+cu128", "12.8"),
            "cuda/bin/nvcc is of CUDA 13.0, and torch 2.13.0+cu128 was built with CUDA 12.8",
            "install a CUDA 12 toolkit and set CUDA_HOME to it, or a torch for CUDA 13.0",
        ),
        (
            lambda machine: machine.install_toolkit("13.0", ("75",)),
            "nvcc 13.0 builds the kernels for none of 8.0;9.0;10.0+PTX",
            "set TORCH_CUDA_ARCH_LIST to compute capabilities of 8.0 or later",
        ),
        (no_toolkit, "cuda has no bin/nvcc", "install a CUDA 13 toolkit and set CUDA_HOME to it"),
        (no_static_runtime, "libcudart_static.a is not where", "cuda-cudart-dev"),
        (a_broken_nvcc, "--version fails (no licence)", "set CUDA_HOME to another toolkit"),
    ],
)
def test_what_is_missing_is_named(machine: Machine, change, problem: str, remedy: str) -> None:
    change(machine)
    (line,) = notes(machine.build())
    assert line.startswith("built without CUDA kernels: ")
    assert problem in line and line.endswith(machine.build_info()["CUDA_PROBLEM"])
    assert machine.libraries() == {"_C.abi3.so"}
    assert machine.build_info()["CUDA_VERSION"] is None
    done = machine.build(CLASP_KERNELS_BUILD_CUDA="1")
    assert_one_sentence(done, "CLASP_KERNELS_BUILD_CUDA=1, but ", problem, remedy)


def test_without_nvcc_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cuda_toolkit

    monkeypatch.setattr(cuda_toolkit, "USUAL_HOME", tmp_path)
    with pytest.raises(cuda_toolkit.Missing) as raised:
        cuda_toolkit.find({"PATH": str(tmp_path)}, "2.13.0+cu130", "13.0")
    assert raised.value.problem == f"no nvcc was found, neither on the path nor in {tmp_path}/bin"
    assert raised.value.remedy.startswith("install a CUDA 13 toolkit")


def test_nvcc_on_the_path_comes_before_the_usual_place(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cuda_toolkit

    for usual in ("/nonexistent", machine.home):
        monkeypatch.setattr(cuda_toolkit, "USUAL_HOME", Path(usual))
        path = {"PATH": str(machine.home / "bin")} if usual == "/nonexistent" else {"PATH": "/no"}
        toolkit = cuda_toolkit.find(path, "2.13.0+cu130", "13.0")
        assert toolkit.nvcc == str(machine.home / "bin" / "nvcc")
        assert toolkit.library_dir == str(machine.home / "lib")


@pytest.mark.parametrize("wanted", ["auto", "1"])
def test_settings_that_mean_nothing_are_errors(machine: Machine, wanted: str) -> None:
    done = machine.build(CLASP_KERNELS_BUILD_CUDA="yes")
    assert_one_sentence(done, "CLASP_KERNELS_BUILD_CUDA must be auto, 0 or 1, got 'yes'")
    done = machine.build(CLASP_KERNELS_BUILD_CUDA=wanted, TORCH_CUDA_ARCH_LIST="8.0;Hopper")
    assert_one_sentence(done, "TORCH_CUDA_ARCH_LIST must list", "'8.0;9.0;10.0+PTX'", "'Hopper'")
    assert machine.nvcc_commands() == []


def test_left_out_on_request_it_is_not_mentioned_and_an_earlier_one_goes(machine: Machine) -> None:
    package = machine.project / "clasp_kernels"
    notes(machine.build("--inplace"))
    assert {path.name for path in package.glob("*.so")} == {"_C.abi3.so", "_C_cuda.abi3.so"}
    done = machine.build("--inplace", CLASP_KERNELS_BUILD_CUDA="0")
    assert notes(done) == []
    assert {path.name for path in package.glob("*.so")} == {"_C.abi3.so"}
    assert "CUDA_PROBLEM = 'CLASP_KERNELS_BUILD_CUDA=0'" in (package / "_build_info.py").read_text()


def test_the_wheel_holds_it(machine: Machine) -> None:
    done = run(
        *(sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-v"),
        *("--wheel-dir", machine.folder, machine.project),
        cwd=machine.folder,
        env=machine.environment(),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = machine.folder.glob("*.whl")
    assert re.fullmatch(r"clasp_kernels-[\d.]+-cp310-abi3-\w+\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {"clasp_kernels/_C.abi3.so", "clasp_kernels/_C_cuda.abi3.so"} <= names


# Run with a torch that claims to be a CUDA build: the extension registers the default overload for
# GPU tensors, and Triton, which registers later, does not conflict with it.
LOAD = """\
import ctypes, sys, warnings
warnings.simplefilter("error")
ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)
sys.path.insert(0, sys.argv[2])
import torch
torch.version.cuda = sys.argv[3]
import clasp_kernels
from clasp_kernels.backends import cuda, table
report = clasp_kernels.backend_report()
assert clasp_kernels.__file__.startswith(sys.argv[2]), clasp_kernels.__file__
assert report.cuda.loaded, report.cuda.reason
assert report.cuda.ops == table.ops_of("cuda"), report.cuda.ops
assert report.cuda.architectures == ("8.0",)
print(report.cuda.reason)
import clasp_kernels._C_cuda
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Machine, str]:
    """Compile the kernels with the real nvcc without optimisation; return machine and release."""
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        pytest.skip("there is no nvcc")
    version = run(nvcc, "--version", cwd=Path.cwd()).stdout
    (release,) = re.findall(r"release (\d+\.\d+)", version)
    folder = tmp_path_factory.mktemp("compiled")
    # The package asks capability.cpp for the instruction set.
    machine = Machine(folder, small_project(folder / "project", "capability.cpp"))
    machine.install_torch(torch.__version__, release)
    done = machine.build(
        "--inplace",
        CLASP_KERNELS_BUILD_CUDA="1",
        CUDA_HOME="",
        PATH=f"{Path(nvcc).parent}:{os.environ['PATH']}",
        TORCH_CUDA_ARCH_LIST="8.0",
        CXXFLAGS="-O0 -DCLASP_WITHOUT_AVX512",
        NVCC_APPEND_FLAGS="-Xptxas=-O0",
    )
    assert notes(done) == []
    return machine, release


def test_the_kernels_compile_and_keep_to_the_stable_interfaces(
    compiled: tuple[Machine, str],
) -> None:
    machine, _ = compiled
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("nm is not installed")
    library = machine.project / "clasp_kernels" / "_C_cuda.abi3.so"
    symbols = {
        line.split()[-1].partition("@")[0]: line.split()[-2]
        for line in run(nm, "-D", library, cwd=machine.folder).stdout.splitlines()
    }
    assert symbols["PyInit__C_cuda"] == "T"
    undefined = {name for name, kind in symbols.items() if kind == "U"}
    assert "aoti_torch_get_current_cuda_stream" in undefined
    # torch's C++ symbols contain its namespaces. The stable ABI only has C symbols.
    assert not [name for name in undefined if re.match(r"_Z\w*?(2at|3c10|5torch|8pybind11)", name)]
    assert {name for name in undefined if name.startswith(("Py", "_Py"))} == {"PyModule_Create2"}
    # The CUDA runtime is linked statically and hidden, because torch's may be another version.
    assert not [name for name in symbols if re.match(r"_*cuda[A-Z]", name)]


def test_what_is_compiled_loads_and_serves_gpu_tensors(compiled: tuple[Machine, str]) -> None:
    machine, release = compiled
    done = run(
        *(sys.executable, "-c", LOAD, machine.folder / "libtorch_cuda.so", machine.project),
        release,
        cwd=machine.folder,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    origin = f"_C_cuda.abi3.so, built with torch {torch.__version__} and CUDA {release} for 8.0"
    assert done.stdout.strip() == origin


def test_a_library_of_torch_that_is_not_there_is_a_reason_and_no_failure(
    compiled: tuple[Machine, str],
) -> None:
    """If the extension was built for another torch, nothing breaks and Triton is used."""
    machine, release = compiled
    code = """
import sys, warnings
warnings.simplefilter("error")
sys.path.insert(0, sys.argv[1])
import torch
torch.version.cuda = sys.argv[2]
import clasp_kernels
from clasp_kernels.backends import cuda, table
print(clasp_kernels.backend_report().cuda.reason)
assert cuda.registered("select_tokens") == cuda.registered("gather_tokens")
"""
    done = run(sys.executable, "-c", code, machine.project, release, cwd=machine.folder)
    assert done.returncode == 0, done.stderr
    assert f"does not load under torch {torch.__version__} with CUDA {release} (" in done.stdout
    assert "libtorch_cuda.so" in done.stdout
    assert "CLASP_KERNELS_BUILD_CUDA=1" in done.stdout
