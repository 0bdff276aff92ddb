"""Pictures for the benchmarks of ``clasp batch``, and its processes as the system sees them."""

from __future__ import annotations

import json
import os
import random
import secrets
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil
from machine import ROOT
from PIL import Image

from clasp_kernels.bundled import bundled_path

QUESTION = "How many circles are there?"
# These questions have different lengths and categories, so that batches are padded.
QUESTIONS = (
    QUESTION,
    "What is written on the sign?",
    "Where is the circle?",
    "What color is the ring? Answer with one word, and say nothing else.",
)
_SCENES = 5
# Marks the processes of one run, and all that they start, in their environment.
_MARK = "CLASP_BATCH_BENCHMARK"


def write_pictures(folder: Path, count: int, broken: float = 0.0, seed: int = 0) -> list[str]:
    """Write pictures, each another one, of which a share is broken. Returns the broken ones."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    scenes = []
    for number in range(_SCENES):
        with Image.open(bundled_path("demo", f"scene_{number + 1}.png")) as scene:
            scenes.append(scene.convert("RGB"))
    bad = sorted(draw.sample(range(count), round(count * broken)))
    for number in range(count):
        path = folder / f"{number:06d}.png"
        scene = scenes[number % _SCENES].rotate(draw.uniform(-20, 20), fillcolor="white")
        scene.save(path, compress_level=1)
        if number in bad:
            content = path.read_bytes()
            path.write_bytes(draw.choice([b"", b"no picture", content[: len(content) // 2]]))
    return [f"{number:06d}.png" for number in bad]


def write_questions(folder: Path, count: int) -> Path:
    """Write pictures and a JSONL file with a question about each. Returns the file."""
    write_pictures(folder, count)
    rows = [
        {"image": f"{number:06d}.png", "question": QUESTIONS[number % len(QUESTIONS)]}
        for number in range(count)
    ]
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Command:
    """``clasp batch`` as a process, with all processes that it starts, and their cluster.

    Args:
        arguments: what follows ``clasp batch``.
        env: variables beside those of this process.
        log: the file that its stderr is appended to.
    """

    def __init__(self, arguments: list[str], log: Path, env: Mapping[str, str] = {}) -> None:
        self._mark = secrets.token_hex(8)
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        given = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", **env}
        with open(log, "ab") as stderr:
            self.driver = psutil.Popen(
                [sys.executable, *arguments],
                env={**given, _MARK: self._mark},
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )

    @classmethod
    def batch(cls, arguments: list[str], log: Path, env: Mapping[str, str] = {}) -> Command:
        """Start ``clasp batch``."""
        return cls(["-m", "clasp_kernels.cli", "batch", *arguments], log, env)

    def processes(self) -> list[psutil.Process]:
        """Return all living processes of the run, the driver among them if it lives."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.status() == psutil.STATUS_ZOMBIE:
                    continue
                if process.environ().get(_MARK) == self._mark:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def workers(self) -> list[psutil.Process]:
        """Return the processes that answer: of the local engine, or Ray's actors."""
        found = []
        for process in self.processes():
            try:
                line = " ".join(process.cmdline())
            except psutil.NoSuchProcess:
                continue
            if "spawn_main" in line or line.startswith("ray::MapWorker"):
                found.append(process)
        return found

    def memory_bytes(self) -> int:
        """Return the memory of all processes. Pages that some of them share count once."""
        total = 0
        for process in self.processes():
            try:
                total += process.memory_full_info().pss
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return total
