"""The simulation of a server under load."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
from serving_simulation import DEFAULT_COSTS, Costs, Load, fit, scenarios, simulate

FREE = Costs(encode=0.0, prefill=0.0, step=0.0, sequence=0.0, cached=0.0, token_bytes=1.0)
BUSY = Load(rate=1e6, memory=1e6, requests=60)
ONE = 576 + 40 + 24 + 32  # tokens of an unpruned request


def test_costs_are_recovered_from_rows_that_follow_them() -> None:
    rows = [
        {
            "method": method,
            "ideal": ideal,
            "batch": batch,
            "columns": [[0, columns]],
            "first_token": batch * (0.5 + 0.01 * columns) + 9 * unused,
            "per_token": 0.1 + batch * (0.02 + 0.001 * columns),
            "kv_bytes": 8 * batch * columns,
        }
        for method, ideal, unused in (
            ("unpruned", False, 0),
            ("input", False, 0),
            ("input", True, 1),
            ("progressive", False, 1),
        )
        for batch in (1, 4)
        for columns in (100, 300)
    ]
    found = asdict(fit(rows))
    wanted = {"encode": 0.5, "prefill": 0.01, "step": 0.1, "sequence": 0.02, "cached": 0.001}
    assert found == pytest.approx({**wanted, "token_bytes": 8.0})


@pytest.mark.parametrize(
    ("costs", "seconds"),
    [
        ({"encode": 1.0}, 60.0),
        ({"prefill": 0.01}, 60 * 0.01 * (ONE - 32)),
        # All run from the first steps on, and the prefill gives the first of 32 tokens.
        ({"step": 1.0}, 31.0),
    ],
)
def test_a_stage_takes_what_it_costs(costs: dict[str, float], seconds: float) -> None:
    load = replace(BUSY, batch=60, rate=1e12)
    result = simulate(replace(FREE, **costs), load, None)
    assert load.requests / result["requests_per_second"] == pytest.approx(seconds, rel=0.1)


def test_memory_limits_how_many_run() -> None:
    costs = replace(FREE, step=1.0)
    wide = simulate(costs, replace(BUSY, memory=100.0 * ONE, batch=60), None)
    narrow = simulate(costs, replace(BUSY, memory=2.0 * ONE, batch=60), None)
    assert narrow["peak_bytes"] <= 2 * ONE < wide["peak_bytes"]
    assert narrow["requests_per_second"] < wide["requests_per_second"] / 10
    with pytest.raises(ValueError, match="memory must hold one request of 672 tokens"):
        simulate(costs, replace(BUSY, memory=100.0), None)


def test_a_category_is_an_entry_of_its_own_only_with_pruning() -> None:
    load = replace(BUSY, pictures=1, categories=4, memory=100.0 * ONE, batch=4)
    assert simulate(FREE, load, None)["hits"] == 59 / 60
    assert simulate(FREE, load, 64)["hits"] == 56 / 60
    assert simulate(FREE, replace(load, memory=1.0 * ONE, batch=1), None)["hits"] == 0


def test_pruning_pays_for_new_pictures_and_not_for_short_questions_about_few() -> None:
    costs = fit(json.loads(DEFAULT_COSTS.read_text())["rows"])
    loads = scenarios(costs)

    def gain(name: str) -> float:
        whole, pruned = (simulate(costs, loads[name], kept) for kept in (None, 64))
        return pruned["requests_per_second"] / whole["requests_per_second"]

    assert gain("heavy") > 1.5
    assert gain("light") == pytest.approx(1.0, rel=0.01)
    assert gain("heavy, few pictures, short answers") < 1
