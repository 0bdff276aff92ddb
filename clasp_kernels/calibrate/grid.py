"""The grid of rules, strategies and pivot ratios, whose cells are tried in each category."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from clasp_kernels.policy import STRATEGIES, CategoryPolicy, Profile, strategy_weights

CLASP = "clasp"
#: The strategy that mixes vision layers as the profile does.
OWN = "own"


@dataclass(frozen=True)
class Cell:
    """One way to select: a rule, the strategy that fuses layers, and CLASP's pivot ratio.

    >>> Cell("clasp", "E", 0.5).name, Cell("divprune", "E").name
    ('clasp E 0.5', 'divprune E')
    """

    rule: str
    strategy: str | None
    """The letter, or ``OWN``; None for the default where it is no cell of the grid."""
    pivot_ratio: float | None = None
    """None for a rule without pivots, and for the ratio of the profile that was there before."""

    @property
    def name(self) -> str:
        if self.strategy is None:
            return "default"
        ratio = "" if self.pivot_ratio is None else f" {self.pivot_ratio:.12g}"
        return f"{self.rule} {self.strategy}{ratio}"


@dataclass(frozen=True)
class Grid:
    """The cells of every category, on top of a profile.

    Every category also has a default: the policy of the profile. Where a cell of the grid is the
    same policy, that cell is the default; elsewhere the default is a cell of its own.
    """

    profile: Profile
    strategies: tuple[str, ...] = tuple(STRATEGIES)
    pivot_ratios: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    rules: tuple[str, ...] = (CLASP,)

    @property
    def tried(self) -> list[Cell]:
        """The cells of the grid, which all categories share."""
        return [
            Cell(rule, strategy, ratio)
            for rule in self.rules
            for strategy in self.strategies
            for ratio in (self.pivot_ratios if rule == CLASP else (None,))
        ]

    def default(self, category: str) -> Cell:
        """Return the cell that is the category's policy in the profile."""
        policy = self.profile.categories[category]
        for cell in self.tried:
            if _is_same(self.policy(category, cell), policy):
                return cell
        return Cell(policy.rule or CLASP, None)

    def cells(self, category: str) -> list[Cell]:
        """Return the default, then the other cells."""
        default = self.default(category)
        return [default, *(cell for cell in self.tried if cell != default)]

    def policy(self, category: str, cell: Cell) -> CategoryPolicy:
        """Return the policy of a cell. The budget's scale is that of the profile."""
        policy = self.profile.categories[category]
        if cell.strategy is None:
            return policy
        return replace(
            policy,
            layer_weights=(
                policy.layer_weights
                if cell.strategy == OWN
                else strategy_weights(cell.strategy, len(self.profile.layers))
            ),
            pivot_ratio=policy.pivot_ratio if cell.pivot_ratio is None else cell.pivot_ratio,
            rule=None if cell.rule == CLASP else cell.rule,
        )

    def sweep_profile(self, categories: Sequence[str]) -> Profile:
        """Return a profile that has a category for every cell, so that one model has them all."""
        cells = {
            self.category(category, cell): self.policy(category, cell)
            for category in categories
            for cell in self.cells(category)
        }
        general = {"general": self.profile.categories["general"]}  # every profile needs it
        return replace(self.profile, categories={**general, **cells}, format=2)

    @staticmethod
    def category(category: str, cell: Cell) -> str:
        """Return the name of a cell's category in ``sweep_profile``."""
        return f"{category}: {cell.name}"


def _is_same(policy: CategoryPolicy, other: CategoryPolicy) -> bool:
    one, two = (replace(each, rule=each.rule or CLASP) for each in (policy, other))
    return one == two
