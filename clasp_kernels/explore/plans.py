"""The budgets of the page: a grid of schedules before the LLM, and one inside it."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from clasp_kernels.policy import Schedule

# Of 576 tokens these are 9, 18, 36, 48, 64, 96, 128, 144, 192, 288, 432 and 576, which has the
# budgets that papers report.
_SHARES = (
    *(Fraction(1, n) for n in (64, 32, 16, 12, 9, 6)),
    *(Fraction(2, 9), Fraction(1, 4), Fraction(1, 3), Fraction(1, 2), Fraction(3, 4), Fraction(1)),
)
_MEAN_SHARES = (0.2, 0.25, 1 / 3, 0.5, 0.75)
# The paper drops tokens after these layers of 32.
_PAPER_LAYERS, _PAPER_DEPTH = (2, 6, 15), 32
#: The budget that ``apply_clasp`` has by default, which the page shows first.
_USUAL_SHARE = 0.25


@dataclass(frozen=True)
class Plan:
    """One kind of schedule, at several budgets."""

    name: str
    """"input" or "progressive"."""
    schedules: tuple[Schedule, ...]
    """Ascending by budget. All have the same layers."""
    tokens: tuple[float, ...]
    """The budget of each schedule: the mean of an image's tokens over the LLM's layers."""
    num_tokens: int
    """The tokens of the largest image, which the budgets are shares of."""

    @property
    def layers(self) -> tuple[int, ...]:
        """The number of decoder layers that have run at each stage."""
        return self.schedules[0].layers

    @property
    def usual(self) -> int:
        """The schedule whose budget is nearest to that of ``apply_clasp`` without arguments.

        >>> plan = input_plan(144)
        >>> plan.schedules[plan.usual]
        Schedule({0: 36})
        """
        wanted = _USUAL_SHARE * self.num_tokens
        return min(range(len(self.tokens)), key=lambda number: abs(self.tokens[number] - wanted))


def input_plan(num_tokens: int) -> Plan:
    """Return schedules that prune once, before the LLM.

    >>> input_plan(144).tokens
    (2, 4, 9, 12, 16, 24, 32, 36, 48, 72, 108, 144)
    >>> input_plan(3).tokens
    (1, 2, 3)
    """
    counts = sorted({max(1, round(share * num_tokens)) for share in _SHARES})
    return Plan("input", tuple(map(Schedule.input, counts)), tuple(counts), num_tokens)


def progressive_plan(num_tokens: int, num_layers: int) -> Plan | None:
    """Return schedules that drop tokens after a few layers, or None if the LLM is too shallow.

    The layers are at the relative depths of the paper's 2, 6 and 15 of 32. Layers before the first
    stage see all tokens, so smaller budgets than these layers need do not exist.

    >>> plan = progressive_plan(576, 32)
    >>> plan.layers, [round(tokens) for tokens in plan.tokens]
    ((2, 6, 15), [115, 144, 192, 288, 432])
    >>> progressive_plan(144, 6).layers
    (1, 3)
    >>> progressive_plan(144, 1)
    """
    depths = (max(1, round(layer * num_layers / _PAPER_DEPTH)) for layer in _PAPER_LAYERS)
    layers = sorted({depth for depth in depths if depth < num_layers})
    # A budget close to what the first layers cost would leave next to nothing for the others.
    shares = [share for share in _MEAN_SHARES if layers and share > 1.15 * layers[0] / num_layers]
    if not shares:
        return None
    schedules = [Schedule.progressive(share, layers, num_layers) for share in shares]
    return Plan(
        "progressive",
        tuple(schedules),
        tuple(share * num_tokens for share in shares),
        num_tokens,
    )
