"""Find modules and parameters inside a model."""

from __future__ import annotations

from typing import Any

import torch


def module_inside(model: Any, kind: type) -> Any:
    """Return the first module of class ``kind`` in the base model; a wrapper may be around it."""
    return next(module for module in model.base_model.modules() if isinstance(module, kind))


def require_class(model: Any, name: str) -> None:
    """
    Raises:
        TypeError: ``model`` is no instance of the class of transformers that has this name. A
            wrapper may forward attribute reads, but a patch on it would not reach the model.
    """
    import transformers

    if not isinstance(model, getattr(transformers, name)):
        article = "an" if name[0] in "AEIO" else "a"
        raise TypeError(
            f"model must be {article} {name}, got {type(model).__name__}. If the model is wrapped, "
            f"pass the inner model (model._orig_mod of torch.compile, model.get_base_model() of "
            f"PEFT), preferably before wrapping"
        )


def parameter_of(module: Any, name: str) -> torch.Tensor:
    """Return a parameter of a module with its values, even if the module is offloaded.

    A device hook loads offloaded parameters only while the module's forward runs, but pruning needs
    them before.
    """
    parameter: torch.Tensor = getattr(module, name)
    if not parameter.is_meta or not hasattr(module, "_hf_hook"):
        return parameter
    from accelerate.utils import align_module_device

    with align_module_device(module):
        parameter = getattr(module, name)
    return parameter
