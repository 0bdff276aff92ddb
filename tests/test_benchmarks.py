"""The benchmarks measure what they say: baselines compute the ops, the arithmetic is right."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import machine
import ops
import peak_memory
import plot
import pytest
import readme_tables
import rows
import table
import torch
from case import Case, NotServed
from ops import attention_salience as saliences
from ops import complete_tokens as completions
from ops import fuse_layers as fusions
from ops import gather_tokens as gathers
from ops import merge_tokens as merges
from ops import select_pivots as pivots
from ops import select_tokens as selections
from rich.console import Console
from rows import HostRow
from torch import Tensor

from clasp_kernels import (
    attention_salience,
    complete_tokens,
    fuse_layers,
    gather_tokens,
    merge_tokens,
    select_pivots,
    select_tokens,
    use_backend,
)
from clasp_kernels.backends.table import OPS

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_name(functions: dict[str, Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("function", functions.values(), ids=functions.keys())


@pytest.fixture(autouse=True)
def reference() -> Any:
    with use_backend("reference"):
        yield


# Baselines that claim to compute the same.


@DTYPES
@pytest.mark.parametrize("normalize", ["", "rms"])
@pytest.mark.parametrize("categories", [False, True])
@by_name(fusions.EAGER | {"compiled": fusions.expression})
def test_fusions_agree(function: Any, categories: bool, normalize: str, dtype: Any) -> None:
    layers = [randn(3, 5, 8, seed=seed).to(dtype) for seed in range(3)]
    weights = torch.tensor([[0.5, 0.3, 0.2], [0.0, 1.5, 0.0]])
    ids = torch.tensor([1, 0, 1]) if categories else None
    expected = fuse_layers(
        layers, weights if categories else weights[0], ids, normalize=normalize or None
    )
    fused = function(layers, weights, ids, normalize)
    assert fused.dtype == dtype
    torch.testing.assert_close(
        fused, expected, atol=1e-5 if dtype == torch.float32 else 4e-2, rtol=0
    )


@DTYPES
@pytest.mark.parametrize("causal", [False, True])
@by_name(saliences.EAGER | saliences.EAGER_NATIVE | {"compiled": saliences.expression})
def test_saliences_agree(function: Any, causal: bool, dtype: Any) -> None:
    query, key = randn(2, 6, 4, 16).to(dtype), randn(2, 3, 9, 16, seed=1).to(dtype)
    expected = attention_salience(query, key, causal=causal, key_range=(1, 8))
    salience = function(query, key, causal, (1, 8))
    assert salience.dtype == torch.float32
    tolerance = 1e-5 if dtype == torch.float32 else 3e-3
    torch.testing.assert_close(salience, expected, atol=tolerance, rtol=0)


@by_name(pivots.EAGER)
def test_pivots_agree(function: Any) -> None:
    salience = randn(3, 40)
    assert torch.equal(function(salience, 7), select_pivots(salience, 7))


@by_name(completions.EAGER | {"eager-gram-native": completions.gram_native})
def test_completions_agree(function: Any) -> None:
    features, salience = randn(3, 40, 16), randn(3, 40, seed=1)
    selected = salience.topk(4).indices
    assert torch.equal(function(features, selected, 9), complete_tokens(features, selected, 9))
    kept = selections.select(features, salience, 13, 4, function)
    assert torch.equal(kept, select_tokens(features, salience, 13, 4).indices)


@pytest.mark.parametrize("native", [False, True])
def test_the_steps_that_are_compiled_agree(native: bool, monkeypatch: Any) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # that takes seconds
    features = randn(3, 40, 16).to(torch.bfloat16)
    selected = randn(3, 40, seed=1).topk(4).indices
    complete = completions.compiled.__wrapped__(4, native)
    assert torch.equal(complete(features, selected, 9), complete_tokens(features, selected, 9))


@by_name(gathers.EAGER)
def test_gathers_agree(function: Any) -> None:
    tokens, indices = randn(3, 12, 5), randn(3, 12, seed=1).argsort(-1)[:, :4]
    assert torch.equal(function(tokens, indices), gather_tokens(tokens, indices))


@by_name(merges.EAGER)
def test_merges_agree(function: Any) -> None:
    tokens, features = randn(3, 30, 5), randn(3, 30, 8, seed=1)
    indices = randn(3, 30, seed=2).argsort(-1)[:, :4]
    merged = function(tokens, features, indices)
    torch.testing.assert_close(merged, merge_tokens(tokens, features, indices))


# Peers.


@by_name(selections.PEERS)
def test_peers_keep_distinct_tokens(function: Any) -> None:
    kept = function(randn(3, 50, 16), randn(3, 50, seed=1), 12, 5)
    assert kept.shape == (3, 12)
    assert kept.min() >= 0 and kept.max() < 50
    assert (kept[:, 1:] > kept[:, :-1]).all()


@pytest.mark.parametrize("name", ["vispruner", "visionzip"])
def test_peers_that_keep_the_salient_tokens_do(name: str) -> None:
    salience = randn(2, 50, seed=1)
    kept = selections.PEERS[name](randn(2, 50, 16), salience, 12, 5)
    for image in range(2):
        assert set(salience[image].topk(5).indices.tolist()) <= set(kept[image].tolist())


def greedy_determinant(kernel: Tensor, count: int) -> list[int]:
    """CDPruner's choice by its definition, a determinant for every candidate."""
    picks: list[int] = []
    for _ in range(count):
        rest = [n for n in range(len(kernel)) if n not in picks]
        gains = [kernel[[*picks, n]][:, [*picks, n]].double().det() for n in rest]
        picks.append(rest[int(torch.stack(gains).argmax())])
    return sorted(picks)


def test_cdpruner_maximises_the_determinant() -> None:
    features, salience = randn(1, 14, 16), randn(1, 14, seed=1)
    unit = torch.nn.functional.normalize(features[0], dim=-1)
    low, high = salience[0].aminmax()
    relevance = (salience[0] - low) / (high - low) + 1e-6
    kernel = relevance[:, None] * (unit @ unit.T) * relevance
    kept = selections.cdpruner(features, salience, 5, 2)[0].tolist()
    assert kept == greedy_determinant(kernel, 5)


def test_divprune_takes_the_farthest() -> None:
    """Three directions with near copies: one of each."""
    features = torch.eye(3).repeat_interleave(4, 0) + 0.01 * randn(12, 3)
    kept = selections.divprune(features[None], torch.zeros(1, 12), 3, 1)[0]
    assert (kept // 4).tolist() == [0, 1, 2]


def test_vispruner_removes_duplicates() -> None:
    features = torch.eye(8).repeat_interleave(2, 0)[None]  # 16 tokens, each twice
    kept = selections.vispruner(features, -torch.arange(16.0)[None], 9, 1)[0]
    assert len(set((kept[kept > 0] // 2).tolist())) == 8


def test_visionzip_averages_what_it_drops() -> None:
    tokens = torch.tensor([[[4.0, 0], [1, 0], [3, 0], [0, 1], [0, 3]]])
    merged = merges.visionzip_merge(tokens, torch.tensor([[0, 1, 3]]))
    # One of three is dominant; 2 joins 1, and 4 joins 3.
    assert torch.equal(merged, torch.tensor([[[4.0, 0], [2, 0], [0, 2]]]))


# Cases.


def test_every_op_of_the_table_has_a_file_and_every_file_an_op() -> None:
    files = {path.stem for path in Path(ops.__file__).parent.glob("*.py")} - {"__init__"}
    assert files == set(OPS) == set(ops.load_all())


@pytest.mark.parametrize("op", OPS)
def test_cases_have_names_of_their_own_and_the_readme_knows_them(op: str) -> None:
    benchmark = ops.load(op)
    for cases in (benchmark.cpu, benchmark.gpu):
        names = [str(case) for case in cases]
        assert len(set(names)) == len(names)
        assert all(case.op == op and case.shape()["dtype"] in str(case) for case in cases)
    assert benchmark.telling and set(benchmark.telling) <= {str(case) for case in benchmark.cpu}
    assert not {"priority", "compiles"} & benchmark.gpu[0].shape().keys()


@pytest.mark.parametrize("op", OPS)
def test_what_is_recorded_is_still_measured(op: str) -> None:
    """So that the next run's rows replace these, whatever new ones it has."""
    _, recorded = rows.read_json(readme_tables.RESULTS / f"{op}.json")
    measured = {
        (str(case), it.name, it.kind)
        for case in ops.load(op).cpu
        for it in case.implementations(gpu=False)
    }
    assert {(row.case, row.implementation, row.kind) for row in recorded} <= measured


@pytest.mark.parametrize("op", OPS)
def test_every_case_of_the_cpu_runs_and_everyone_computes_the_same(
    op: str, monkeypatch: Any
) -> None:
    """At a small size."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    for case in {str(case.small()): case.small() for case in ops.load(op).cpu}.values():
        inputs = case.inputs("cpu", 0)
        expected = case.ours(*inputs)
        for it in case.implementations(gpu=False):
            with contextlib.suppress(NotServed), it.within("cpu"):
                assert it.agrees(case, inputs, expected, it.make()(*it.adapt(inputs))), it.name


def test_counted_bytes() -> None:
    """Against the inputs and outputs themselves, where all of them are needed."""
    case = fusions.Case(2, 6, 8, "bfloat16")
    layers, *_ = case.inputs("cpu", 0)
    assert case.counted().bytes == sum(h.nbytes for h in layers) + layers[0].nbytes
    halved = fusions.Case(2, 6, 8, "bfloat16", categories=True)
    assert halved.counted().bytes == 3 * layers[0].nbytes

    salience = saliences.Case(2, 6, 3, 2, 9, 4, "float32", True, (1, 8))
    query, key, *_ = salience.inputs("cpu", 0)
    assert salience.counted().bytes == query.nbytes + key.nbytes + 2 * 7 * 4
    # 8 + 9 of 2 x 9 logits are allowed, for 12 heads.
    assert salience.counted().multiply_adds == 12 * 17 * 4

    merge = merges.Case(2, 18, 8, "float32")
    tokens, indices = merge.inputs("cpu", 0)
    assert merge.counted().bytes == tokens.nbytes * 20 // 18 + indices.nbytes


# Arithmetic.

FIELDS = [column.name for column in dataclasses.fields(peak_memory.Measured)]

RATES = machine.Rates(
    bytes_per_second={1000: 1e9, 100_000: 4e9},
    multiply_adds_per_second={"float32": 1e10},
    seconds_per_call=2e-7,
)


def test_bandwidth_is_read_off_at_the_size() -> None:
    assert RATES.bandwidth(10) == 1e9
    # A quarter of the way on both logarithmic axes.
    assert RATES.bandwidth(3162) == pytest.approx(1e9 * 4**0.25, rel=1e-3)
    assert RATES.bandwidth(10**9) == 4e9


@pytest.mark.parametrize(
    "num_bytes, multiply_adds, seconds, bound",
    [
        (400_000, 1000, 1e-4, "bytes"),
        (400_000, 10**7, 1e-3, "multiply-adds"),
        (10, 1, 2e-7, "call"),
    ],
)
def test_floor_is_what_binds(
    num_bytes: int, multiply_adds: int, seconds: float, bound: str
) -> None:
    floor = RATES.floor(machine.Counted(num_bytes, multiply_adds, "float32"))
    assert floor == (pytest.approx(seconds), bound)


def row(case: str, implementation: str, kind: str, median: float) -> HostRow:
    shape, times = {"batch": 1}, {"min_us": median, "iqr_us": 0.0}
    return HostRow("fuse_layers", case, implementation, kind, median, 7, shape, **times)


@pytest.fixture
def invented() -> list[HostRow]:
    """Ours at 200 us against 500 and 400; a peer and a memcpy at 100 must not count."""
    timed = [
        row("a", rows.OURS, "ours", 200.0),
        row("a", "eager-loop", rows.EAGER, 500.0),
        row("a", "compiled", rows.COMPILED, 400.0),
        row("a", "divprune", rows.PEER, 100.0),
        row("a", "memcpy", rows.COPY, 100.0),
        row("b", rows.OURS, "ours", 300.0),
        row("b", "eager-loop", rows.EAGER, 150.0),
    ]
    counted = {
        ("fuse_layers", "a"): machine.Counted(400_000, 0, "float32"),
        ("fuse_layers", "b"): machine.Counted(0, 10**6, "float32"),
    }
    rows.compare(timed, counted, RATES)
    return timed


def test_ratios_and_floors(invented: list[HostRow]) -> None:
    first, second = (it for it in invented if it.kind == "ours")
    assert (first.best_baseline, first.speedup_over_best_baseline) == ("compiled", 2.0)
    assert (first.floor_us, first.floor_bound, first.times_floor) == (100.0, "bytes", 2.0)
    assert (second.best_baseline, second.speedup_over_best_baseline) == ("eager-loop", 0.5)
    assert (second.floor_bound, second.times_floor) == ("multiply-adds", 3.0)
    assert all(it.times_floor is None for it in invented if it.kind != "ours")


def test_files_hold_every_row(invented: list[HostRow], tmp_path: Path) -> None:
    rows.write_json(tmp_path / "fuse_layers.json", {"threads": 2}, invented)
    assert rows.read_json(tmp_path / "fuse_layers.json") == ({"threads": 2}, invented)
    assert rows.read_all(tmp_path) == invented

    rows.write_csv(tmp_path / "ops.csv", invented)
    lines = list(csv.DictReader((tmp_path / "ops.csv").open()))
    assert [line["implementation"] for line in lines] == [it.implementation for it in invented]
    assert lines[0]["speedup_over_best_baseline"] == "2.0"
    assert lines[1]["median_us"] == "500.0" and lines[1]["times_floor"] == ""

    plot.draw(tmp_path / "ops.png", invented)
    assert (tmp_path / "ops.png").stat().st_size > 1000


def test_the_table_shows_every_implementation(invented: list[HostRow]) -> None:
    environment = {"processor": "P", "threads": 2, "torch": "2", "backend": "cpu"}
    output = io.StringIO()
    Console(file=output, width=200).print(table.make(invented, environment))
    text = output.getvalue()
    for expected in ("200 us", "2.00x", "0.50x", "compiled", "divprune", "memcpy", "100 us b"):
        assert expected in text


def test_durations_have_three_digits() -> None:
    assert [table.duration(us) for us in (0.123, 12.34, 1234.5, 2.5e6)] == [
        "0.123 us",
        "12.3 us",
        "1.23 ms",
        "2.5 s",
    ]


def test_the_readme_takes_no_results_of_two_machines() -> None:
    places = [{"processor": name, "threads": 2, "torch": "2"} for name in "PQ"]
    assert "P" in readme_tables._where(places[:1] * 2)
    with pytest.raises(ValueError, match="different places"):
        readme_tables._where(places)


def test_the_readme_says_how_near_the_limit_it_gets() -> None:
    measured = [
        ("select_tokens", "a", rows.OURS, 100, 400),
        ("select_tokens", "b", rows.OURS, 2048, 4096),
        ("select_tokens", "b", "eager-gram", 1 << 20, 4096),
        ("merge_tokens", "a", rows.OURS, 1 << 30, None),
    ]
    sentence = readme_tables.memory([dict(zip(FIELDS, values, strict=True)) for values in measured])
    assert "50% of" in sentence and "b: 2 KiB, the eager N x N matrix 1 MiB" in sentence


def test_peak_memory_sees_an_allocation_of_known_size(tmp_path: Path) -> None:
    """Of 300 KiB at the peak, 200 are the output and 100 are counted, though freed by the end."""
    script = tmp_path / "known.py"
    script.write_text(
        "import peak_memory, torch\n"
        "def call():\n"
        "    temporary = torch.ones(100 << 10, dtype=torch.uint8)\n"
        "    output = torch.ones(200 << 10, dtype=torch.uint8)\n"
        "    return output\n"
        "call()\n"
        "print(peak_memory.measure_call(call))\n"
    )
    paths = [str(Path(peak_memory.__file__).parent), str(machine.ROOT)]
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**peak_memory.counting(), "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) == pytest.approx(100 << 10, abs=4 << 10)


@pytest.mark.parametrize("case", peak_memory.MEASURED["select_tokens"].cases[:2], ids=str)
def test_selection_stays_within_its_memory(case: Case) -> None:
    """Bytes are counted, so this is the same on every machine with as many threads."""
    peak = peak_memory.in_fresh_process("select_tokens", str(case), rows.OURS)
    limit = peak_memory.MEASURED["select_tokens"].limit(case)
    assert limit is not None and 0 < peak <= limit
