"""Builds ``clasp_kernels/_C.abi3.so`` with ninja, and ``_C_cuda.abi3.so`` if there is a CUDA
toolkit.

All metadata is in pyproject.toml. The extensions target LibTorch's stable ABI and Python's limited
API, so one wheel serves every Python from 3.10 and every torch from 2.10. torch is only imported
when the extensions are compiled: metadata and source distributions need neither torch nor a
compiler.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

if TYPE_CHECKING:
    from cuda_toolkit import Toolkit

ROOT = Path(__file__).resolve().parent
MINIMUM_TORCH = (2, 10)
CPU_EXTENSION = "clasp_kernels._C"
CUDA_EXTENSION = "clasp_kernels._C_cuda"

DEFINES = [
    f"-DTORCH_TARGET_VERSION=0x{MINIMUM_TORCH[0]:02x}{MINIMUM_TORCH[1]:02x}000000000000",
    "-DPy_LIMITED_API=0x030A0000",
]
# Contraction is off so that gcc and clang round alike; the sources ask for fused multiply-adds
# explicitly. No -march, because instruction sets are chosen at run time.
CXX_FLAGS = [
    "-std=c++20",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-fvisibility-inlines-hidden",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
]
NVCC_FLAGS = [
    *("-std=c++20", "-O3", "-DUSE_CUDA"),
    *("-Xcompiler=-fPIC", "-Xcompiler=-fvisibility=hidden"),
    "-Xcompiler=-fvisibility-inlines-hidden",
]

NINJA_FILE = """\
ninja_required_version = 1.5
builddir = {build_dir}
cxx = {cxx}
cxx_flags = {cxx_flags}
nvcc = {nvcc}
nvcc_flags = {nvcc_flags}

rule compile
  command = $cxx -MD -MF $out.d $cxx_flags -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = CXX $out

rule compile_cuda
  command = $nvcc -MD -MF $out.d $nvcc_flags -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = NVCC $out

rule link
  command = $cxx -shared $in -o $out $link_flags
  description = LINK $out

{edges}
"""


def fail(message: str) -> NoReturn:
    """Exits with one sentence instead of a traceback that ends inside setuptools."""
    raise SystemExit(f"clasp_kernels: {message}")


def find_torch() -> tuple[str, list[str], list[str]]:
    """Returns the version, include directories and library directories of the installed torch."""
    wanted = ".".join(map(str, MINIMUM_TORCH))
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError as error:
        fail(
            f"the extension is compiled against torch, which cannot be imported here ({error}); "
            f"install torch>={wanted} and then run pip with --no-build-isolation."
        )
    version = str(torch.__version__)
    if tuple(int(part) for part in version.split(".")[:2]) < MINIMUM_TORCH:
        fail(f"torch {version} is installed, but at least torch {wanted} is needed.")
    return version, cpp_extension.include_paths(), cpp_extension.library_paths()


def find_compiler() -> list[str]:
    """Returns ``$CXX``, which may contain a launcher or flags, or the first compiler found."""
    if chosen := os.environ.get("CXX"):
        command = shlex.split(chosen)
        if not shutil.which(command[0]):
            fail(f"the C++ compiler named by CXX, {command[0]!r}, was not found.")
        return command
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    fail("no C++ compiler was found; install g++ (10 or later) or clang++, or set CXX.")


def find_cuda(torch_version: str) -> tuple[Toolkit | None, str]:
    """Returns the toolkit for the CUDA kernels, or None and why they are left out."""
    # Imported here, because some users of the flags above have this file only.
    sys.path.insert(0, str(ROOT / "tools"))
    import cuda_toolkit
    import torch

    try:
        wanted = cuda_toolkit.wanted(os.environ)
        if wanted == "0":
            return None, f"{cuda_toolkit.BUILD}=0"
        return cuda_toolkit.find(os.environ, torch_version, torch.version.cuda), ""
    except cuda_toolkit.Missing as missing:
        if wanted == "1":
            fail(f"{cuda_toolkit.BUILD}=1, but {missing.problem}; {missing.remedy}.")
        return None, missing.problem
    except ValueError as error:
        fail(str(error))


def find_ninja() -> str:
    try:
        import ninja
    except ImportError:
        if path := shutil.which("ninja"):
            return path
        fail("ninja was not found; `pip install ninja` provides it.")
    return str(Path(ninja.BIN_DIR) / "ninja")


def find_python_include() -> str:
    include = sysconfig.get_paths()["include"]
    if not (Path(include) / "Python.h").is_file():
        fail(f"Python.h is not in {include}; install this Python's headers (python3-dev).")
    return include


def describe_compiler(compiler: list[str]) -> str:
    output = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True)
    return output.stdout.splitlines()[0].strip()


def ninja_escape(path: str) -> str:
    return path.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def write_if_changed(path: Path, text: str) -> None:
    """Keeps the modification time of an unchanged file, so that nothing is rebuilt."""
    if not path.is_file() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def quote(command: list[str]) -> str:
    return shlex.join(command).replace("$", "$$")


class NinjaBuildExt(build_ext):
    """Compiles and links in ``build/``, where ninja rebuilds what changed, and copies the
    results."""

    def build_extensions(self) -> None:
        torch_version, include_dirs, library_dirs = find_torch()
        compiler = find_compiler()
        cuda, problem = find_cuda(torch_version)
        if cuda is None:
            self.extensions = [ext for ext in self.extensions if ext.name != CUDA_EXTENSION]
        include_dirs = [*include_dirs, find_python_include()]
        build_dir = self.run_ninja(torch_version, compiler, include_dirs, library_dirs, cuda)
        for ext in self.extensions:
            target = Path(self.get_ext_fullpath(ext.name))
            self.mkpath(str(target.parent))
            self.copy_file(str(build_dir / target.name), str(target))
        self.write_build_info(torch_version, describe_compiler(compiler), cuda, problem)
        # Standard output, because this is not an error; pip shows it with -v.
        for sentence in cuda.left_out if cuda else ():
            print(f"clasp_kernels: {sentence}")
        if cuda is None and os.environ.get("CLASP_KERNELS_BUILD_CUDA") != "0":
            print(f"clasp_kernels: built without CUDA kernels: {problem}")

    def run_ninja(
        self,
        torch_version: str,
        compiler: list[str],
        include_dirs: list[str],
        library_dirs: list[str],
        cuda: Toolkit | None,
    ) -> Path:
        """Builds every extension and returns the directory of the libraries."""
        # System includes, because warnings in torch's headers are not ours to fix.
        system = [flag for path in include_dirs for flag in ("-isystem", path)]
        shared = [*DEFINES, f"-I{ROOT / 'csrc'}", *system]
        # Errors name the source line they come from. The prefix map keeps paths of the build
        # machine out.
        prefixes = [f"-fmacro-prefix-map={path}/=" for path in (ROOT, *include_dirs)]
        cxx_flags = [*CXX_FLAGS, *prefixes, *shared]
        cxx_flags += shlex.split(os.environ.get("CXXFLAGS", ""))
        link_flags = [f"-L{path}" for path in library_dirs]
        # pip gives editable builds a fresh temporary directory each time. A fixed directory per
        # torch and compiler makes a second build incremental.
        parts = [torch_version, *compiler, *include_dirs]
        nvcc_flags = []
        if cuda is not None:
            nvcc_flags = [*NVCC_FLAGS, *(f"-Xcompiler={flag}" for flag in prefixes), *shared]
            nvcc_flags += cuda.compile_flags(compiler)
            nvcc_variables = ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS", "NVCC_CCBIN")
            parts += [cuda.nvcc, cuda.version]
            parts += [os.environ.get(name, "") for name in nvcc_variables]
        key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]
        build_dir = ROOT / "build" / f"native-{platform.machine()}-{key}"

        edges = []
        for ext in self.extensions:
            objects = [ninja_escape(str(build_dir / f"{source}.o")) for source in ext.sources]
            for source, output in zip(ext.sources, objects, strict=True):
                rule = "compile_cuda" if source.endswith(".cu") else "compile"
                edges.append(f"build {output}: {rule} {ninja_escape(str(ROOT / source))}")
            library = build_dir / Path(self.get_ext_filename(ext.name)).name
            flags = [*link_flags, *(f"-l{name}" for name in ext.libraries)]
            if cuda is not None and ext.name == CUDA_EXTENSION:
                flags += cuda.link_flags()
            flags += shlex.split(os.environ.get("LDFLAGS", ""))
            edges.append(f"build {ninja_escape(str(library))}: link {' '.join(objects)}")
            edges.append(f"  link_flags = {quote(flags)}")
        write_if_changed(
            build_dir / "build.ninja",
            NINJA_FILE.format(
                build_dir=ninja_escape(str(build_dir)),
                cxx=quote(compiler),
                cxx_flags=quote(cxx_flags),
                nvcc=quote([cuda.nvcc] if cuda else []),
                nvcc_flags=quote(nvcc_flags),
                edges="\n".join(edges),
            ),
        )
        command = [find_ninja(), "-C", str(build_dir)]
        if jobs := os.environ.get("MAX_JOBS"):
            command += ["-j", jobs]
        if subprocess.run(command, check=False).returncode != 0:
            fail("the extension did not compile; the compiler's message is above.")
        return build_dir

    def write_build_info(
        self, torch_version: str, compiler: str, cuda: Toolkit | None, problem: str
    ) -> None:
        """Writes the facts that the loader reports if the extensions and the running torch
        mismatch."""
        text = (
            '"""Written by setup.py when the extensions were built."""\n\n'
            f'TORCH_VERSION = "{torch_version}"\n'
            f"COMPILER = {compiler!r}\n"
            f"CUDA_VERSION = {cuda.version if cuda else None!r}\n"
            f"CUDA_ARCHITECTURES = {tuple(map(str, cuda.architectures)) if cuda else ()!r}\n"
            f"CUDA_PROBLEM = {problem!r}\n"
        )
        write_if_changed(Path(self.get_ext_fullpath(CPU_EXTENSION)).parent / "_build_info.py", text)

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        names = [Path(self.get_ext_filename(ext.name)).name for ext in self.extensions]
        # A CUDA library of an earlier build would be loaded, but the new build info does not
        # describe it.
        for library in (ROOT / "clasp_kernels").glob("_C_cuda.*"):
            if library.name not in names:
                library.unlink()
        built = Path(self.build_lib, "clasp_kernels", "_build_info.py")
        write_if_changed(ROOT / "clasp_kernels" / built.name, built.read_text())


class FreshBuildPy(build_py):
    """Removes the old copy of the package from ``build/lib`` first.

    setuptools copies into it but never removes: a deleted module would stay in every wheel built
    from the same checkout.
    """

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib) / "clasp_kernels", ignore_errors=True)
        super().run()


def sources_in(folder: str) -> list[str]:
    paths = [*(ROOT / folder).glob("*.cpp"), *(ROOT / folder).glob("*.cu")]
    return sorted(str(path.relative_to(ROOT)) for path in paths)


# Guarded, so that tools/compile_check.py can import the flags above.
if __name__ == "__main__":
    setup(
        ext_modules=[
            Extension(
                CPU_EXTENSION,
                sources=sources_in("csrc/cpu"),
                libraries=["torch_cpu", "torch"],
                py_limited_api=True,
            ),
            Extension(  # left out if it cannot be built
                CUDA_EXTENSION,
                sources=sources_in("csrc/cuda"),
                libraries=["torch_cuda", "torch_cpu", "torch"],
                py_limited_api=True,
            ),
        ],
        cmdclass={"build_ext": NinjaBuildExt, "build_py": FreshBuildPy},
        options={"bdist_wheel": {"py_limited_api": "cp310"}},
    )
