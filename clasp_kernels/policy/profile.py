"""Profiles: how each category fuses layers and splits the budget, for one model family.

A profile is a JSON file::

    {
      "format": 2,
      "name": "my-llava",
      "model_type": "llava",
      "layers": [0.7, 0.8, 0.9, 1.0],
      "source": "where these values come from",
      "salience_layer": null,
      "normalize": null,
      "fuse_into": null,
      "categories": {
        "ocr":     {"layer_weights": "E", "pivot_ratio": 0.7, "budget_scale": 1.0},
        "scene":   {"layer_weights": "D", "pivot_ratio": 0.5, "rule": "divprune"},
        "general": {"layer_weights": [0, 0, 0.25, 0.75], "pivot_ratio": 0.5}
      }
    }

``format``
    Version of this layout, 2. Version 1 can be read too; it has no relative depths, ``fuse_into``
    or ``rule``.
``name``, ``source``
    Name of the profile, and how its values were found. Both are only shown to people.
``model_type``
    The ``config.model_type`` of the Hugging Face models that the profile is for.
``layers``
    The vision layers that are fused, shallow to deep. Either all are relative depths in 0..1, which
    work for any number of layers: 0 is the input of the first layer, 1 the output of the last. Or
    all are negative indices: -1 is the output of the last layer, -2 of the one before it.
``categories``
    At least ``general``. For each: ``layer_weights``, one number >= 0 per layer or a strategy
    letter from A (shallow) to E (deep); ``pivot_ratio`` in 0..1, the share of the budget given
    to pivot tokens (at least one pivot is always kept); ``budget_scale`` > 0 (default 1),
    a factor on the budget of the category; ``rule`` (default null, for CLASP), the name of another
    selection rule of ``clasp_kernels.rules``, which has no use for ``pivot_ratio``. The name is
    looked up when the profile is applied.
``salience_layer``
    The vision layer whose attention scores the tokens: a negative index, or the relative depth,
    above 0, of its output. null (the default) is the layer whose output the model's projector was
    trained on.
``normalize``
    null (the default), "l2" or "rms": applied to each layer's tokens before weighting.
``fuse_into``
    "projector": the projector gets the fused layers. "selection": the fused layers only choose
    tokens. null (the default) leaves the choice to the caller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from clasp_kernels._integers import as_int
from clasp_kernels.policy._fields import (
    as_mapping,
    finite_number,
    known_fields,
    listed,
    read_json,
    round_half_up,
    write_json,
)
from clasp_kernels.policy.categories import FALLBACK_CATEGORY
from clasp_kernels.policy.layers import (
    TowerLayers,
    check_layers,
    check_salience_layer,
    state_index,
)
from clasp_kernels.policy.strategies import STRATEGIES, strategy_weights

PROFILE_FORMAT = 2
_FORMATS = (1, PROFILE_FORMAT)
_NORMALIZE = (None, "l2", "rms")
_FUSE_INTO = (None, "projector", "selection")
_REQUIRED = ("format", "name", "model_type", "layers", "source", "categories")
_OPTIONAL = ("salience_layer", "normalize", "fuse_into")


@dataclass(frozen=True)
class CategoryPolicy:
    """How one category fuses layers and splits the budget.

    >>> CategoryPolicy((0.25, 0.75), pivot_ratio=0.5)
    CategoryPolicy(layer_weights=(0.25, 0.75), pivot_ratio=0.5, budget_scale=1.0, rule=None)
    """

    layer_weights: tuple[float, ...]
    pivot_ratio: float
    budget_scale: float = 1.0
    rule: str | None = None


@dataclass(frozen=True)
class Profile:
    """Layer weights, pivot ratio and budget scale of each category, for one model family.

    The docstring of this module describes the JSON layout and every field. The constructor checks
    all values; its ValueErrors name the field, the value and the allowed values.

    >>> profile = Profile.for_model_type("llava")
    >>> profile.pivot_count("ocr", 64) + 3 <= 64
    True
    >>> Profile.from_dict(profile.to_dict()) == profile
    True
    """

    name: str
    model_type: str
    layers: tuple[int, ...] | tuple[float, ...]
    source: str
    categories: Mapping[str, CategoryPolicy]
    salience_layer: int | float | None = None
    normalize: Literal["l2", "rms"] | None = None
    fuse_into: Literal["projector", "selection"] | None = None
    format: int = PROFILE_FORMAT

    def __post_init__(self) -> None:
        object.__setattr__(self, "format", _check_format(self.format))
        for field in ("name", "model_type", "source"):
            value = getattr(self, field)
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"{field} must be a non-empty string, got {value!r}")
        object.__setattr__(self, "layers", check_layers(self.layers, self.format))
        salience_layer = check_salience_layer(self.salience_layer, self.format)
        object.__setattr__(self, "salience_layer", salience_layer)
        if self.normalize not in _NORMALIZE:
            raise ValueError(f'normalize must be null, "l2" or "rms", got {self.normalize!r}')
        if self.fuse_into not in _FUSE_INTO:
            raise ValueError(
                f'fuse_into must be null, "projector" or "selection", got {self.fuse_into!r}'
            )
        if self.fuse_into is not None and self.format == 1:
            raise ValueError(f"fuse_into needs format 2, got {self.fuse_into!r} in format 1")
        # Copy the mapping, so that the caller cannot change it after the checks.
        checked = {
            name: _check_policy(f"categories.{name}", policy, self.layers)
            for name, policy in as_mapping("categories", self.categories).items()
        }
        if FALLBACK_CATEGORY not in checked:
            raise ValueError(
                f"categories must contain {FALLBACK_CATEGORY!r}, where unmatched prompts go; "
                f"it has: {', '.join(map(str, checked)) or 'nothing'}"
            )
        for name, policy in checked.items():
            if policy.rule is not None and self.format == 1:
                raise ValueError(
                    f"categories.{name}.rule needs format 2, got {policy.rule!r} in format 1"
                )
        object.__setattr__(self, "categories", checked)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Profile:
        """Build a profile from the JSON layout. ``layer_weights`` may be a strategy letter."""
        data = as_mapping("a profile", data)
        missing = [name for name in _REQUIRED if name not in data]
        if missing:
            raise ValueError(f"profile is missing field(s) {', '.join(map(repr, missing))}")
        known_fields("profile", data, _REQUIRED + _OPTIONAL)
        layers = check_layers(data["layers"], _check_format(data["format"]))
        categories = {
            name: _policy_from_dict(f"categories.{name}", entry, layers)
            for name, entry in as_mapping("categories", data["categories"]).items()
        }
        return cls(**{**data, "layers": layers, "categories": categories})

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON layout. Strategy letters are written as weights."""
        # Format 1 does not have fuse_into.
        fuse_into = {} if self.format == 1 else {"fuse_into": self.fuse_into}
        return {
            "format": self.format,
            "name": self.name,
            "model_type": self.model_type,
            "layers": list(self.layers),
            "source": self.source,
            "salience_layer": self.salience_layer,
            "normalize": self.normalize,
            **fuse_into,
            "categories": {
                name: {
                    "layer_weights": list(policy.layer_weights),
                    "pivot_ratio": policy.pivot_ratio,
                    "budget_scale": policy.budget_scale,
                    **({} if policy.rule is None else {"rule": policy.rule}),
                }
                for name, policy in self.categories.items()
            },
        }

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Read a profile from JSON. Errors name the file and the field."""
        data = read_json(path)
        try:
            return cls.from_dict(data)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def save(self, path: str | Path) -> None:
        """Write the profile as JSON. ``Profile.load`` returns an equal one."""
        write_json(path, self.to_dict())

    @classmethod
    def for_model_type(cls, model_type: str) -> Profile:
        """Load the bundled profile of a model family.

        >>> Profile.for_model_type("gpt2")
        Traceback (most recent call last):
        ...
        ValueError: no bundled profile for model_type 'gpt2'; there is one for: ...
        """
        folder = resources.files("clasp_kernels") / "assets" / "profiles"
        bundled = {
            entry.name.removesuffix(".json"): entry
            for entry in folder.iterdir()
            if entry.name.endswith(".json")
        }
        if model_type not in bundled:
            raise ValueError(
                f"no bundled profile for model_type {model_type!r}; there is one for: "
                f"{', '.join(sorted(bundled))}; pass your own with Profile.load(path)"
            )
        with resources.as_file(bundled[model_type]) as path:
            return cls.load(path)

    @property
    def category_names(self) -> tuple[str, ...]:
        """The categories in the order of ``weights_matrix`` rows and of ``category_id``."""
        return tuple(self.categories)

    def category_id(self, name: str) -> int:
        """Return the row of a category in ``weights_matrix``, or raise a ValueError if unknown."""
        self._policy(name)
        return self.category_names.index(name)

    def weights_matrix(self) -> list[list[float]]:
        """Return the layer weights [C, L], one row per category in ``category_names`` order."""
        return [list(policy.layer_weights) for policy in self.categories.values()]

    def for_tower(self, num_layers: int) -> TowerLayers:
        """Return the layers of this profile in a vision tower of ``num_layers`` layers.

        A relative depth d is state floor(d * num_layers + 0.5) of hidden_states 0..num_layers. In a
        shallow tower, several depths may be the same state: it is read once, with the sum of their
        weights. ``salience_layer`` is the layer whose output is that state, at least layer 0.

        Raises:
            ValueError: a negative index is out of range, or ``num_layers`` is below 1.

        >>> profile = Profile.for_model_type("llava")
        >>> profile.layers
        (0.7083333333333334, 0.7916666666666666, 0.875, 0.9583333333333334)
        >>> profile.for_tower(24).states
        (17, 19, 21, 23)
        >>> profile.for_tower(5).states
        (4, 5)
        """
        count = as_int(num_layers)
        if count is None or count < 1:
            raise ValueError(f"num_layers must be an integer of at least 1, got {num_layers!r}")
        num_layers = count
        for use, layer in (
            ("fuses layer", self.layers[0]),
            ("takes salience from layer", self.salience_layer),
        ):
            if layer is not None and layer < -num_layers:
                raise ValueError(
                    f"profile {self.name!r} {use} {layer}, but the vision tower has "
                    f"{num_layers} layers: {-num_layers}..-1 are allowed"
                )
        indices = [state_index(layer, num_layers) for layer in self.layers]
        states = tuple(dict.fromkeys(indices))
        weights = tuple(
            tuple(
                sum(weight for weight, index in zip(row, indices, strict=True) if index == state)
                for state in states
            )
            for row in self.weights_matrix()
        )
        salience_layer = None
        if self.salience_layer is not None:
            salience_layer = max(0, state_index(self.salience_layer, num_layers) - 1)
        return TowerLayers(states, weights, salience_layer)

    def budget(self, category: str, budget: float) -> int:
        """Return the tokens to keep: ``budget`` times the category's scale, rounded, at least 1.

        ``budget`` need not be an integer, because it may be a fraction times the image's tokens.

        >>> Profile.for_model_type("llava").budget("general", 0.25 * 145)
        36
        """
        budget = finite_number("budget", budget, "a finite number above 0")
        if budget <= 0:
            raise ValueError(f"budget must be a finite number above 0, got {budget!r}")
        return max(1, round_half_up(self._policy(category).budget_scale * budget))

    def pivot_count(self, category: str, budget: int) -> int:
        """Return how many of ``budget`` kept tokens are pivots: ``pivot_ratio`` times ``budget``,
        rounded, within 1..budget."""
        count = as_int(budget)
        if count is None or count < 1:
            raise ValueError(f"budget must be an integer of at least 1, got {budget!r}")
        return min(count, max(1, round_half_up(self._policy(category).pivot_ratio * count)))

    def _policy(self, category: str) -> CategoryPolicy:
        if category not in self.categories:
            raise ValueError(
                f"unknown category {category!r}; profile {self.name!r} has: "
                f"{', '.join(self.category_names)}"
            )
        return self.categories[category]


def _check_format(value: object) -> int:
    number = as_int(value)
    if number is None or number not in _FORMATS:
        raise ValueError(
            f"format must be {' or '.join(map(str, _FORMATS))}, the versions this package reads, "
            f"got {value!r}"
        )
    return number


def _policy_from_dict(field: str, entry: object, layers: Sequence[float]) -> CategoryPolicy:
    entry = as_mapping(field, entry)
    known_fields(field, entry, ("layer_weights", "pivot_ratio", "budget_scale", "rule"))
    for name in ("layer_weights", "pivot_ratio"):
        if name not in entry:
            raise ValueError(f"{field} is missing field {name!r}")
    weights = entry["layer_weights"]
    if isinstance(weights, str):
        if weights not in STRATEGIES:
            raise ValueError(
                f"{field}.layer_weights must be a list of {len(layers)} numbers or a strategy "
                f"letter {', '.join(STRATEGIES)}, got {weights!r}"
            )
        weights = strategy_weights(weights, len(layers))
    return CategoryPolicy(
        weights, entry["pivot_ratio"], entry.get("budget_scale", 1.0), entry.get("rule")
    )


def _check_policy(field: str, policy: object, layers: Sequence[float]) -> CategoryPolicy:
    if not isinstance(policy, CategoryPolicy):
        raise ValueError(f"{field} must be a CategoryPolicy, got {type(policy).__name__}")
    weights = listed(policy.layer_weights)
    if not isinstance(weights, Sequence) or isinstance(weights, str) or len(weights) != len(layers):
        raise ValueError(
            f"{field}.layer_weights must have one number per fused layer, "
            f"{len(layers)} for layers {list(layers)}, got {weights!r}"
        )
    checked = tuple(
        finite_number(f"{field}.layer_weights[{i}]", weight, "a finite number >= 0")
        for i, weight in enumerate(weights)
    )
    if any(weight < 0 for weight in checked) or not any(checked):
        raise ValueError(
            f"{field}.layer_weights must be numbers >= 0, at least one above 0, "
            f"got {list(weights)!r}"
        )
    ratio = finite_number(f"{field}.pivot_ratio", policy.pivot_ratio, "a number in 0..1")
    if not 0.0 <= ratio <= 1.0:
        raise ValueError(f"{field}.pivot_ratio must be a number in 0..1, got {ratio!r}")
    scale = finite_number(f"{field}.budget_scale", policy.budget_scale, "a number above 0")
    if scale <= 0.0:
        raise ValueError(f"{field}.budget_scale must be a number above 0, got {scale!r}")
    if policy.rule is not None and (not isinstance(policy.rule, str) or not policy.rule):
        raise ValueError(f"{field}.rule must be null or the name of a rule, got {policy.rule!r}")
    return CategoryPolicy(checked, ratio, scale, policy.rule)
