"""The benchmarks measure what they say: everyone computes the same, the arithmetic is right."""

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

import busy_machine
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
from ops import fuse_layers as fusions
from ops import merge_tokens as merges
from rich.console import Console
from rows import HostRow

from clasp_kernels import use_backend
from clasp_kernels.backends.table import OPS


@pytest.fixture(autouse=True)
def reference() -> Any:
    with use_backend("reference"):
        yield


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
    path = readme_tables.RESULTS / f"{op}.json"
    if not path.exists():
        pytest.skip("nothing is recorded yet")
    _, recorded = rows.read_json(path)
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


def ours_of(op: str, case: str, **values: Any) -> HostRow:
    row = {name: values.get(name) for name in ("best_baseline", "floor_us", "floor_bound")}
    speedup, shape = values.get("speedup"), values.get("shape", {})
    return HostRow(
        *(op, case, rows.OURS, "ours", 10.0, 1, shape),
        **row,
        speedup_over_best_baseline=speedup,
        min_us=10.0,
        iqr_us=0.0,
    )


def test_the_page_lists_every_case_where_a_baseline_is_faster() -> None:
    ours = [
        ours_of("fuse_layers", "a", speedup=0.996),
        ours_of("fuse_layers", "b", speedup=1.0),
        ours_of("merge_tokens", "c", speedup=0.5),
        ours_of("merge_tokens", "d"),
    ]
    text = readme_tables.slower(ours)
    assert text.startswith("A baseline is faster in 2 of 3 cases:\n")
    assert text.endswith("\n- `fuse_layers`: a (0.996x)\n- `merge_tokens`: c (0.5x)\n")
    assert readme_tables.slower(ours[1:2]) == "A baseline is faster in 0 of 1 cases.\n"


@pytest.mark.parametrize(("library_us", "verdict"), [(50.0, "meets"), (49.0, "misses")])
def test_the_page_says_which_targets_cover_tokens_meets(library_us: float, verdict: str) -> None:
    shape = {"num_tokens": 9, "dtype": "float32"}
    compared = [
        ours_of("cover_tokens", "a", floor_us=5.0, shape=shape),
        *(
            HostRow("cover_tokens", "a", name, kind, us, 1, min_us=us, iqr_us=0.0)
            for name, kind, us in [("e", rows.EAGER, 40.0), ("p", rows.LIBRARY, library_us)]
        ),
    ]
    peaks = [dict(zip(FIELDS, ("cover_tokens", "a", rows.OURS, 2048, 4096), strict=True))]
    text = readme_tables.covering(compared, peaks)
    assert "misses its target of 8x over the best eager or compiled formulation: 4.0x" in text
    assert "it would reach 8.0x to 8.0x for 9 tokens in float32" in text
    assert f"It {verdict} its target of 5x over other packages" in text and "2 KiB (at a)" in text


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


def test_a_busy_machine_has_a_row_of_each_op_thread_count_and_load() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # tests that share a machine have one each
    try:
        rows_found = busy_machine.measure("idle", calls=1)
        with busy_machine.busy_cores():
            rows_found += busy_machine.measure("busy", calls=1)
    finally:
        torch.set_num_threads(threads)
    assert {row.op for row in rows_found} == busy_machine.CASES.keys()
    assert all(row.mean_us > 0 for row in rows_found)
    lines = busy_machine.table(rows_found).splitlines()
    assert len(lines) == 2 + len(busy_machine.CASES)
