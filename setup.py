"""Builds ``clasp_kernels/_C.abi3.so`` with ninja; all metadata is in pyproject.toml.

The extension targets LibTorch's stable ABI and Python's limited API, so one wheel serves every
Python from 3.10 and every torch from 2.10. torch is looked at when the extension is compiled and
not before: metadata and source distributions need neither torch nor a compiler.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import NoReturn

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MINIMUM_TORCH = (2, 10)

DEFINES = [
    f"-DTORCH_TARGET_VERSION=0x{MINIMUM_TORCH[0]:02x}{MINIMUM_TORCH[1]:02x}000000000000",
    "-DPy_LIMITED_API=0x030A0000",
]
# Contraction is off so that gcc and clang round alike; where a fused multiply-add is wanted, the
# source asks for it. No -march: instruction sets are chosen at run time.
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

NINJA_FILE = """\
ninja_required_version = 1.5
builddir = {build_dir}
cxx = {cxx}
cxx_flags = {cxx_flags}
link_flags = {link_flags}

rule compile
  command = $cxx -MD -MF $out.d $cxx_flags -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = CXX $out

rule link
  command = $cxx -shared $in -o $out $link_flags
  description = LINK $out

{edges}
"""


def fail(message: str) -> NoReturn:
    """One sentence and a non-zero exit instead of a traceback that ends inside setuptools."""
    raise SystemExit(f"clasp_kernels: {message}")


def find_torch() -> tuple[str, list[str], list[str]]:
    """The installed torch: its version, include directories and library directories."""
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
    """``$CXX``, which may carry a launcher or flags, or the first usual compiler on the path."""
    if chosen := os.environ.get("CXX"):
        command = shlex.split(chosen)
        if not shutil.which(command[0]):
            fail(f"the C++ compiler named by CXX, {command[0]!r}, was not found.")
        return command
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    fail("no C++ compiler was found; install g++ (10 or later) or clang++, or set CXX.")


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
    """Leaves the modification time alone when nothing changed, so that nothing is rebuilt."""
    if not path.is_file() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


class NinjaBuildExt(build_ext):
    """Compiles and links in ``build/``, where ninja rebuilds only what changed, then copies."""

    def build_extension(self, ext: Extension) -> None:
        torch_version, include_dirs, library_dirs = find_torch()
        compiler = find_compiler()
        library = self.run_ninja(
            ext, torch_version, compiler, [*include_dirs, find_python_include()], library_dirs
        )
        target = Path(self.get_ext_fullpath(ext.name))
        self.mkpath(str(target.parent))
        self.copy_file(str(library), str(target))
        self.write_build_info(ext, torch_version, describe_compiler(compiler))

    def run_ninja(
        self,
        ext: Extension,
        torch_version: str,
        compiler: list[str],
        include_dirs: list[str],
        library_dirs: list[str],
    ) -> Path:
        # System includes: warnings in torch's headers are not ours to fix.
        system = [flag for path in include_dirs for flag in ("-isystem", path)]
        cxx_flags = [*CXX_FLAGS, *DEFINES, f"-I{ROOT / 'csrc'}", *system]
        cxx_flags += shlex.split(os.environ.get("CXXFLAGS", ""))
        link_flags = [*(f"-L{path}" for path in library_dirs), "-ltorch_cpu", "-ltorch"]
        link_flags += shlex.split(os.environ.get("LDFLAGS", ""))

        # pip gives editable builds a fresh temporary directory each time; a directory of our own,
        # one per torch, is what makes a second build free.
        parts = [torch_version, *compiler, *include_dirs]
        key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]
        build_dir = ROOT / "build" / f"native-{platform.machine()}-{key}"
        library = build_dir / Path(self.get_ext_filename(ext.name)).name
        objects = {source: build_dir / f"{source}.o" for source in ext.sources}
        edges = [
            f"build {ninja_escape(str(output))}: compile {ninja_escape(str(ROOT / source))}"
            for source, output in objects.items()
        ]
        inputs = " ".join(ninja_escape(str(output)) for output in objects.values())
        edges.append(f"build {ninja_escape(str(library))}: link {inputs}")
        write_if_changed(
            build_dir / "build.ninja",
            NINJA_FILE.format(
                build_dir=ninja_escape(str(build_dir)),
                cxx=shlex.join(compiler).replace("$", "$$"),
                cxx_flags=shlex.join(cxx_flags).replace("$", "$$"),
                link_flags=shlex.join(link_flags).replace("$", "$$"),
                edges="\n".join(edges),
            ),
        )
        command = [find_ninja(), "-C", str(build_dir)]
        if jobs := os.environ.get("MAX_JOBS"):
            command += ["-j", jobs]
        if subprocess.run(command, check=False).returncode != 0:
            fail("the extension did not compile; the compiler's message is above.")
        return library

    def write_build_info(self, ext: Extension, torch_version: str, compiler: str) -> None:
        """What the loader reports when the extension and the running torch do not fit."""
        text = (
            '"""Written by setup.py when the extension was built."""\n\n'
            f'TORCH_VERSION = "{torch_version}"\n'
            f"COMPILER = {compiler!r}\n"
        )
        write_if_changed(Path(self.get_ext_fullpath(ext.name)).parent / "_build_info.py", text)

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        for ext in self.extensions:
            built = Path(self.build_lib, self.get_ext_filename(ext.name)).parent / "_build_info.py"
            write_if_changed(ROOT / "clasp_kernels" / built.name, built.read_text())


class FreshBuildPy(build_py):
    """setuptools copies into ``build/lib`` and never removes: a deleted module would live on in
    every wheel built from the same checkout."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib) / "clasp_kernels", ignore_errors=True)
        super().run()


# Guarded, so that tools/compile_check.py can read the flags above.
if __name__ == "__main__":
    setup(
        ext_modules=[
            Extension(
                "clasp_kernels._C",
                sources=[
                    str(path.relative_to(ROOT))
                    for path in sorted((ROOT / "csrc/cpu").glob("*.cpp"))
                ],
                py_limited_api=True,
            )
        ],
        cmdclass={"build_ext": NinjaBuildExt, "build_py": FreshBuildPy},
        options={"bdist_wheel": {"py_limited_api": "cp310"}},
    )
