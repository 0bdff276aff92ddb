"""Run the rows of a model's table, one process of the harness for each row and task."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from real.settings import MODELS, TASKS, Model, Row, rows
from real.table import MANIFEST, RESULT, score, table

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "build" / "real"
LOG = "log.txt"
# The harness's own LLaVA logs this when generation failed and it scores an empty answer. The pruned
# one stops instead.
_SCORED_AN_ERROR = " in generating"
# The local task, which a script writes.
SCENES = "clasp_scenes"
PACKAGES = ("clasp-kernels", "lmms_eval", "transformers", "torch")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for. Return 1 if a run failed, else 0."""
    options = _parser().parse_args(arguments)
    if unknown := [name for name in options.models if name not in MODELS]:
        _stop(f"MODEL must be some of {', '.join(MODELS)}; got {unknown[0]}")
    names = options.models or [name for name, model in MODELS.items() if model.in_paper]
    if options.pretrained and len(names) > 1:
        _stop("--pretrained goes with one model, not several")
    if options.command == "run" and _version("lmms_eval") is None:
        _stop("lmms-eval is not installed: pip install --no-build-isolation '.[lmms-eval]'")
    failed = False
    for name in names:
        model = MODELS[name]
        tasks = options.tasks.split(",") if options.tasks else list(model.tasks)
        if unknown := [task for task in tasks if task not in TASKS]:
            _stop(f"--tasks must be some of {', '.join(TASKS)}; got {unknown[0]}")
        methods = {row.method for row in rows(model)}
        if unknown := [m for m in (options.methods or "").split(",") if m and m not in methods]:
            _stop(f"--methods must be some of {', '.join(sorted(methods))}; got {unknown[0]!r}")
        folder = options.out.resolve() / name
        chosen = [row for row in rows(model) if _asked_for(row, options.methods)]
        if options.command == "run" and SCENES in tasks:
            script = ROOT / "training" / "tiny_vlm" / "harness_task.py"
            subprocess.run([sys.executable, script, options.out / SCENES], check=True)
        if options.command != "table":
            for row in chosen:
                for task in tasks:
                    failed |= not _run(model, row, task, folder, options)
        if options.command != "dry-run":
            text = table(name, chosen, tasks, folder)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "table.md").write_text(text)
            print(text, flush=True)
    return int(failed)


def _asked_for(row: Row, methods: str | None) -> bool:
    return methods is None or row.budget is None or row.method in methods.split(",")


def _run(model: Model, row: Row, task: str, out: Path, options: argparse.Namespace) -> bool:
    """Run one row's task unless it is finished, and return whether it now is."""
    folder = out / row.name / task
    model_args = _model_args(model, row, options)
    manifest = {
        "model": row.harness,
        "model_args": model_args,
        "task": task,
        "limit": options.limit,
        "harness_args": options.harness_args,
        "versions": {package: _version(package) for package in PACKAGES},
    }
    command = _command(row, task, folder, model_args, options)
    if (folder / RESULT).is_file():
        _check_same(folder, manifest)
        print(f"# finished: {folder.relative_to(out.parent)}", flush=True)
        return True
    print(shlex.join(command), flush=True)
    if options.command == "dry-run":
        return True
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2))
    with (folder / LOG).open("w") as log:
        # Some tasks write files where they run.
        ended = subprocess.run(command, cwd=folder, stdout=log, stderr=log, check=False)
    # The harness's command line exits with 0 after most errors.
    problem = f"exit status {ended.returncode}" if ended.returncode else _take(task, folder)
    if problem:
        print(f"# failed: {problem}; see {folder / LOG}", flush=True)
    return not problem


def _take(task: str, folder: Path) -> str:
    """Make the harness's results the finished one. Return what is wrong with them, if anything."""
    if _SCORED_AN_ERROR in (folder / LOG).read_text(errors="replace"):
        return "the harness scored an empty answer where generate failed"
    written = sorted((folder / "harness").rglob("*_results.json"))
    if not written:
        return "the harness wrote no results"
    try:
        score(task, json.loads(written[-1].read_text()))
    except ValueError as error:
        return str(error)
    written[-1].rename(folder / RESULT)  # at once, so that it is whole if it is there
    return ""


def _check_same(folder: Path, manifest: dict[str, Any]) -> None:
    before = json.loads((folder / MANIFEST).read_text())
    for field, value in manifest.items():
        if before[field] != value:
            _stop(
                f"{folder} has a result with {field} {before[field]!r}, not {value!r}: choose "
                f"another --out, or delete the folder to run it again"
            )


def _model_args(model: Model, row: Row, options: argparse.Namespace) -> str:
    parts = [f"pretrained={options.pretrained or model.pretrained}", model.model_args]
    # With several processes, the harness places the models itself.
    if not options.launch:
        parts.append(f"device_map={options.device}")
    return ",".join(filter(None, [*parts, row.model_args, options.model_args]))


def _command(
    row: Row, task: str, folder: Path, model_args: str, options: argparse.Namespace
) -> list[str]:
    command = [*(shlex.split(options.launch) or [sys.executable]), "-m", "lmms_eval"]
    command += ["--model", row.harness, "--model_args", model_args]
    command += ["--tasks", task, "--batch_size", "1", "--output_path", str(folder / "harness")]
    if not options.launch:
        command += ["--device", options.device]
    if task == SCENES:
        command += ["--include_path", str(options.out.resolve() / SCENES)]
    if options.limit is not None:
        command += ["--limit", str(options.limit)]
    return [*command, *shlex.split(options.harness_args)]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _stop(message: str) -> None:
    raise SystemExit(f"benchmarks/real: {message}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks/real/run.sh",
        description="Evaluate models, unpruned and pruned by every rule, with lmms-eval.",
    )
    parser.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help=f"{', '.join(MODELS)} (default: those of the paper)",
    )
    parser.add_argument("--tasks", help=f"some of {','.join(TASKS)} (default: the model's)")
    parser.add_argument(
        "--methods", help="some of the rules, or 'clasp inside' (default: all); unpruned stays"
    )
    parser.add_argument(
        "--limit", type=int, help="only the first questions of each task, for a trial"
    )
    parser.add_argument("--out", type=Path, default=OUT, help="a folder (default: build/real)")
    parser.add_argument("--device", default="cuda", help="default: cuda")
    parser.add_argument("--pretrained", help="a folder or name of weights, instead of the usual")
    parser.add_argument(
        "--model-args",
        default="",
        help="more for --model_args of every row; paths must be absolute",
    )
    parser.add_argument(
        "--launch",
        default="",
        help="what starts Python instead: 'accelerate launch --num_processes 8'",
    )
    parser.add_argument(
        "--harness-args",
        default="",
        help="more arguments of lmms-eval: --harness-args=--log_samples",
    )
    mode = parser.add_mutually_exclusive_group()
    for command, text in (
        ("dry-run", "print the commands of what is not finished, and run nothing"),
        ("table", "only write the table, from what is finished"),
    ):
        mode.add_argument(
            f"--{command}", dest="command", action="store_const", const=command, help=text
        )
    parser.set_defaults(command="run")
    return parser
