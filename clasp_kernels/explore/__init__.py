"""The page of ``clasp explore``: what every rule keeps of one image, at every budget.

``plans`` says which budgets and schedules there are, ``selections`` has the model compute them,
``encoding`` makes them small, and ``page`` writes the HTML.
"""

from .plans import Plan, input_plan, progressive_plan
from .selections import Exploration, PromptTokens, ShownStage, TokenState, explore

__all__ = [
    "Exploration",
    "Plan",
    "PromptTokens",
    "ShownStage",
    "TokenState",
    "explore",
    "input_plan",
    "progressive_plan",
]
