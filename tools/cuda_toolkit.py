"""Finds the CUDA toolkit for the CUDA kernels and the GPUs to build for; accesses no GPU.

setup.py only calls this when it compiles, because metadata and source distributions need neither
torch nor a toolkit.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

BUILD = "CLASP_KERNELS_BUILD_CUDA"
ARCHITECTURES = "TORCH_CUDA_ARCH_LIST"
DEFAULT_ARCHITECTURES = "8.0;9.0;10.0+PTX"
OLDEST = (8, 0)
USUAL_HOME = Path("/usr/local/cuda")
STATIC_RUNTIME = "libcudart_static.a"


class Missing(Exception):
    """Why the CUDA kernels cannot be built here, and how to fix that."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy


class Architecture(NamedTuple):
    """An entry of TORCH_CUDA_ARCH_LIST, such as "9.0a+PTX"."""

    major: int
    minor: int
    suffix: str = ""
    """"a": only for exactly this GPU; "f": for its family."""
    ptx: bool = False
    """Whether later GPUs are served too, by compiling PTX when the kernels are loaded."""

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}{self.suffix}" + ("+PTX" if self.ptx else "")

    @property
    def number(self) -> str:
        return f"{self.major}{self.minor}"

    def flags(self) -> list[str]:
        name = self.number + self.suffix
        codes = [f"sm_{name}", *([f"compute_{name}"] if self.ptx else [])]
        return [f"-gencode=arch=compute_{name},code={code}" for code in codes]


class Toolkit(NamedTuple):
    """The toolkit that compiles and links the CUDA kernels."""

    nvcc: str
    version: str
    library_dir: str
    """The folder of the static runtime."""
    architectures: tuple[Architecture, ...]
    left_out: tuple[str, ...]
    """A sentence for each requested architecture that is not built for."""

    def compile_flags(self, compiler: list[str]) -> list[str]:
        """Returns the architecture flags, and the host compiler if CXX names one."""
        flags = [flag for each in self.architectures for flag in each.flags()]
        if os.environ.get("CXX"):
            # nvcc's -ccbin takes a program without a launcher; its flags are passed separately.
            programs = [word for word in compiler if not word.startswith("-")]
            flags += ["-ccbin", programs[-1]]
            flags += [f"-Xcompiler={word}" for word in compiler if word.startswith("-")]
        return flags

    def link_flags(self) -> list[str]:
        """Links a hidden static CUDA runtime, because torch's may be of another minor version."""
        runtime = ["-lcudart_static", "-ldl", "-lrt", "-lpthread"]
        return [f"-L{self.library_dir}", *runtime, f"-Wl,--exclude-libs,{STATIC_RUNTIME}"]


def wanted(environment: Mapping[str, str]) -> str:
    """ "auto", "0" or "1"; raises ValueError for anything else."""
    value = environment.get(BUILD) or "auto"
    if value not in ("auto", "0", "1"):
        raise ValueError(f"{BUILD} must be auto, 0 or 1, got {value!r}.")
    return value


def find(environment: Mapping[str, str], torch_version: str, torch_cuda: str | None) -> Toolkit:
    """Returns the toolkit for this torch. Raises Missing, or ValueError for an unreadable list."""
    asked = parse(environment.get(ARCHITECTURES) or DEFAULT_ARCHITECTURES)
    if torch_cuda is None:
        raise Missing(
            f"torch {torch_version} is {'a ROCm' if '+rocm' in torch_version else 'a CPU'} build",
            "install a CUDA build of torch (https://pytorch.org/get-started/locally)",
        )
    major = torch_cuda.partition(".")[0]
    nvcc = find_nvcc(environment, major)
    version = nvcc_version(nvcc)
    if version.partition(".")[0] != major:
        raise Missing(
            f"{nvcc} is of CUDA {version}, and torch {torch_version} was built with CUDA "
            f"{torch_cuda}",
            f"install a CUDA {major} toolkit and set CUDA_HOME to it, or a torch for CUDA "
            f"{version}",
        )
    known = set(re.findall(r"compute_(\d+)", run(nvcc, "--list-gpu-arch")))
    architectures, left_out = choose(asked, known, version)
    if not architectures:
        raise Missing(
            f"nvcc {version} builds the kernels for none of {';'.join(map(str, asked))}",
            f"set {ARCHITECTURES} to compute capabilities of {OLDEST[0]}.{OLDEST[1]} or later "
            "that it knows",
        )
    return Toolkit(nvcc, version, find_static_runtime(nvcc), architectures, left_out)


def parse(text: str) -> tuple[Architecture, ...]:
    """Parses TORCH_CUDA_ARCH_LIST, whose entries are separated by semicolons or spaces."""
    found = []
    for entry in text.replace(";", " ").split():
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", entry)
        if match is None:
            raise ValueError(
                f"{ARCHITECTURES} must list compute capabilities such as "
                f"'{DEFAULT_ARCHITECTURES}', got {entry!r} in {text!r}."
            )
        found.append(Architecture(int(match[1]), int(match[2]), match[3], match[4] is not None))
    return tuple(found)


def choose(
    asked: tuple[Architecture, ...], known: set[str], version: str
) -> tuple[tuple[Architecture, ...], tuple[str, ...]]:
    """Returns the architectures that can be built, and a sentence for each of the others."""
    kept, left_out = [], []
    for architecture in asked:
        name = f"{architecture.major}.{architecture.minor}{architecture.suffix}"
        if (architecture.major, architecture.minor) < OLDEST:
            oldest = ".".join(map(str, OLDEST))
            left_out.append(f"not built for GPUs of {name}: the CUDA kernels need {oldest}.")
        elif architecture.number not in known:
            left_out.append(f"not built for GPUs of {name}: nvcc {version} does not know them.")
        else:
            kept.append(architecture)
    # If the architecture with PTX was dropped, the newest remaining one gets PTX to serve later
    # GPUs.
    portable = [index for index, architecture in enumerate(kept) if not architecture.suffix]
    if portable and any(a.ptx for a in asked) and not any(a.ptx for a in kept):
        newest = max(portable, key=lambda index: kept[index])
        kept[newest] = kept[newest]._replace(ptx=True)
    return tuple(kept), tuple(left_out)


def find_nvcc(environment: Mapping[str, str], major: str) -> str:
    remedy = f"install a CUDA {major} toolkit and set CUDA_HOME to it"
    if home := environment.get("CUDA_HOME"):
        if found := shutil.which("nvcc", path=str(Path(home, "bin"))):
            return found
        raise Missing(f"CUDA_HOME={home} has no bin/nvcc", remedy)
    found = shutil.which("nvcc", path=environment.get("PATH"))
    if found := found or shutil.which("nvcc", path=str(USUAL_HOME / "bin")):
        return found
    raise Missing(f"no nvcc was found, neither on the path nor in {USUAL_HOME}/bin", remedy)


def nvcc_version(nvcc: str) -> str:
    output = run(nvcc, "--version")
    match = re.search(r"release (\d+\.\d+)", output)
    if match is None:
        raise Missing(f"{nvcc} --version names no release", "set CUDA_HOME to a CUDA toolkit")
    return match[1]


def find_static_runtime(nvcc: str) -> str:
    """Asks nvcc for its library folder, because nvcc may be a wrapper or a distribution's
    package."""
    output = run(nvcc, "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull)
    match = re.search(r"^#\$ LIBRARIES=(.*)$", output, re.MULTILINE)
    folders = [flag[2:] for flag in shlex.split(match[1]) if flag[:2] == "-L"] if match else []
    for folder in folders:
        if Path(folder, STATIC_RUNTIME).is_file():
            return os.path.normpath(folder)
    raise Missing(
        f"{STATIC_RUNTIME} is not where {nvcc} looks for libraries ({', '.join(folders)})",
        "install the toolkit's runtime for development (cuda-cudart-dev)",
    )


def run(*command: str) -> str:
    """Returns the output of a command; raises Missing if it fails."""
    try:
        # Standard error is included, because nvcc's dry run prints there.
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
    except OSError as error:
        raise Missing(f"{command[0]} cannot be run ({error})", "set CUDA_HOME to another") from None
    if done.returncode != 0:
        last = (done.stdout.strip().splitlines() or ["no message"])[-1]
        raise Missing(f"{shlex.join(command)} fails ({last})", "set CUDA_HOME to another toolkit")
    return done.stdout
