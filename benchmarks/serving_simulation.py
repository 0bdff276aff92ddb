"""Simulate a server under load, with and without pruning, from measured costs of its stages.

    python benchmarks/serving_simulation.py --out benchmarks/results/cpu/serving_simulation.json

The costs are fitted to a table of prefills that `bench_prefill.py` has measured. Assumptions:

- Requests arrive at random (Poisson). Each has one picture and one question, and all have equally
  many text and answer tokens. The picture is one of `pictures`, the category one of `categories`,
  both drawn uniformly.
- The engine works in steps, as vLLM's does: a step admits waiting requests in order of arrival,
  encodes and prefills them, and gives each running request one token. Stages add up, and none run
  at the same time.
- A request is admitted if fewer than `batch` are running and its whole prompt and answer fit into
  the memory for keys and values.
- The prefix cache keeps the pictures used last in the memory that running requests leave. A hit
  costs neither encoding nor the prefill of the picture. With pruning, each category of a picture is
  an entry of its own, which is smaller.
- Answers are as long and as good with pruning as without: quality is not simulated.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, quantiles
from typing import Any

DEFAULT_COSTS = Path(__file__).parent / "results" / "cpu" / "prefill.json"


@dataclass(frozen=True)
class Costs:
    """Seconds and bytes of the stages of one model on one machine."""

    encode: float
    """Seconds to encode one picture, and to select its tokens."""
    prefill: float
    """Seconds for one token of a prompt."""
    step: float
    """Seconds of a step that gives tokens to running requests, whatever their number."""
    sequence: float
    """Further seconds of the step for each running request."""
    cached: float
    """Further seconds of the step for each token in the cache of a running request."""
    token_bytes: float
    """Bytes of keys and values of one token."""


@dataclass(frozen=True)
class Load:
    """The requests that arrive, and what the server has for them."""

    rate: float
    """Requests a second."""
    memory: float
    """Bytes for keys and values."""
    batch: int = 32
    """The most requests that run at the same time."""
    visual_tokens: int = 576
    text_before: int = 40
    text_after: int = 24
    answer: int = 32
    pictures: int = 100_000
    """Different pictures. Few of them are asked about again and again."""
    categories: int = 5
    requests: int = 400


@dataclass
class _Request:
    arrival: float
    key: tuple[int, int]
    """Picture and category; the category is 0 where nothing is pruned."""
    columns: int = 0
    """Tokens in the cache."""
    left: int = 0
    """Tokens of the answer that are not there yet."""
    first: float = 0.0


def fit(rows: Sequence[dict[str, Any]]) -> Costs:
    """Fit the costs to measured prefills, unpruned and pruned before the decoder, by least squares.

    >>> rows = [
    ...     {"method": "input", "ideal": False, "batch": b, "columns": [[0, c]],
    ...      "first_token": b * (0.5 + 0.01 * c), "per_token": 0.1 + b * (0.02 + 0.001 * c),
    ...      "kv_bytes": 8 * b * c}
    ...     for b, c in ((1, 100), (1, 300), (4, 100), (4, 300))
    ... ]
    >>> {name: round(value, 6) for name, value in asdict(fit(rows)).items()}
    {'encode': 0.5, 'prefill': 0.01, 'step': 0.1, 'sequence': 0.02, 'cached': 0.001, 'token_bytes': 8.0}
    """  # noqa: E501
    import numpy as np

    used = [row for row in rows if row["method"] in ("unpruned", "input") and not row["ideal"]]
    batch = np.array([row["batch"] for row in used], dtype=float)
    tokens = batch * np.array([row["columns"][0][1] for row in used])
    first = np.array([row["first_token"] for row in used])
    later = np.array([row["per_token"] for row in used])
    prompts = np.stack([batch, tokens], 1)
    encode, prefill = np.linalg.lstsq(prompts, first, rcond=None)[0]
    steps = np.concatenate([np.ones((len(used), 1)), prompts], 1)
    step, sequence, cached = np.linalg.lstsq(steps, later, rcond=None)[0]
    token_bytes = mean(row["kv_bytes"] / count for row, count in zip(used, tokens, strict=True))
    found = (encode, prefill, step, sequence, cached, token_bytes)
    return Costs(*(max(0.0, float(value)) for value in found))


def simulate(costs: Costs, load: Load, kept: int | None, seed: int = 0) -> dict[str, float]:
    """Serve the load with ``kept`` visual tokens of each picture; None prunes nothing.

    >>> costs = Costs(encode=1.0, prefill=0.0, step=0.0, sequence=0.0, cached=0.0, token_bytes=1.0)
    >>> load = Load(rate=1e6, memory=1e6, requests=50)
    >>> round(simulate(costs, load, None)["requests_per_second"], 3)  # a second for each picture
    1.0
    """
    rng = random.Random(seed)
    visual = load.visual_tokens if kept is None else min(kept, load.visual_tokens)
    prompt = load.text_before + visual + load.text_after
    total = prompt + load.answer
    if total * costs.token_bytes > load.memory:
        raise ValueError(
            f"memory must hold one request of {total} tokens, {total * costs.token_bytes:.0f} "
            f"bytes, got {load.memory:.0f}"
        )
    waiting: deque[_Request] = deque()
    now = 0.0
    for _ in range(load.requests):
        now += rng.expovariate(load.rate)
        picture, category = rng.randrange(load.pictures), rng.randrange(load.categories)
        waiting.append(_Request(now, (picture, 0 if kept is None else category)))
    cache: OrderedDict[tuple[int, int], None] = OrderedDict()
    prefix = load.text_before + visual
    running: list[_Request] = []
    first_tokens: list[float] = []
    latencies: list[float] = []
    hits, peak, now = 0, 0.0, 0.0
    while waiting or running:
        if not running:
            now = max(now, waiting[0].arrival)
        seconds = 0.0
        if running:
            seconds += costs.step + costs.sequence * len(running)
            seconds += costs.cached * sum(request.columns for request in running)
        admitted: list[_Request] = []
        while waiting and waiting[0].arrival <= now:
            count = len(running) + len(admitted) + 1
            if count > load.batch or count * total * costs.token_bytes > load.memory:
                break
            request = waiting.popleft()
            hit = request.key in cache
            hits += hit
            cache[request.key] = None
            cache.move_to_end(request.key)
            seconds += costs.prefill * (load.text_after if hit else prompt)
            seconds += 0.0 if hit else costs.encode
            request.columns, request.left = prompt, load.answer
            admitted.append(request)
        now += seconds
        for request in admitted:
            request.first = now
            first_tokens.append(now - request.arrival)
        running += admitted
        for request in running:
            request.columns += 1
            request.left -= 1
        latencies += [now - request.arrival for request in running if request.left == 0]
        running = [request for request in running if request.left > 0]
        used = len(running) * total
        peak = max(peak, used * costs.token_bytes)
        room = int((load.memory / costs.token_bytes - used) // prefix)
        while len(cache) > max(0, room):
            cache.popitem(last=False)
    return {
        "requests_per_second": load.requests / now,
        "first_token_mean": mean(first_tokens),
        "first_token_p95": quantiles(first_tokens, n=20)[-1],
        "latency_mean": mean(latencies),
        "peak_bytes": peak,
        "hits": hits / load.requests,
    }


def scenarios(costs: Costs) -> dict[str, Load]:
    """Return loads under which pruning does much, and little."""
    one = (576 + 40 + 24 + 32) * costs.token_bytes  # an unpruned request
    alone = costs.encode + costs.prefill * 640 + 32 * (costs.step + costs.sequence)
    return {
        "light": Load(rate=0.1 / alone, memory=64 * one),
        "heavy": Load(rate=10 / alone, memory=64 * one),
        "heavy, little memory": Load(rate=10 / alone, memory=4 * one),
        "heavy, long answers": Load(rate=10 / alone, memory=64 * one, answer=256),
        "heavy, few pictures": Load(rate=10 / alone, memory=64 * one, pictures=10),
        "heavy, few pictures, short answers": Load(
            rate=100 / alone, memory=256 * one, pictures=40, answer=2
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--costs", type=Path, default=DEFAULT_COSTS, help="rows of bench_prefill")
    parser.add_argument("--kept", type=int, nargs="+", default=[192, 64])
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    measured = json.loads(arguments.costs.read_text())
    costs = fit(measured["rows"])
    rows = []
    for name, load in scenarios(costs).items():
        for kept in (None, *arguments.kept):
            result = simulate(costs, load, kept)
            rows.append({"load": name, "kept": kept, **result})
            shown = "  ".join(f"{key} {value:.3g}" for key, value in result.items())
            print(f"{name:34} {kept or 'all':>4}  {shown}")
    environment = {name: measured["environment"][name] for name in ("processor", "shape_name")}
    report = {
        "costs": asdict(costs),
        "measured_on": environment,
        "loads": {name: asdict(load) for name, load in scenarios(costs).items()},
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
