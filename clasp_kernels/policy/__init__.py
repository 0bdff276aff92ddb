"""Policy: choose vision layers and token counts for a prompt. No tensors are used here.

A router assigns each prompt to a category. A profile says how that category fuses vision layers and
splits the token budget into pivots and completion.

>>> from clasp_kernels.policy import Profile, Router
>>> profile = Profile.for_model_type("llava")
>>> [category] = Router().route(["How many dogs are there?"])
>>> category, 1 <= profile.pivot_count(category, budget=64) <= 64
('counting', True)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clasp_kernels.policy.categories import CATEGORIES, FALLBACK_CATEGORY
from clasp_kernels.policy.layers import TowerLayers
from clasp_kernels.policy.profile import CategoryPolicy, Profile
from clasp_kernels.policy.router import Route, Router, RouterLike, route_prompts
from clasp_kernels.policy.schedule import Schedule
from clasp_kernels.policy.strategies import STRATEGIES, strategy_weights

if TYPE_CHECKING:
    from clasp_kernels.policy.prototype_router import PrototypeRouter

__all__ = [
    "CATEGORIES",
    "FALLBACK_CATEGORY",
    "STRATEGIES",
    "CategoryPolicy",
    "Profile",
    "PrototypeRouter",
    "Route",
    "Router",
    "RouterLike",
    "Schedule",
    "TowerLayers",
    "route_prompts",
    "strategy_weights",
]


def __getattr__(name: str) -> Any:
    # The only part that needs torch, which takes seconds to import.
    if name == "PrototypeRouter":
        from clasp_kernels.policy.prototype_router import PrototypeRouter

        return PrototypeRouter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
