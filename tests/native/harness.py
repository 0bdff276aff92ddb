"""Builds Python modules of the torch-free core and of CUDA kernels for the host, with ninja, as
often as their sources change."""

from __future__ import annotations

import hashlib
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
BINDINGS = Path(__file__).with_name("bindings")
SIMT = Path(__file__).with_name("simt")  # the words of CUDA, for the host
SIMT_INCLUDES = [SIMT / "replaced", SIMT, CSRC]  # what is replaced is found first
SIMT_FLAGS = ["-Wno-unknown-pragmas", "-pthread"]

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
      {flags} $extra {includes} -DCLASP_MODULE_NAME={name} -c $in -o $out
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
    """The core built as ``variant``, a key of FLAGS; from the cache if nothing changed."""
    sources = sorted(BINDINGS.glob("*.cpp"))
    read = [*(CSRC / "core").iterdir(), CSRC / "cuda" / "plan.h", *BINDINGS.iterdir()]
    return _build("clasp_core", variant, sources, [CSRC], FLAGS[variant], read)


def build_cuda() -> Path:
    """The kernels of csrc/cuda, with fibers for GPU threads; from the cache likewise."""
    return _build_simt("clasp_simt", "simt", [SIMT / "selection.cpp"], FLAGS["plain"])


def build_races() -> Path:
    """The kernels as in :func:`build_cuda`, with every access to memory watched (races.h)."""
    # The compiler's half of a sanitizer without the sanitizer: races.cpp is the other half.
    watched = {"selection": ["-fsanitize=thread", "-DSIMT_RACES"]}
    sources = [SIMT / "selection.cpp", SIMT / "races.cpp"]
    return _build_simt("clasp_races", "races", sources, ["-O1", "-g"], watched)


def _build_simt(
    module_name: str,
    variant: str,
    sources: list[Path],
    flags: list[str],
    extra: Mapping[str, list[str]] = MappingProxyType({}),
) -> Path:
    read = [path for folder in (CSRC, SIMT) for path in folder.rglob("*") if path.is_file()]
    return _build(module_name, variant, sources, SIMT_INCLUDES, [*flags, *SIMT_FLAGS], read, extra)


# Of the extension, to run it without a GPU: what it launches, the tensors it takes, the library it
# registers for, and a workspace that few images fill.
HOST_SUFFIXES = (".cu", ".cuh", ".h")
WORKSPACE_BYTES = 1 << 18
FOR_THE_HOST = (
    (r"(\w+(?:<[\w, ]+>)?)\s*<<<(.+?), (\w+), 0, stream_>>>", r"simt::on_grid(\1, \2, \3)"),
    (r"\bis_cuda\b", "is_cpu"),
    (r"torch::stable::accelerator::DeviceGuard", "simt::DeviceGuard"),
    (r"\(clasp_kernels, CUDA, m\)", "(clasp_simt, CPU, m)"),
    (r"(kWorkspaceBytes =) int64_t\{256\} << 20", rf"\1 {WORKSPACE_BYTES}"),
)


def build_extension() -> Path:
    """csrc/cuda with its launches and its torch interface, for tensors on the CPU: a library that
    torch loads."""
    build = runpy.run_path(str(ROOT / "setup.py"))
    _, torch_includes, torch_libraries = build["find_torch"]()
    files = sorted(path for path in (CSRC / "cuda").iterdir() if path.suffix in HOST_SUFFIXES)
    sources = {path: path.read_text() for path in files}
    found = {pattern: 0 for pattern, _ in FOR_THE_HOST}
    for path, text in sources.items():
        for pattern, replacement in FOR_THE_HOST:
            text, count = re.subn(pattern, replacement, text, flags=re.DOTALL)
            found[pattern] += count
        sources[path] = text
    missing = [pattern for pattern, count in found.items() if count == 0]
    if missing or any("<<<" in text for text in sources.values()):
        raise RuntimeError(f"csrc/cuda is not what FOR_THE_HOST expects: {missing or '<<<'}")
    digest = hashlib.sha256()
    folders = (SIMT, CSRC / "core", CSRC / "common")
    read = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in [*sources, *read]:
        text = sources[path] if path in sources else path.read_text()
        digest.update(path.name.encode() + b"\0" + text.encode())
    digest.update(repr((torch_includes, build["DEFINES"], compiler())).encode())
    folder = ROOT / "build" / "tests-native" / f"extension-{digest.hexdigest()[:16]}"
    library = folder / "clasp_simt_extension.so"
    if not library.exists():
        generated = folder / "cuda"
        generated.mkdir(parents=True, exist_ok=True)
        for path, text in sources.items():
            (generated / path.name).write_text(text)
        includes = [*SIMT_INCLUDES[:-1], folder, CSRC]
        # Under a name of this process's own until it is whole: others may be building it too.
        unfinished = library.with_suffix(f".{os.getpid()}")
        command = [
            *(*compiler(), "-std=c++20", "-O1", "-fPIC", "-shared", "-fvisibility=hidden"),
            *("-ffp-contract=off", "-Wall", "-Wextra", "-Werror", *SIMT_FLAGS),
            *(*build["DEFINES"], *(f"-I{path}" for path in includes)),
            *(flag for path in torch_includes for flag in ("-isystem", path)),
            *("-include", "with_torch.h", "-x", "c++", str(generated / "select_tokens.cu")),
            *("-o", str(unfinished), *(f"-L{path}" for path in torch_libraries)),
            *("-ltorch_cpu", "-ltorch"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"the extension did not compile for the host:\n{done.stderr}")
        unfinished.replace(library)
    return library


def _build(
    module_name: str,
    variant: str,
    sources: list[Path],
    include_dirs: list[Path],
    flags: list[str],
    read: list[Path],
    extra: Mapping[str, list[str]] = MappingProxyType({}),
) -> Path:
    """``extra``: flags of single sources, by their names."""
    import pybind11

    system = [pybind11.get_include(), sysconfig.get_paths()["include"]]
    includes = [f"-I{path}" for path in include_dirs]
    includes += [flag for path in system for flag in ("-isystem", path)]
    text = NINJA_FILE.format(
        cxx=shlex.join(compiler()),
        flags=shlex.join(flags),
        includes=shlex.join(includes),
        name=module_name,
        target=module_name + sysconfig.get_config_var("EXT_SUFFIX"),
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
    module = directory / (module_name + sysconfig.get_config_var("EXT_SUFFIX"))
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
