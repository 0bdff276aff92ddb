"""What ``bench_prefill.py`` measures and records."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from count_malloc import counting
from gpu import device as gpu
from machine import ROOT, environment, keep_freed_memory

from clasp_kernels import backends, use_backend
from clasp_kernels.backends.table import OPS

from .measuring import (
    PrefillRow,
    Times,
    columns,
    interquartile_range,
    kv_bytes,
    peak_bytes,
    ratio_of,
    runs,
    selection_share,
    time_rounds,
)
from .methods import UNPRUNED, Method, Runner, make_runner, methods, stages
from .prefill_table import prefill_table
from .shape import Shape, build, make_prompt
from .shapes import RECORDED, SHAPES

SCRIPT = Path(__file__).with_name("bench_prefill.py")
RESULTS = ROOT / "benchmarks" / "results" / "cpu"
ROUNDS = 7


def make_runners(
    model: Any, shape: Shape, prompt: Mapping[str, torch.Tensor]
) -> dict[Method, Runner]:
    return {method: make_runner(model, shape, prompt, method) for method in methods(shape)}


def caches_of(runners: Mapping[Method, Runner]) -> dict[Method, tuple[list[int], int]]:
    """The columns of every layer and the bytes of all, after a prefill of each method.

    It also warms each of them up.

    Raises:
        RuntimeError: an ideal has other columns than pruning leaves.
    """
    caches = {}
    for method, runner in runners.items():
        _, cache = runner.prefill()
        caches[method] = columns(cache), kv_bytes(cache)
    for method, (found, _) in caches.items():
        ours = Method(method.name, method.budget)
        if caches[ours][0] != found:
            raise RuntimeError(f"{ours} leaves columns {caches[ours][0]}, but {method} has {found}")
    return caches


def peaks_here(shape: Shape, device: torch.device, batch: int) -> dict[str, int]:
    model = build(shape, device, torch.float32)
    runners = make_runners(model, shape, make_prompt(shape, model, batch))
    runners[methods(shape)[0]].prefill()  # sets up threads and buffers that stay
    return {str(method): peak_bytes(runner, device) for method, runner in runners.items()}


def peaks_in_fresh_process(shape_name: str, batch: int) -> dict[str, int]:
    command = [sys.executable, str(SCRIPT), "--shape", shape_name, "--peaks-of", str(batch)]
    done = subprocess.run(command, env=counting(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    peaks: dict[str, int] = json.loads(done.stdout)
    return peaks


def make_row(
    shape: Shape,
    batch: int,
    method: Method,
    times: Mapping[Method, Times],
    cache: tuple[list[int], int],
    peak: int,
) -> PrefillRow:
    first, later, selection = times[method]
    ideal = Method(method.name, method.budget, ideal=True)
    has_ideal = not method.ideal and method.name != UNPRUNED
    return PrefillRow(
        method=method.name,
        ideal=method.ideal,
        batch=batch,
        budget=method.budget,
        stages=[list(stage) for stage in stages(shape, method).items()],
        columns=runs(cache[0]),
        rounds=len(first),
        first_token=round(statistics.median(first), 6),
        first_token_min=round(min(first), 6),
        first_token_iqr=round(interquartile_range(first), 6),
        per_token=round(statistics.median(later), 6),
        peak_bytes=peak,
        kv_bytes=cache[1],
        ideal_ratio=round(ratio_of(times[ideal], times[method]), 4) if has_ideal else None,
        selection=round(statistics.median(selection), 6) if has_ideal else None,
        selection_share=round(selection_share(times[method]), 4) if has_ideal else None,
    )


def measure(
    shape_name: str, device: torch.device, batches: Sequence[int], rounds: int
) -> Iterator[dict[str, Any]]:
    """Measure a shape and yield the content of its file after every batch, as time may run out."""
    shape = SHAPES[shape_name]
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    model = build(shape, device, dtype)
    chosen = {op: str(backends.choose(op, device.type, "auto").backend) for op in OPS}
    # The commit is asked for before anything is measured, and on a GPU may be in the environment.
    where = environment() if device.type == "cpu" else gpu.describe(chosen, None)
    of_what = {
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "command": "python benchmarks/models/bench_prefill.py " + " ".join(sys.argv[1:]),
        "shape_name": shape_name,
        "shape": asdict(shape),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "backends": chosen,
        "dtype": str(dtype).removeprefix("torch."),
    }
    rows: list[PrefillRow] = []
    for batch in batches:
        start = time.monotonic()
        prompt = make_prompt(shape, model, batch)
        runners = make_runners(model, shape, prompt)
        caches = caches_of(runners)
        times = time_rounds(runners, device, shape.prompt_length, rounds)
        if device.type == "cpu":
            peaks = peaks_in_fresh_process(shape_name, batch)
        else:
            peaks = {str(method): peak_bytes(runner, device) for method, runner in runners.items()}
        rows += [
            make_row(shape, batch, method, times, caches[method], peaks[str(method)])
            for method in runners
        ]
        print(
            f"{shape_name}, B={batch}: measured in {time.monotonic() - start:.0f} s",
            file=sys.stderr,
        )
        yield {"environment": where | of_what, "rows": [asdict(row) for row in rows]}


def main(description: str) -> None:
    arguments = parse_arguments(description)
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no GPU here; --device cpu needs none")
    with torch.no_grad(), use_backend("cpu" if device.type == "cpu" else "auto"):
        if arguments.peaks_of:
            print(json.dumps(peaks_here(SHAPES[arguments.shape], device, arguments.peaks_of)))
            return
        if device.type == "cpu":
            keep_freed_memory()
        whole = not arguments.batches and arguments.rounds >= ROUNDS and device.type == "cpu"
        for name in [arguments.shape] if arguments.shape else RECORDED:
            batches = arguments.batches or SHAPES[name].batches
            out = arguments.out
            if whole and name in RECORDED:
                out = out or RESULTS / RECORDED[name]
            for content in measure(name, device, batches, arguments.rounds):
                if out:
                    out.write_text(json.dumps(content, indent=2) + "\n")
            print(f"{name}\n{prefill_table(content['rows'])}")


def parse_arguments(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument(
        "--shape", choices=SHAPES, help=f"one shape; without it, {' and '.join(RECORDED)}"
    )
    parser.add_argument("--batches", type=int, nargs="+", help="prompts at once")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, help="the file of the results of --shape")
    parser.add_argument("--peaks-of", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.out and not arguments.shape:
        parser.error("--out is the file of one shape's results: say which with --shape")
    return arguments
