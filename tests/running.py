"""Run the ``clasp`` command, in this process or in a separate one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer.rich_utils  # noqa: F401 - it reads the terminal's width once, as it is outside of tests
from typer.testing import CliRunner

import clasp_kernels
from clasp_kernels.bundled import bundled_path, tiny_vlm_path
from clasp_kernels.cli.app import app

SCENE = str(bundled_path("demo", "scene_5.png"))
QUESTION = "What does the sign say?"


def clasp(*arguments: object, columns: int = 200) -> Any:
    # Wide, so that no sentence is wrapped.
    runner = CliRunner(env={"COLUMNS": str(columns), "TERMINAL_WIDTH": str(columns)})
    return runner.invoke(app, [str(argument) for argument in arguments])


def message(result: Any) -> str:
    """Return the text on stderr without boxes and line breaks."""
    return " ".join(result.stderr.replace("│", " ").split())


def clasp_process(
    *arguments: str | bytes,
    python: tuple[str, ...] = (),
    env: Mapping[str, str] = {},
    **streams: Any,
) -> subprocess.CompletedProcess[bytes]:
    """Run ``clasp`` in a separate process with the given interpreter options and environment."""
    root = str(Path(clasp_kernels.__file__).parents[1])
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return subprocess.run(
        [sys.executable, *python, "-m", "clasp_kernels.cli", *arguments],
        env={**os.environ, "PYTHONPATH": root, "HF_HUB_OFFLINE": "1", **env},
        timeout=300,
        check=False,
        **streams,
    )


def variant(folder: Path, file: str, changes: Mapping[str, Any]) -> Path:
    """Copy the bundled model and change values in one of its JSON files."""
    model = folder / "model"
    shutil.copytree(tiny_vlm_path(), model)
    data = json.loads((model / file).read_text())
    for name, value in changes.items():
        data[name] = {**data[name], **value} if isinstance(value, dict) else value
    (model / file).write_text(json.dumps(data))
    return model
