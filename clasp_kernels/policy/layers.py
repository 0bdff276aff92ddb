"""Vision layers: how a profile names them, and how they map to a tower of a given depth.

A profile names layers in one of two ways. A *negative index* counts from the end: -1 is the output
of the last layer. A *relative depth* in 0..1 works for any number of layers: 0 is the input of the
first layer, 1 the output of the last.

A tower of n layers has n + 1 hidden states: state 0 is the input of the first layer, state n the
output of the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from typing import TypeGuard

from clasp_kernels._integers import as_int
from clasp_kernels.policy._fields import listed, round_half_up


@dataclass(frozen=True)
class TowerLayers:
    """The layers of a profile in one vision tower, as returned by ``Profile.for_tower``.

    >>> from clasp_kernels.policy import Profile
    >>> layers = Profile.for_model_type("llava").for_tower(24)
    >>> layers.states
    (17, 19, 21, 23)
    >>> len(layers.weights), len(layers.weights[0])
    (7, 4)
    """

    states: tuple[int, ...]
    """Indices of the fused states among hidden_states 0..num_layers, [L], ascending and distinct.
    """
    weights: tuple[tuple[float, ...], ...]
    """Layer weights [C, L]: a row for each of ``Profile.category_names``, a column per state."""
    salience_layer: int | None
    """The layer whose attention scores the tokens, 0..num_layers-1. None leaves it to the model
    family."""


def state_index(layer: float, num_layers: int) -> int:
    """Return the index of a layer's output among hidden_states 0..num_layers.

    >>> state_index(-2, 24), state_index(0.75, 24), state_index(1.0, 24)
    (23, 18, 24)
    """
    if layer < 0:
        return int(layer) + num_layers + 1
    return round_half_up(layer * num_layers)


def check_layers(layers: object, profile_format: int) -> tuple[int, ...] | tuple[float, ...]:
    """Return ``layers`` as negative indices or relative depths, or raise a ValueError."""
    allowed = "either all negative layer indices or all relative depths in 0..1"
    if profile_format == 1:
        allowed = "negative layer indices (all that format 1 has)"
    refusal = f"layers must be a non-empty list of {allowed}, each once, from shallow to deep, got "
    layers = listed(layers)
    if not isinstance(layers, Sequence) or isinstance(layers, str) or not layers:
        raise ValueError(f"{refusal}{layers!r}")
    checked: tuple[int, ...] | tuple[float, ...]
    if all(_is_negative_index(layer) for layer in layers):
        checked = tuple(map(int, layers))
    elif profile_format > 1 and all(_is_depth(layer) for layer in layers):
        checked = tuple(map(float, layers))
    else:
        raise ValueError(f"{refusal}{list(layers)!r}")
    if any(shallow >= deep for shallow, deep in pairwise(checked)):
        raise ValueError(f"{refusal}{list(layers)!r}")
    return checked


def check_salience_layer(layer: object, profile_format: int) -> int | float | None:
    """Return ``layer`` as None, a negative index or a relative depth, or raise a ValueError."""
    if layer is None:
        return None
    if _is_negative_index(layer):
        return int(layer)
    if profile_format == 1:
        raise ValueError(
            f"salience_layer must be null or a negative layer index (all that format 1 has), "
            f"got {layer!r}"
        )
    if _is_depth(layer) and layer > 0:
        return float(layer)
    raise ValueError(
        f"salience_layer must be null, a negative layer index or a relative depth above 0 and at "
        f"most 1, got {layer!r}"
    )


def _is_negative_index(layer: object) -> TypeGuard[int]:
    index = as_int(layer)
    return index is not None and index < 0


def _is_depth(layer: object) -> TypeGuard[float]:
    return not isinstance(layer, bool) and isinstance(layer, Real) and 0 <= float(layer) <= 1
