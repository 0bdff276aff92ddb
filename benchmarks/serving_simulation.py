"""Simulate a server under load, with and without pruning, from measured costs of its stages.

    python benchmarks/serving_simulation.py --out benchmarks/results/cpu/serving_simulation.json
    python benchmarks/readme_tables.py  # writes the tables of docs/at-scale.md

`serving_scheduler.py` names every assumption, and whether it errs for pruning or against it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from serving_costs import Costs, Measured, read
from serving_scheduler import Load, Served, simulate
from table import markdown_table

DEFAULT_COSTS = Path(__file__).parent / "results" / "cpu" / "prefill.json"
UTILISATIONS = (0.3, 0.6, 0.8, 0.95)
"""Loads, as fractions of what the server can answer unpruned."""
STABLE = 0.96
"""A load above this fraction of what a setting can answer has no time to the first token: the queue
grows without end, or settles too slowly for the number of requests."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """Requests and a server, saturated, and where ``loads`` is set also at other loads."""

    load: Load
    loads: bool = False


def cases(costs: Costs) -> dict[str, Case]:
    """Return what is simulated. Memory is counted in tokens, 672 of which are a request."""
    plenty = Load(memory=64 * 672 * costs.token_bytes)
    tight = Load(memory=64_000 * costs.token_bytes, pictures=100, asked=None, answer=8)
    few = Load(memory=256 * 672 * costs.token_bytes, pictures=40, asked=None)
    stream = replace(plenty, pictures=20, asked=4, answer=8)
    return {
        "new pictures": Case(plenty, loads=True),
        "new pictures, memory for 4 requests": Case(
            replace(plenty, memory=4 * 672 * costs.token_bytes)
        ),
        "new pictures, 256 answer tokens": Case(replace(plenty, answer=256)),
        "new pictures, steps of 512 tokens": Case(replace(plenty, step_tokens=512)),
        "4 questions a picture, 8 answer tokens": Case(stream, loads=True),
        "4 questions a picture, all of one category, 8 answer tokens": Case(
            replace(stream, categories=1)
        ),
        "8 questions a picture, 2 answer tokens": Case(replace(stream, asked=8, answer=2)),
        "40 pictures again and again": Case(few),
        "40 pictures again and again, 8 answer tokens": Case(replace(few, answer=8)),
        "the same, only the first 400 requests": Case(
            replace(few, answer=8, warm_up=0, requests=400)
        ),
        "100 pictures again and again, 8 answer tokens, memory for 64,000 tokens": Case(tight),
    }


def break_even(costs: Costs, load: Load, kept: int) -> float:
    """Categories of questions about one picture from which its pruned prefixes cost more.

    Encoding and prefill of one unpruned prefix, over those of a pruned one. Decoding, which is
    always cheaper with fewer tokens, is left out.

    >>> costs = Costs(prompt=0, encode=1, prefill=0.1, step=0, sequence=0, cached=0, token_bytes=1)
    >>> break_even(costs, Load(memory=1, text_before=0, visual_tokens=50), kept=10)
    3.0
    """

    def prefix(visual: int) -> float:
        return costs.encode + costs.prefill * (load.text_before + visual)

    return prefix(load.visual_tokens) / prefix(kept)


def simulated(
    costs: Costs, name: str, case: Case, kept: Sequence[int], seeds: Iterable[int]
) -> Iterator[Row]:
    """Yield the rows of one case: saturated for each setting, and then at each load."""
    seeds = list(seeds)
    capacity: dict[int | None, float] = {}
    for setting in (None, *kept):
        runs = [simulate(costs, case.load, setting, seed) for seed in seeds]
        found = _measures(runs, ("requests_per_second", "drift", "hits", "peak_bytes"))
        capacity[setting] = found["requests_per_second"]["mean"]
        yield {"case": name, "load": "saturated", "kept": setting, "rate": None, **found}
    if not case.loads:
        return
    rates = {f"{part:.0%}": part * capacity[None] for part in UTILISATIONS}
    higher = [rate for rate in capacity.values() if rate > capacity[None]]
    if higher:
        rates["between"] = (capacity[None] + min(higher)) / 2
    for load, rate in rates.items():
        for setting in capacity:
            row: Row = {"case": name, "load": load, "kept": setting, "rate": rate}
            if rate <= STABLE * capacity[setting]:
                paced = replace(case.load, rate=rate)
                runs = [simulate(costs, paced, setting, seed) for seed in seeds]
                row |= _measures(runs, ("first_token_mean", "first_token_p95", "latency_mean"))
            yield row


def _measures(runs: Sequence[Served], names: Iterable[str]) -> dict[str, dict[str, float]]:
    found = {name: [getattr(run, name) for run in runs] for name in names}
    return {
        name: {"mean": mean(values), "least": min(values), "most": max(values)}
        for name, values in found.items()
    }


def report(measured: Measured, kept: Sequence[int], seeds: int) -> dict[str, Any]:
    """Simulate every case with each seed."""
    costs = measured.costs
    chosen = cases(costs)
    rows = []
    for name, case in chosen.items():
        for row in simulated(costs, name, case, kept, range(seeds)):
            rows.append(row)
            print(_line(row), flush=True)
    any_load = next(iter(chosen.values())).load
    return {
        "measured_on": measured.environment,
        "costs": asdict(costs),
        "residuals": [asdict(residual) for residual in measured.residuals],
        "worst_residual": max(residual.worst for residual in measured.residuals),
        "break_even": {str(count): break_even(costs, any_load, count) for count in kept},
        "seeds": seeds,
        "stable": STABLE,
        "cases": {name: asdict(case.load) for name, case in chosen.items()},
        "rows": rows,
    }


def _line(row: Row) -> str:
    shown = "  ".join(
        f"{name} {value['mean']:.3g}" for name, value in row.items() if isinstance(value, dict)
    )
    return f"{row['case']}, {row['load']}, {row['kept'] or 'all'}: {shown or 'no steady state'}"


def tables(recorded: dict[str, Any]) -> str:
    """Everything between the markers of docs/at-scale.md."""
    rows = {(row["case"], row["load"], row["kept"]): row for row in recorded["rows"]}
    settings = list(dict.fromkeys(kept for _, _, kept in rows))
    visual = next(iter(recorded["cases"].values()))["visual_tokens"]
    names = [f"all {visual}" if kept is None else str(kept) for kept in settings]

    def cells(case: str, load: str, measure: str) -> list[str]:
        return [_spread(rows[case, load, kept].get(measure)) for kept in settings]

    def hits(case: str) -> str:
        found = (rows[case, "saturated", kept]["hits"]["mean"] for kept in settings)
        return " / ".join(f"{value:.0%}" for value in found)

    throughput = markdown_table(
        ["requests a second, saturated", *names, "prefix found, in this order"],
        [
            [case, *cells(case, "saturated", "requests_per_second"), hits(case)]
            for case in recorded["cases"]
        ],
    )
    paced = dict.fromkeys((case, load) for case, load, _ in rows if load != "saturated")
    times = markdown_table(
        ["mean seconds to the first token", "load", "requests a second", *names],
        [
            [
                case,
                load,
                f"{rows[case, load, None]['rate']:.3g}",
                *cells(case, load, "first_token_mean"),
            ]
            for case, load in paced
        ],
    )
    return f"{_fit_in_words(recorded)}\n{throughput}\n{times}\n{_break_even_in_words(recorded)}"


def _spread(value: dict[str, float] | None) -> str:
    if value is None:
        return "-"
    mean_, least, most = (f"{value[name]:.3g}" for name in ("mean", "least", "most"))
    return mean_ if least == most else f"{mean_} ({least} to {most})"


def _fit_in_words(recorded: dict[str, Any]) -> str:
    residuals = recorded["residuals"]
    first, later = (
        max(abs(residual[name]) for residual in residuals) for name in ("first_token", "per_token")
    )
    speedups = []
    for batch in sorted({residual["batch"] for residual in residuals}):
        mine = [residual for residual in residuals if residual["batch"] == batch]
        longest = max(mine, key=lambda residual: residual["columns"])
        shortest = min(mine, key=lambda residual: residual["columns"])
        ratio = (1 + longest["first_token"]) / (1 + shortest["first_token"]) - 1
        speedups.append(f"{ratio:+.1%} at batch {batch}")
    spread = max(residual["spread"] for residual in residuals)
    return (
        f"The costs differ from the measured times to the first token by at most {first:.1%}, and "
        f"from those of each later token by at most {later:.1%}. Their speed-up of the first "
        "token, all tokens over fewest, differs from the measured one by "
        f"{' and '.join(speedups)}. The measured times are medians that are noisy themselves: "
        f"their interquartile ranges are up to {spread:.0%} of them.\n"
    )


def _break_even_in_words(recorded: dict[str, Any]) -> str:
    parts = (f"{value:.1f} with {kept} kept" for kept, value in recorded["break_even"].items())
    return (
        "Encoding and prefill of a picture cost more with pruning than without once it is asked "
        f"about in more categories than this while its prefix is kept: {', '.join(parts)}.\n"
    )


def _number(text: str, least: int, most: int | None = None) -> int:
    allowed = f"a whole number from {least} " + ("up" if most is None else f"to {most}")
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be {allowed}, got {text!r}") from None
    if value < least or (most is not None and value > most):
        raise argparse.ArgumentTypeError(f"must be {allowed}, got {value}")
    return value


def _costs(text: str) -> Measured:
    try:
        return read(Path(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _out(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"must be a file in a folder that is there, got {text}")
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--costs", type=_costs, default=str(DEFAULT_COSTS), help="what bench_prefill.py wrote"
    )
    kept = partial(_number, least=1, most=Load.visual_tokens)
    parser.add_argument("--kept", type=kept, nargs="+", default=[192, 64], metavar="TOKENS")
    parser.add_argument("--seeds", type=partial(_number, least=1), default=5)
    parser.add_argument("--out", type=_out, required=True)
    given = parser.parse_args(arguments)
    made = report(given.costs, given.kept, given.seeds)
    given.out.write_text(json.dumps(made, indent=2) + "\n")


if __name__ == "__main__":
    main()
