"""Builds test libraries with ninja when their sources change, such as the core as a module."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
ROOMS = ("shared", "simd", "algorithms")  # torch-free
BINDINGS = Path(__file__).with_name("bindings")

FLAGS = {
    "plain": ["-O1"],
    "sanitized": [
        "-O1",
        "-g1",  # the lines of a report, in three quarters of the time that -g takes
        "-fno-omit-frame-pointer",
        "-fsanitize=address,undefined,float-cast-overflow",
        "-fno-sanitize-recover=all",
    ],
}

NINJA_FILE = """\
rule compile
  command = {cxx} -std=c++20 -fPIC -fvisibility=hidden -ffp-contract=off -Wall -Wextra -Werror $
      {flags} $extra {includes} -c $in -o $out
rule link
  command = {cxx} {flags} -shared $in -o $out {link}
{objects}
build {target}: link {linked}
"""


def compiler() -> list[str]:
    if chosen := os.environ.get("CXX"):
        return shlex.split(chosen)
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise RuntimeError("no C++ compiler was found; install g++ or set CXX")


def ninja() -> str:
    try:
        import ninja
    except ImportError:
        return "ninja"
    return str(Path(ninja.BIN_DIR) / "ninja")


def flags_of_this_machine() -> list[str]:
    """Returns the flag that leaves out the AVX-512 kernels if this machine cannot run them, for
    time. `make compile-check` compiles them everywhere."""
    cpu = Path("/proc/cpuinfo")
    has_avx512 = not cpu.is_file() or "avx512f" in cpu.read_text()
    return [] if has_avx512 else ["-DCLASP_WITHOUT_AVX512"]


def build(variant: str) -> Path:
    """Builds the core as ``variant``, a key of FLAGS. Uses the cache if nothing changed."""
    import pybind11

    name = "clasp_core"
    return build_library(
        name + sysconfig.get_config_var("EXT_SUFFIX"),
        variant,
        [BINDINGS / "all.cpp"],
        [*FLAGS[variant], *flags_of_this_machine(), f"-DCLASP_MODULE_NAME={name}"],
        read=[
            *(path for room in ROOMS for path in (CSRC / room).iterdir()),
            CSRC / "cpu" / "lateness.h",
            CSRC / "cuda" / "plan.h",
            *BINDINGS.iterdir(),
        ],
        includes=[CSRC],
        system=[pybind11.get_include(), sysconfig.get_paths()["include"]],
    )


def build_library(
    name: str,
    variant: str,
    sources: list[Path],
    flags: list[str],
    *,
    read: Iterable[Path],
    includes: list[Path],
    system: list[str],
    extra: Mapping[str, list[str]] = MappingProxyType({}),
    link: Iterable[str] = (),
) -> Path:
    """Builds a shared library. Uses the cache if nothing in ``read`` changed.

    ``extra`` maps the name of a source to flags for that source only.
    """
    include_flags = [f"-I{path}" for path in includes]
    include_flags += [flag for path in system for flag in ("-isystem", path)]
    text = NINJA_FILE.format(
        cxx=shlex.join(compiler()),
        flags=shlex.join(flags),
        includes=shlex.join(include_flags),
        link=shlex.join(link),
        target=name,
        objects="\n".join(
            f"build {source.stem}.o: compile {source}\n"
            f"  extra = {shlex.join(extra.get(source.stem, []))}"
            for source in sources
        ),
        linked=" ".join(f"{source.stem}.o" for source in sources),
    )
    version = subprocess.run([*compiler(), "--version"], capture_output=True, check=True).stdout
    digest = hashlib.sha256(version + text.encode())
    for path in sorted(read):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())

    directory = ROOT / "build" / "tests-native" / f"{variant}-{digest.hexdigest()[:16]}"
    library = directory / name
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        # Parallel test processes may want the same library at once.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            (directory / "build.ninja").write_text(text)
            done = subprocess.run(
                [ninja(), "-C", str(directory)], capture_output=True, text=True, check=False
            )
            if done.returncode != 0:
                raise RuntimeError(f"{name} did not compile:\n{done.stdout}")
    return library


def sanitizer_environment() -> dict[str, str]:
    """The environment that loads a sanitized module into a Python that is not sanitized."""
    libraries = []
    # libstdc++ too, because the sanitizer looks for __cxa_throw at startup, before any module.
    for name in ("libasan.so", "libubsan.so", "libstdc++.so"):
        found = subprocess.run(
            [*compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        if not os.path.isabs(found):
            raise RuntimeError(f"{' '.join(compiler())} does not come with {name}")
        libraries.append(os.path.realpath(found))
    return os.environ | {
        "LD_PRELOAD": ":".join(libraries),
        # Python does not free all memory at exit, which would be reported as leaks.
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        # The pool of Python's own allocator would hide overruns.
        "PYTHONMALLOC": "malloc",
        "OMP_NUM_THREADS": "1",
    }
