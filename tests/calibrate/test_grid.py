"""The cells of the grid, and the profile that has them all."""

from __future__ import annotations

import pytest

from clasp_kernels.calibrate.grid import OWN, Cell, Grid
from clasp_kernels.policy import CategoryPolicy, Profile, strategy_weights

E = strategy_weights("E", 3)
PROFILE = Profile(
    "base",
    "llava",
    (-4, -2, -1),
    "test",
    {
        "general": CategoryPolicy((0.1, 0.1, 0.8), 0.3),
        "ocr": CategoryPolicy(E, 0.5, budget_scale=1.5),
        "scene": CategoryPolicy(E, 0.1, rule="divprune"),
    },
    format=1 + 1,
)
GRID = Grid(PROFILE, ("A", "E"), (0.0, 0.5), ("clasp", "divprune"))


def test_the_grid_has_pivot_ratios_for_clasp_alone() -> None:
    assert [cell.name for cell in GRID.tried] == [
        *("clasp A 0", "clasp A 0.5", "clasp E 0", "clasp E 0.5"),
        *("divprune A", "divprune E"),
    ]


def test_a_cell_that_is_the_profiles_own_policy_is_the_default() -> None:
    assert GRID.default("ocr") == Cell("clasp", "E", 0.5)
    assert GRID.default("scene") == Cell("divprune", "E")  # a ratio has no meaning for it
    assert GRID.default("general") == Cell("clasp", None)
    for category, count in (("ocr", 6), ("scene", 6), ("general", 7)):
        cells = GRID.cells(category)
        assert cells[0] == GRID.default(category)
        assert len(cells) == len({cell.name for cell in cells}) == count


def test_policies_of_cells() -> None:
    a = strategy_weights("A", 3)
    assert GRID.policy("ocr", Cell("clasp", "A", 0.0)) == CategoryPolicy(a, 0.0, 1.5)
    by_rule = CategoryPolicy(a, 0.5, 1.5, "divprune")
    assert GRID.policy("ocr", Cell("divprune", "A")) == by_rule
    assert GRID.policy("scene", Cell("clasp", "A", 0.0)) == CategoryPolicy(a, 0.0)
    for category in PROFILE.categories:
        policy = GRID.policy(category, GRID.default(category))
        assert policy == PROFILE.categories[category]


def test_a_grid_without_strategies_keeps_the_mixtures_of_the_profile() -> None:
    grid = Grid(PROFILE, (OWN,), (0.0, 0.5), ("clasp", "divprune"))
    assert grid.default("ocr") == Cell("clasp", OWN, 0.5)
    assert grid.default("scene") == Cell("divprune", OWN)
    assert [cell.name for cell in grid.cells("general")] == [
        *("default", "clasp own 0", "clasp own 0.5", "divprune own"),
    ]
    for category, policy in PROFILE.categories.items():
        for cell in grid.cells(category):
            assert grid.policy(category, cell).layer_weights == policy.layer_weights


@pytest.mark.parametrize("version", [1, 2])
def test_the_sweep_profile_has_a_category_for_every_cell(version: int) -> None:
    categories = {name: PROFILE.categories[name] for name in ("general", "ocr")}
    base = Profile("base", "llava", PROFILE.layers, "test", categories, format=version)
    grid = Grid(base, GRID.strategies, GRID.pivot_ratios, GRID.rules)
    sweep = grid.sweep_profile(["ocr"])
    assert len(sweep.categories) == 1 + 6
    for cell in grid.cells("ocr"):
        assert sweep.categories[grid.category("ocr", cell)] == grid.policy("ocr", cell)
