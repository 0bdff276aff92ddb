"""Selection rules by name: what CLASP is compared with, and controls, all on the ops.

Each rule is this package's own implementation of a published rule. Its docstring has the source.
Importing this package registers the rules below; ``register_rule`` adds one.
"""

from .registry import Rule, RuleFunction, find_rule, register_rule, rule_names

# isort: off
# In the order in which ``rule_names`` lists them.
from ._clasp import clasp
from ._attention import attention
from ._divprune import divprune
from ._dart import dart
from ._controls import random, uniform

__all__ = [
    "Rule",
    "RuleFunction",
    "attention",
    "clasp",
    "dart",
    "divprune",
    "find_rule",
    "random",
    "register_rule",
    "rule_names",
    "uniform",
]
