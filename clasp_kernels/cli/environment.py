"""Collect the report for bug reports: the machine, the installation, the backend of each op.

The report is needed when something is broken, so a failure must not stop it. Every value is
collected separately, and an exception becomes the text of that value. Code that imports torch or
loads the extension runs in another process, so even a crash in native code or a hang is only a line
of the report.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import partial
from importlib import metadata
from pathlib import Path

Section = dict[str, str]
Report = dict[str, Section]

PACKAGES = (
    "clasp-kernels",
    "torch",
    "triton",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "pillow",
    "typer",
    "rich",
    "ninja",
    "pybind11",
    "setuptools",
)

# The instruction sets that kernels are chosen by, in Linux's spelling.
ISA_FLAGS = (
    *("avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni"),
    *("avx512_bf16", "avx512_fp16", "amx_bf16", "amx_tile"),
    *("asimd", "asimdhp", "asimddp", "bf16", "sve", "sve2"),
)

VARIABLES = (
    *("CUDA_HOME", "CUDA_VISIBLE_DEVICES", "TORCH_CUDA_ARCH_LIST", "TRITON_INTERPRET"),
    *("NVCC_APPEND_FLAGS", "NVCC_PREPEND_FLAGS", "NVCC_CCBIN"),
    *("OMP_NUM_THREADS", "CC", "CXX", "CXXFLAGS", "LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONPATH"),
)
PREFIX = "CLASP_KERNELS_"

ABSENT = "not found"

# Importing torch from a cold disk takes tens of seconds. A longer time is a hang.
PROBE_TIMEOUT_SECONDS = 120
COMMAND_TIMEOUT_SECONDS = 20
# Prefix of the probes' lines, because libraries may print other lines while they load.
MARKER = "clasp-kernels-probe:"


def collect() -> Report:
    """Return the report by section, as in ``report["torch"]["version"]``. Never raises.

    A value that could not be found is ``"error: ..."`` with the exception's type and message.

    >>> report = collect()
    >>> report["system"]["python"].startswith(platform.python_version())
    True
    """
    return {
        "system": _whole(_system),
        "toolchain": _whole(_toolchain),
        "gpu": _whole(_gpu),
        "packages": _whole(_packages),
        **_run_probes(),
        "environment": _whole(_environment),
    }


def render(report: Report) -> str:
    """Format the report as text to paste into an issue.

    >>> print(render({"gpu": {"nvidia-smi": "not found"}}))
    gpu
      nvidia-smi  not found
    """
    lines = []
    for title, section in report.items():
        lines.append(title)
        width = max((len(name) for name in section), default=0)
        for name, value in section.items():
            indent = " " * (width + 4)
            lines.append(f"  {name:<{width}}  " + value.strip().replace("\n", "\n" + indent))
    return "\n".join(lines)


def _describe(error: BaseException) -> str:
    return f"error: {type(error).__name__}: {error}"


def _guarded(find: Callable[[], object]) -> str:
    try:
        return str(find())
    except Exception as error:
        return _describe(error)


def _whole(find: Callable[[], Section]) -> Section:
    try:
        return find()
    except Exception as error:
        return {"status": _describe(error)}


def _section(**finders: Callable[[], object]) -> Section:
    return {name.replace("_", " "): _guarded(find) for name, find in finders.items()}


def _lines(*command: str) -> list[str]:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_SECONDS, check=False
        )
    except FileNotFoundError:
        return [ABSENT]
    if done.returncode != 0:
        raise RuntimeError(f"exit status {done.returncode}: {(done.stdout + done.stderr).strip()}")
    return done.stdout.strip().splitlines()


def _first_line(*command: str, containing: str = "") -> str:
    """Return the first output line of a command that has ``containing``."""
    lines = _lines(*command)
    return next((line for line in lines if containing in line), "no version in its output")


def _cpuinfo() -> dict[str, str]:
    """Return the first processor's entries in /proc/cpuinfo."""
    entries: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        entries.setdefault(name.strip(), value.strip())
    return entries


def _instruction_sets() -> str:
    cpuinfo = _cpuinfo()
    # The entry is "flags" on x86, "Features" on ARM.
    present = (cpuinfo.get("flags") or cpuinfo["Features"]).split()
    return " ".join(flag for flag in ISA_FLAGS if flag in present) or "none of those used here"


def _cores() -> str:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{os.cpu_count()}, of which this process may use {usable}"


def _system() -> Section:
    return _section(
        os=lambda: platform.freedesktop_os_release()["PRETTY_NAME"],
        kernel=platform.platform,
        python=lambda: f"{platform.python_version()} ({sys.executable})",
        cpu=lambda: _cpuinfo().get("model name") or platform.processor() or platform.machine(),
        isa=_instruction_sets,
        cores=_cores,
    )


def _find_nvcc() -> str:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    found = shutil.which("nvcc") or shutil.which("nvcc", path=str(Path(home, "bin")))
    return f"{_first_line(found, '--version', containing='release')} ({found})" if found else ABSENT


def _toolchain() -> Section:
    commands = {name: (name, "--version") for name in ("gcc", "g++", "clang++")}
    versions = {name: _guarded(partial(_first_line, *line)) for name, line in commands.items()}
    return {**versions, "nvcc": _guarded(_find_nvcc)}


def _gpu() -> Section:
    fields = "name,driver_version,compute_cap,memory.total"
    query = ("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader")
    return {"nvidia-smi": _guarded(lambda: "\n".join(_lines(*query)))}


def _packages() -> Section:
    def version(name: str) -> str:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "not installed"

    return {name: _guarded(partial(version, name)) for name in PACKAGES}


def _environment() -> Section:
    names = [name for name in sorted(os.environ) if name.startswith(PREFIX) or name in VARIABLES]
    return {name: os.environ[name] for name in names} or {PREFIX + "*": "not set"}


# The probes run in another process.


def _probe_torch() -> Section:
    import torch

    return _section(
        version=lambda: torch.__version__,
        path=lambda: Path(torch.__file__).parent,
        cuda=lambda: torch.version.cuda or "none: a CPU build",
        gpus=lambda: (
            ", ".join(map(torch.cuda.get_device_name, range(torch.cuda.device_count())))
            or "none visible"
        ),
        cpu_capability=torch.backends.cpu.get_cpu_capability,
        threads=torch.get_num_threads,
    )


def _probe_extension() -> Section:
    import clasp_kernels

    # backend_report defines the ops first; the library must not be loaded before that.
    report = clasp_kernels.backend_report()
    status, cuda = report.native, report.cuda
    return _section(
        version=lambda: clasp_kernels.__version__,
        package=lambda: Path(clasp_kernels.__file__).parent,
        loaded=lambda: "yes" if status.loaded else "no",
        library=lambda: status.path or ABSENT,
        reason=lambda: status.reason,
        cpu_capability=lambda: status.capability or "none",
        cuda_loaded=lambda: "yes" if cuda.loaded else "no",
        cuda_library=lambda: cuda.path or ABSENT,
        cuda_reason=lambda: cuda.reason,
        compiler=lambda: importlib.import_module("clasp_kernels._build_info").COMPILER,
    )


def _probe_backends() -> Section:
    import clasp_kernels

    report = clasp_kernels.backend_report()
    rows = {
        f"{row.op} on {row.device}": f"{row.backend or 'none'}: {row.reason}" for row in report.ops
    }
    return {"forced": report.forced, **rows}


PROBES: dict[str, Callable[[], Section]] = {
    "torch": _probe_torch,
    "extension": _probe_extension,
    "backends": _probe_backends,
}


def _answer(names: Iterable[str]) -> None:
    """Run in the other process: print one line per probe, flushed, so a crash loses only one."""
    for name in names:
        print(MARKER + json.dumps([name, _whole(PROBES[name])]), flush=True)


def _run_probes() -> Report:
    """Run every probe. After a crash or a hang, run the remaining probes in a new process."""
    report: Report = {}
    waiting = list(PROBES)
    while waiting:
        answers, failure = _ask(waiting)
        report.update(answers)
        waiting = [name for name in waiting if name not in answers]
        if waiting:
            report[waiting.pop(0)] = {"status": failure}
    return report


def _ask(names: list[str]) -> tuple[Report, str]:
    """Run probes in another process. Return the sections, and why some are missing."""
    # Run this file by path: importing the package may be what is broken.
    call = f"runpy.run_path({__file__!r})['_answer']({names!r})"
    code = f"import runpy, sys; sys.path[:] = {sys.path!r}; {call}"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PROBE_TIMEOUT_SECONDS,
            check=False,
        )
        output, failure = done.stdout, _exit_reason(done.returncode, done.stderr)
    except subprocess.TimeoutExpired as error:
        # The partial output is bytes here, despite text=True.
        output = (error.stdout or b"").decode(errors="replace")
        failure = f"error: no answer within {PROBE_TIMEOUT_SECONDS} s"
    except Exception as error:
        return {}, _describe(error)
    answers: Report = {}
    for line in output.splitlines():
        _, found, answer = line.partition(MARKER)
        # The last line of a killed process may be incomplete.
        with contextlib.suppress(ValueError):
            if found:
                name, section = json.loads(answer)
                answers[name] = section
    return answers, failure


def _exit_reason(status: int, stderr: str) -> str:
    how = f"exit status {status}"
    if status < 0:
        with contextlib.suppress(ValueError):
            how = signal.Signals(-status).name
    return (
        f"error: the process ended with {how}: "
        + (stderr.strip().splitlines() or ["no message"])[-1]
    )


def print_report() -> None:
    """Print the report as plain text, using the standard library only."""
    # Escape characters that the terminal cannot show, instead of raising an exception.
    text = render(collect())
    encoding = sys.stdout.encoding or "ascii"
    print(text.encode(encoding, "backslashreplace").decode(encoding))
