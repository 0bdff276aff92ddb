"""Builds the torch-free core as a Python module, with ninja, as often as its sources change."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
BINDINGS = Path(__file__).with_name("bindings")
MODULE = "clasp_core"

FLAGS = {
    "plain": ["-O2"],
    "sanitized": [
        "-O1",
        "-g",
        "-fno-omit-frame-pointer",
        "-fsanitize=address,undefined,float-cast-overflow",
        "-fno-sanitize-recover=all",
    ],
}

NINJA_FILE = """\
rule compile
  command = {cxx} -std=c++20 -fPIC -fvisibility=hidden -ffp-contract=off -Wall -Wextra -Werror $
      {flags} -I{csrc} {includes} -DCLASP_MODULE_NAME={name} -c $in -o $out
rule link
  command = {cxx} {flags} -shared $in -o $out
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


def build(variant: str) -> Path:
    """The module built as ``variant``, a key of FLAGS; from the cache if nothing changed."""
    import pybind11

    sources = sorted(BINDINGS.glob("*.cpp"))
    includes = [pybind11.get_include(), sysconfig.get_paths()["include"]]
    text = NINJA_FILE.format(
        cxx=shlex.join(compiler()),
        flags=shlex.join(FLAGS[variant]),
        csrc=CSRC,
        includes=shlex.join(flag for path in includes for flag in ("-isystem", path)),
        name=MODULE,
        target=MODULE + sysconfig.get_config_var("EXT_SUFFIX"),
        objects="\n".join(f"build {source.stem}.o: compile {source}" for source in sources),
        linked=" ".join(f"{source.stem}.o" for source in sources),
    )
    version = subprocess.run([*compiler(), "--version"], capture_output=True, check=True).stdout
    digest = hashlib.sha256(version + text.encode())
    sources = [*(CSRC / "core").iterdir(), CSRC / "cuda" / "plan.h", *BINDINGS.iterdir()]
    for source in sorted(sources):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())

    directory = ROOT / "build" / "tests-native" / f"{variant}-{digest.hexdigest()[:16]}"
    module = directory / (MODULE + sysconfig.get_config_var("EXT_SUFFIX"))
    if not module.exists():
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "build.ninja").write_text(text)
        done = subprocess.run(
            [ninja(), "-C", str(directory)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"the native test module did not compile:\n{done.stdout}")
    return module


def sanitizer_environment() -> dict[str, str]:
    """What a process needs to load the sanitized module into a Python that is not sanitized."""
    libraries = []
    # libstdc++ as well: the sanitizer looks for __cxa_throw when it starts, before any module.
    for name in ("libasan.so", "libubsan.so", "libstdc++.so"):
        found = subprocess.run(
            [*compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        if not os.path.isabs(found):
            raise RuntimeError(f"{' '.join(compiler())} does not come with {name}")
        libraries.append(os.path.realpath(found))
    return os.environ | {
        "LD_PRELOAD": ":".join(libraries),
        # Python frees little when it exits.
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        # numpy's own pool would hide where arrays end.
        "PYTHONMALLOC": "malloc",
        "OMP_NUM_THREADS": "1",
    }
