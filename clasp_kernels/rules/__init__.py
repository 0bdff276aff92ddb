"""Selection rules by name: what CLASP is compared with, and controls, all on the ops.

Each rule is this package's own implementation of a published rule. Its docstring has the source.
Importing this package registers the rules below; ``register_rule`` adds one.
"""

from .pooling import PooledSelection, pool_tokens
from .registry import Rule, RuleFunction, find_rule, register_rule, rule_names
from .relevance import prompt_relevance

# isort: off
# In the order in which ``rule_names`` lists them.
from ._clasp import clasp
from ._clasp_clusters import clasp_clusters
from ._attention import attention
from ._divprune import divprune
from ._cenprune import cenprune
from ._cdpruner import cdpruner
from ._scope import scope
from ._dart import dart
from ._visionzip import visionzip
from ._controls import random, uniform
from ._pool import pool

__all__ = [
    "PooledSelection",
    "Rule",
    "RuleFunction",
    "attention",
    "cdpruner",
    "cenprune",
    "clasp",
    "clasp_clusters",
    "dart",
    "divprune",
    "find_rule",
    "pool",
    "pool_tokens",
    "prompt_relevance",
    "random",
    "register_rule",
    "rule_names",
    "scope",
    "uniform",
    "visionzip",
]
