"""Parts of a model, found by their class."""

from __future__ import annotations

from typing import Any

import torch


def module_inside(model: Any, kind: type) -> Any:
    """The module of a class inside a model, be it the base model or what that is wrapped in."""
    return next(module for module in model.base_model.modules() if isinstance(module, kind))


def parameter_of(module: Any, name: str) -> torch.Tensor:
    """A parameter that a module has of its own, with its values.

    A device hook that offloads the module brings its parameters in only while its forward runs,
    and pruning needs them before.
    """
    parameter: torch.Tensor = getattr(module, name)
    if not parameter.is_meta or not hasattr(module, "_hf_hook"):
        return parameter
    from accelerate.utils import align_module_device

    with align_module_device(module):
        parameter = getattr(module, name)
    return parameter
