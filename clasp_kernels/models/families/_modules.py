"""Parts of a model, found by their class."""

from __future__ import annotations

from typing import Any


def module_inside(model: Any, kind: type) -> Any:
    """The module of a class inside a model, be it the base model or what that is wrapped in."""
    return next(module for module in model.base_model.modules() if isinstance(module, kind))
