"""Strategies A to E: named mixtures of the fused vision layers, from shallow to deep."""

from __future__ import annotations

STRATEGIES: dict[str, float] = {"A": 0.0, "B": 0.25, "C": 0.5, "D": 0.75, "E": 1.0}
"""Letter -> centre of the mixture, from 0 (shallowest fused layer) to 1 (deepest)."""


def strategy_weights(letter: str, num_layers: int) -> tuple[float, ...]:
    """Return the layer weights of a strategy, shallowest layer first. They sum to 1.

    With layer l at depth t_l = l / (L - 1), the weight w_l is proportional to
    max(0, 1 - |t_l - centre| / reach). The reach is 0.5, or 1 with two layers, which have no layer
    half way. A layer of weight 0 is never read. This shape is this project's own choice; the
    paper's public material does not give one.

    >>> strategy_weights("A", 5)
    (0.6666666666666666, 0.3333333333333333, 0.0, 0.0, 0.0)
    >>> strategy_weights("E", 4)[-1] > strategy_weights("D", 4)[-1]
    True
    >>> strategy_weights("C", 1)
    (1.0,)
    """
    if letter not in STRATEGIES:
        raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, got {letter!r}")
    if num_layers < 1:
        raise ValueError(f"num_layers must be at least 1, got {num_layers}")
    if num_layers == 1:
        return (1.0,)
    centre = STRATEGIES[letter]
    reach = 1.0 if num_layers == 2 else 0.5
    depths = [layer / (num_layers - 1) for layer in range(num_layers)]
    raw = [max(0.0, 1.0 - abs(depth - centre) / reach) for depth in depths]
    total = sum(raw)
    return tuple(weight / total for weight in raw)
