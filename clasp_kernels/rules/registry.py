"""The registry of selection rules: what a rule is, and rules by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor

from clasp_kernels import Selection

from .pooling import PooledSelection


class RuleFunction(Protocol):
    """Select ``budget[b]`` of the visual tokens of image b.

    A rule that is registered with ``uses_relevance=True`` takes one more keyword, ``relevance``,
    and one with ``uses_places=True`` takes ``places``.
    """

    def __call__(
        self,
        features: Tensor,
        salience: Tensor,
        budget: Sequence[int],
        *,
        valid: Tensor | None = None,
    ) -> Selection | PooledSelection:
        """
        Args:
            features: [B, N, D]; float32, bfloat16 or float16.
            salience: [B, N] float32; in a patched model zeros, if the rule was registered with
                ``uses_salience=False``.
            budget: the number of tokens to keep of each image.
            valid: [B, N] bool; False where an image has no token. All by default.

        Returns:
            :class:`~clasp_kernels.Selection` as of :func:`~clasp_kernels.select_tokens`: ascending
            indices, padded with -1 where fewer than ``max(budget)`` are kept. ``is_pivot`` marks
            the tokens that were kept for their salience. A rule that is registered with
            ``pools=True`` returns a :class:`PooledSelection`.
        """


@dataclass(frozen=True)
class Rule:
    """A selection rule and what it needs."""

    name: str
    function: RuleFunction
    uses_salience: bool = True
    """Whether the vision tower's attention has to be scored for it."""
    uses_relevance: bool = False
    """Whether it takes ``relevance``."""
    uses_places: bool = False
    """Whether it takes ``places``."""
    pools: bool = False
    """Whether it averages tokens."""

    @property
    def only_before_llm(self) -> bool:
        """Whether it does not work at stages inside the LLM: it averages tokens, which is no use on
        hidden states, or uses places, which no stage there is given."""
        return self.pools or self.uses_places

    def __call__(
        self,
        features: Tensor,
        salience: Tensor,
        budget: Sequence[int],
        *,
        relevance: Tensor | None = None,
        places: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> Selection | PooledSelection:
        """
        Args:
            relevance: [B, N], how relevant each token is to the prompt; None if it is not known.
            places: [B, N, 3], where each token lies, as :func:`register_rule` says.

        Both are ignored by a rule that does not use them. The other arguments are those of
        :class:`RuleFunction`.

        Raises:
            ValueError: the rule uses places, and ``places`` is None or has another shape.
        """
        given: dict[str, Tensor | None] = {}
        if self.uses_relevance:
            given["relevance"] = relevance
        if self.uses_places:
            shape = [*features.shape[:2], 3]
            if places is None or list(places.shape) != shape:
                got = None if places is None else list(places.shape)
                raise ValueError(
                    f"places must be given to rule {self.name!r}, the frame, y and x of each "
                    f"token, {shape}, got {got}"
                )
            given["places"] = places
        function: Callable[..., Selection | PooledSelection] = self.function
        return function(features, salience, budget, valid=valid, **given)


_RULES: dict[str, Rule] = {}
_Function = TypeVar("_Function", bound=Callable[..., Selection | PooledSelection])


def register_rule(
    name: str,
    *,
    uses_salience: bool = True,
    uses_relevance: bool = False,
    uses_places: bool = False,
    pools: bool = False,
) -> Callable[[_Function], _Function]:
    """Register a function as the rule ``name``, which ``apply_clasp(model, rule=name)`` then takes.

    Args:
        name: a name that no rule has yet.
        uses_salience: False for a rule that compares features alone. A patched model then gives it
            zeros, which saves scoring the attention.
        uses_relevance: True for a rule that takes the keyword ``relevance``, [B, N] float32: how
            similar each token is to the prompt (:func:`prompt_relevance`), or None.
        uses_places: True for a rule that takes the keyword ``places``, [B, N, 3] float32: the frame
            of each token, 0 in an image, and the y and x of its centre. The longer side of the
            image is 1 long. Tokens of several views of an image have their places in the image.
            Padding has any place. Such a rule works only before the LLM.
        pools: True for a rule that returns a :class:`PooledSelection`, whose kept tokens become
            means of groups. Such a rule works only before the LLM, where tokens have no position
            yet.

    Raises:
        ValueError: there is a rule of this name.

    >>> from clasp_kernels import select_tokens
    >>> @register_rule("nearly_all_pivots")
    ... def nearly_all_pivots(features, salience, budget, *, valid=None):
    ...     return select_tokens(features, salience, budget, [b * 9 // 10 for b in budget],
    ...                          valid=valid)
    >>> find_rule("nearly_all_pivots").uses_salience
    True
    """

    def register(function: _Function) -> _Function:
        if name in _RULES:
            raise ValueError(f"name must be one that no rule has yet, got {name!r}")
        _RULES[name] = Rule(name, function, uses_salience, uses_relevance, uses_places, pools)
        return function

    return register


def rule_names() -> tuple[str, ...]:
    """Return the names of all rules, in the order in which they were registered.

    >>> "divprune" in rule_names()
    True
    """
    return tuple(_RULES)


def find_rule(name: str) -> Rule:
    """Return the rule of this name.

    Raises:
        ValueError: there is none; the message lists the names.

    >>> find_rule("attention").name
    'attention'
    """
    if name not in _RULES:
        raise ValueError(f"rule must be {', '.join(map(repr, _RULES))}; got {name!r}")
    return _RULES[name]
