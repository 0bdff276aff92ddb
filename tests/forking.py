"""Run code in forks of one interpreter that has imported torch, which takes seconds each time."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import tempfile
from pathlib import Path

# This module must not import the package: each fork does so by itself.


def python_with_torch(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process that has imported torch, but nothing of this project.

    Of the project's environment variables, only those in ``environment`` are set.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"])
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = context.Process(target=_run, args=(code, environment, str(out), str(err)))
        process.start()
        process.join(300)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"not done after 300 s: {code}")
        said = out.read_text(), err.read_text()
    return subprocess.CompletedProcess(code, process.exitcode, *said)


def _run(code: str, environment: dict[str, str], out: str, err: str) -> None:
    for path, stream in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    for name in [name for name in os.environ if name.startswith(("CLASP_KERNELS_", "TRITON_"))]:
        del os.environ[name]
    os.environ.update(environment)
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
