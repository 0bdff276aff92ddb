"""The simulation of a server under load."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import serving_simulation
from readme_tables import RESULTS
from serving_costs import Costs, fit, read
from serving_scheduler import Load, _Memory, simulate
from serving_simulation import DEFAULT_COSTS, Case, cases, simulated

FREE = Costs(prompt=0, encode=0, prefill=0, step=0, sequence=0, cached=0, token_bytes=1)
ONE = 576 + 40 + 24 + 32  # tokens of an unpruned request
BUSY = Load(memory=1e6, warm_up=100, requests=400)
MEASURED = read(DEFAULT_COSTS)
CASES = {name: case.load for name, case in cases(MEASURED.costs).items()}
RECORDED = json.loads((RESULTS / "serving_simulation.json").read_text())
STREAM = "4 questions a picture, 8 answer tokens"
FEW = "40 pictures again and again, 8 answer tokens"
COLD = "the same, only the first 400 requests"
TIGHT = "100 pictures again and again, 8 answer tokens, memory for 64,000 tokens"


def measured_rows(prompt: float = 0.2, batches: tuple[int, ...] = (1, 4)) -> list[dict[str, Any]]:
    return [
        {
            "method": method,
            "ideal": ideal,
            "batch": batch,
            "columns": [[0, columns]],
            "first_token": prompt + batch * (0.5 + 0.01 * columns) + unused,
            "first_token_iqr": 0.01,
            "per_token": 0.1 + batch * (0.02 + 0.001 * columns),
            "kv_bytes": 8 * batch * columns,
        }
        for method, ideal, unused in (
            ("unpruned", False, 0),
            ("input", False, 0),
            ("input", True, 9),
            ("progressive", False, 9),
        )
        for batch in batches
        for columns in (100, 300)
    ]


def test_costs_are_recovered_from_rows_that_follow_them() -> None:
    costs, residuals = fit(measured_rows())
    wanted = {"prompt": 0.2, "encode": 0.5, "prefill": 0.01, "token_bytes": 8.0}
    later = {"step": 0.1, "sequence": 0.02, "cached": 0.001}
    assert asdict(costs) == pytest.approx({**wanted, **later})
    assert max(residual.worst for residual in residuals) < 1e-9


def test_a_cost_below_zero_becomes_zero_and_the_others_are_fitted_again() -> None:
    rows = measured_rows(prompt=-0.2)
    costs, _ = fit(rows)
    used = rows[:8]
    times = np.array([row["first_token"] for row in used])
    batch = np.array([row["batch"] for row in used], dtype=float)
    design = np.stack([batch, batch * [row["columns"][0][1] for row in used]], 1)
    again = np.linalg.lstsq(design / times[:, None], np.ones(8), rcond=None)[0]
    assert costs.prompt == 0
    assert (costs.encode, costs.prefill) == pytest.approx(again)


def test_rows_that_no_costs_follow_are_refused() -> None:
    rows = measured_rows()
    rows[0]["first_token"] *= 2
    with pytest.raises(
        ValueError, match=r"rows must follow a cost .* within 10%, got \d+% at batch"
    ):
        fit(rows)
    with pytest.raises(ValueError, match="at least two lengths and two batch sizes, got 4"):
        fit(measured_rows(batches=(1,)))


def test_the_fit_does_not_flatter_pruning_by_more_than_it_may_err() -> None:
    assert max(residual.worst for residual in MEASURED.residuals) < 0.1
    for batch in (1, 4):
        mine = {r.columns: r.first_token for r in MEASURED.residuals if r.batch == batch}
        assert (1 + mine[640]) / (1 + mine[128]) < 1.1


@pytest.mark.parametrize(
    ("costs", "seconds"),
    [
        ({"encode": 1.0}, 1.0),
        ({"prefill": 0.01}, 0.01 * (ONE - 32)),
        ({"step": 1.0}, 32.0),  # the last of these steps is the prefill of the next request
        ({"sequence": 1.0}, 31.0),
        ({"cached": 0.01}, 0.01 * sum(range(641, 672))),
    ],
)
def test_a_stage_takes_what_it_costs(costs: dict[str, float], seconds: float) -> None:
    result = simulate(replace(FREE, **costs), replace(BUSY, batch=1), None)
    assert 1 / result.requests_per_second == pytest.approx(seconds, rel=0.04)


def test_a_step_prefills_no_more_than_its_tokens() -> None:
    costs, load = replace(FREE, prompt=1.0), replace(BUSY, batch=1, answer=1)
    halves, whole = (simulate(costs, replace(load, step_tokens=size), None) for size in (320, 640))
    assert 1 / halves.requests_per_second == pytest.approx(2)
    assert 1 / whole.requests_per_second == pytest.approx(1)
    # With all prompts in one step, all have their first token at its end.
    costs, load = replace(FREE, prefill=0.001), replace(BUSY, warm_up=0, requests=33, answer=1000)
    chunked, at_once = (simulate(costs, replace(load, step_tokens=n), None) for n in (2048, 30_000))
    assert chunked.first_token_mean < 0.7 * at_once.first_token_mean


def test_memory_limits_how_many_run_and_is_shared_by_requests_about_one_picture() -> None:
    costs = replace(FREE, step=1.0)
    wide = simulate(costs, replace(BUSY, memory=100.0 * ONE), None)
    narrow = simulate(costs, replace(BUSY, memory=2.0 * ONE), None)
    shared = simulate(costs, replace(BUSY, memory=2.0 * ONE, asked=None), None)
    assert narrow.peak_bytes == 2 * ONE
    assert narrow.requests_per_second < wide.requests_per_second / 10
    assert shared.peak_bytes == 616 + 56 * ((2 * ONE - 616) // 56)
    at_least = simulate(replace(costs, prompt=1.0), replace(BUSY, answer=1), 64).peak_bytes
    assert at_least >= 64 + 40 + 24 + 1
    with pytest.raises(ValueError, match="memory must hold one request of 672 tokens"):
        simulate(costs, replace(BUSY, memory=100.0), None)


def test_a_category_is_an_entry_of_its_own_only_with_pruning() -> None:
    costs = replace(FREE, step=1.0)
    load = replace(BUSY, asked=None, categories=4, batch=4, memory=100.0 * ONE, warm_up=0)
    assert simulate(costs, load, None).hits == 1 - 1 / 400
    assert simulate(costs, load, 64).hits == 1 - 4 / 400
    one_at_a_time = replace(load, memory=64.0 + 40 + 56, batch=1)
    assert 0.15 < simulate(costs, one_at_a_time, 64).hits < 0.35


def test_the_prefix_that_was_used_last_stays_the_longest() -> None:
    memory = _Memory(tokens=30, prefix=10)
    first, second, third = (0, 0), (1, 0), (2, 0)
    for key in (first, second, first):
        assert memory.take(key, own=5)
        memory.leave(key, own=5)
    assert memory.take(third, own=10)
    assert set(memory.users) == {first, third}


def test_a_picture_is_asked_as_often_as_the_load_says() -> None:
    load = replace(BUSY, pictures=5, asked=4, requests=1000)
    assert simulate(replace(FREE, step=1.0), load, None).hits == pytest.approx(0.75, abs=0.01)


def test_throughput_is_that_of_a_steady_state() -> None:
    load = replace(CASES["new pictures"], answer=8, warm_up=100, requests=400)
    short = simulate(MEASURED.costs, load, None)
    long = simulate(MEASURED.costs, replace(load, requests=1600), None)
    assert long.requests_per_second == pytest.approx(short.requests_per_second, rel=0.02)
    assert abs(short.drift) < 0.03


def test_a_warm_cache_turns_what_a_cold_one_says() -> None:
    def gain(load: Load) -> float:
        whole, pruned = (simulate(MEASURED.costs, load, kept) for kept in (None, 192))
        return pruned.requests_per_second / whole.requests_per_second

    assert gain(CASES[COLD]) < 0.95
    assert gain(replace(CASES[FEW], warm_up=1500, requests=500)) > 1.3


def test_pruned_prefixes_that_do_not_fit_cost_more_for_ever() -> None:
    for requests in (400, 1600):
        load = replace(CASES[TIGHT], warm_up=800, requests=requests)
        whole, pruned = (simulate(MEASURED.costs, load, kept) for kept in (None, 192))
        assert whole.hits > 0.99
        assert pruned.hits == pytest.approx(0.55, abs=0.04)
        assert pruned.requests_per_second < 0.75 * whole.requests_per_second


def test_only_a_load_that_can_be_served_has_a_time_to_the_first_token() -> None:
    load = replace(CASES["new pictures"], answer=8, warm_up=200, requests=600)
    rows = {
        (row["load"], row["kept"]): row
        for row in simulated(MEASURED.costs, "new", Case(load, loads=True), [64], [0])
    }
    assert not [key for key, row in rows.items() if key[0] == "saturated" and "latency_mean" in row]
    assert "first_token_mean" not in rows["between", None]
    assert rows["between", 64]["first_token_mean"]["mean"] < 3
    assert rows["60%", None]["rate"] == 0.6 * rows["saturated", None]["requests_per_second"]["mean"]
    longer = replace(load, rate=rows["60%", None]["rate"], requests=1800)
    assert simulate(MEASURED.costs, longer, None).first_token_mean == pytest.approx(
        rows["60%", None]["first_token_mean"]["mean"], rel=0.1
    )


def test_what_is_recorded_is_what_the_program_finds() -> None:
    # Another processor may round the fit otherwise.
    assert RECORDED["costs"] == pytest.approx(asdict(MEASURED.costs))
    for recorded, residual in zip(RECORDED["residuals"], MEASURED.residuals, strict=True):
        assert recorded == pytest.approx(asdict(residual), abs=1e-6)
    assert RECORDED["cases"] == {name: asdict(load) for name, load in CASES.items()}
    rows = [row for row in RECORDED["rows"] if row["case"] == COLD]
    again = simulated(MEASURED.costs, COLD, Case(CASES[COLD]), [192, 64], range(RECORDED["seeds"]))
    for recorded, row in zip(rows, again, strict=True):
        assert recorded["kept"] == row["kept"]
        for name in ("requests_per_second", "hits", "peak_bytes"):
            assert recorded[name] == pytest.approx(row[name])


def test_the_page_describes_the_run_that_is_recorded() -> None:
    page = (Path(__file__).parent.parent / "docs" / "at-scale.md").read_text()
    warm_ups = {case["warm_up"] for name, case in RECORDED["cases"].items() if name != COLD}
    assert warm_ups == {2000} and "after 2,000 requests that are not counted" in page
    assert RECORDED["seeds"] == 5 and "means over five seeds" in page
    assert f"above {100 * RECORDED['stable']:.0f} % of what" in page


def test_what_is_recorded_is_steady_and_says_what_the_page_concludes() -> None:
    saturated = {
        (row["case"], row["kept"]): row for row in RECORDED["rows"] if row["load"] == "saturated"
    }
    drifts = [row["drift"] for (case, _), row in saturated.items() if case != COLD]
    assert max(max(abs(drift["least"]), abs(drift["most"])) for drift in drifts) < 0.03

    def order(case: str) -> list[int | None]:
        """The settings, the one that serves most first."""
        found = {kept: saturated[case, kept]["requests_per_second"] for kept in (None, 192, 64)}
        ordered = sorted(found, key=lambda kept: -found[kept]["mean"])
        for better, worse in pairwise(ordered):
            assert found[better]["least"] > found[worse]["most"], "seeds disagree"
        return ordered

    losing = (STREAM, TIGHT, COLD)
    never = "8 questions a picture, 2 answer tokens"
    for case in RECORDED["cases"]:
        expected = [64, None, 192] if case in losing else [64, 192, None]
        assert order(case) == ([None, 64, 192] if case == never else expected)


def test_the_recorded_times_to_the_first_token_say_what_the_page_concludes() -> None:
    times = {
        (row["case"], row["load"], row["kept"]): row["first_token_mean"]["mean"]
        for row in RECORDED["rows"]
        if "first_token_mean" in row
    }
    for load in ("30%", "60%", "80%", "95%"):
        assert times["new pictures", load, 64] < times["new pictures", load, 192]
        assert times["new pictures", load, 192] < 0.7 * times["new pictures", load, None]
    assert ("new pictures", "between", None) not in times
    assert times["new pictures", "between", 192] < 5
    for load in ("30%", "60%", "80%"):
        assert times[STREAM, load, 64] < times[STREAM, load, None] < times[STREAM, load, 192]
    assert (STREAM, "95%", 192) not in times


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rate": 0.0}, "rate must be above 0, got 0.0"),
        ({"batch": 0}, "batch must be above 0, got 0"),
        ({"answer": -1}, "answer must be above 0, got -1"),
        ({"requests": 32}, "requests must be above batch, 32, got 32"),
        ({"warm_up": -1}, "warm_up must not be negative, got -1"),
        ({"step_tokens": 32}, "step_tokens must be above batch, 32, got 32"),
    ],
)
def test_a_load_that_cannot_be_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(BUSY, **changed)


@pytest.mark.parametrize("kept", [0, -50, 577])
def test_kept_must_be_some_of_the_tokens(kept: int) -> None:
    with pytest.raises(ValueError, match=f"kept must be 1 to 576 tokens, got {kept}"):
        simulate(FREE, BUSY, kept)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kept", "0"], "argument --kept: must be a whole number from 1 to 576, got 0"),
        (["--kept", "few"], "argument --kept: must be a whole number from 1 to 576, got 'few'"),
        (["--seeds", "0"], "argument --seeds: must be a whole number from 1 up, got 0"),
        (["--costs", "gone.json"], "argument --costs: must be a file, got gone.json: No such file"),
        (["--costs", __file__], "argument --costs: must be a file that bench_prefill.py wrote"),
        (["--out", "gone/a.json"], "argument --out: must be a file in a folder that is there"),
    ],
)
def test_the_command_line_says_what_is_wrong(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        serving_simulation.main(["--out", str(tmp_path / "out.json"), *arguments])
    assert message in capsys.readouterr().err
