"""Encode an exploration as a small JSON object. ``assets/explore/page.js`` decodes it.

``frames`` leads from rule, group of categories, budget and stage to three numbers: the places of a
stage's states, salience and coverage in ``states`` and ``maps``. Equal ones are stored once.
"""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import torch

from clasp_kernels.explore.plans import Plan
from clasp_kernels.explore.selections import Exploration, ShownStage
from clasp_kernels.rules import find_rule

_STATES_PER_BYTE = 4


class _Pool:
    """Strings by number, each once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        return self._numbers.setdefault(text, len(self._numbers))

    @property
    def strings(self) -> list[str]:
        return list(self._numbers)


def encoded(exploration: Exploration) -> dict[str, Any]:
    """Return the exploration as JSON data."""
    states, maps = _Pool(), _Pool()
    groups = list(dict.fromkeys(exploration.groups.values()))

    def frame(stage: ShownStage) -> list[int]:
        return [
            states.number(packed_states(stage.states)),
            maps.number(packed_shares(stage.salience / stage.salience.max().clamp_min(1e-30))),
            maps.number(packed_values(stage.coverage)),
        ]

    def plan_data(plan: Plan) -> dict[str, Any]:
        return {
            "name": plan.name,
            "layers": [layer or None for layer in plan.layers],
            "budgets": [round(tokens, 1) for tokens in plan.tokens],
            "usual": plan.usual,
            # Empty for a rule that does not work in the plan.
            "frames": [
                [
                    [
                        [frame(stage) for stage in exploration.of(plan.name, rule, group, budget)]
                        for budget in range(len(plan.schedules))
                    ]
                    for group in groups
                    if (plan.name, rule, group, 0) in exploration.stages
                ]
                for rule in exploration.rules
            ],
        }

    plans = [plan_data(plan) for plan in exploration.plans]
    return {
        "tokens": exploration.num_tokens,
        "largest": exploration.plans[0].num_tokens,
        "rules": [
            {"name": rule.name, "salience": rule.uses_salience, "pools": rule.pools}
            for rule in map(find_rule, exploration.rules)
        ],
        "categories": [
            {"name": name, "group": groups.index(exploration.groups[name]), "scale": scale}
            for name, scale in zip(exploration.categories, exploration.scales, strict=True)
        ],
        "plans": plans,
        "states": states.strings,
        "maps": maps.strings,
    }


def packed_states(states: torch.Tensor) -> str:
    """Pack states [tokens] into two bits each, the first token in the lowest bits.

    >>> packed_states(torch.tensor([3, 0, 1, 2, 1], dtype=torch.uint8))
    'kwE='
    """
    padded = torch.zeros(-(-len(states) // _STATES_PER_BYTE), _STATES_PER_BYTE, dtype=torch.uint8)
    padded.view(-1)[: len(states)] = states
    weights = torch.tensor([1, 4, 16, 64], dtype=torch.uint8)
    return _base64((padded * weights).sum(dim=1))


def packed_values(values: torch.Tensor) -> str:
    """Pack numbers [tokens] as a byte each: 0 to 1 becomes 0 to 255.

    >>> packed_values(torch.tensor([0.0, 0.5, 1.0, -0.2, float("nan")]))
    'AID/AAA='
    """
    return _base64((255 * values.nan_to_num(0.0).clamp(0, 1)).round())


def packed_shares(shares: torch.Tensor) -> str:
    """As :func:`packed_values`, for square roots: most shares of an attention are small.

    >>> packed_shares(torch.tensor([0.25])) == packed_values(torch.tensor([0.5]))
    True
    """
    return packed_values(shares.nan_to_num(0.0).clamp_min(0).sqrt())


def _base64(values: torch.Tensor) -> str:
    return b64encode(bytes(values.to(torch.uint8).tolist())).decode()
