"""Fused kernels for CLASP: prompt-aware pruning of visual tokens in multimodal LLMs.

Names are imported on first use. Importing the package imports neither torch, transformers nor
Triton. Saved programs still find the ops, because they are registered with ``torch.ops`` as soon as
both this package and torch are imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from . import _with_torch
from ._version import __version__

if TYPE_CHECKING:
    from .backends import backend_report, use_backend
    from .models import apply_clasp
    from .ops import (
        Selection,
        attention_salience,
        complete_tokens,
        cover_tokens,
        fuse_layers,
        gather_tokens,
        merge_tokens,
        prune_tokens,
        select_pivots,
        select_tokens,
    )

__all__ = [
    "Selection",
    "__version__",
    "apply_clasp",
    "attention_salience",
    "backend_report",
    "complete_tokens",
    "cover_tokens",
    "fuse_layers",
    "gather_tokens",
    "merge_tokens",
    "prune_tokens",
    "select_pivots",
    "select_tokens",
    "use_backend",
]

_SUBMODULES = ("backends", "models", "ops", "policy", "reference", "rules")
# The modules of the names that are not ops.
_HOMES = {"backend_report": ".backends", "use_backend": ".backends", "apply_clasp": ".models"}


def __getattr__(name: str) -> object:
    if name in _SUBMODULES:
        return importlib.import_module(f".{name}", __name__)
    if name in __all__:
        module = importlib.import_module(_HOMES.get(name, ".ops"), __name__)
        value = globals()[name] = getattr(module, name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})


_with_torch.register_ops()
