"""The ops under ``torch.vmap``: images are independent, so mapped dimensions join the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# The mapped dimension of an argument, or None if the argument is not mapped.
Dim = int | None


def batching_rule(op: Callable[..., Any]) -> Callable[..., Any]:
    """The rule for torch.library.register_vmap of an op whose tensors all begin with the batch."""

    def rule(info: Any, in_dims: tuple[Dim, ...], *arguments: Any) -> tuple[Any, Any]:
        size = info.batch_size
        outputs = op(*(_joined(*pair, size) for pair in zip(arguments, in_dims, strict=True)))
        return _parted(outputs, size)

    return rule


def fuse_layers_rule(op: Callable[..., Any]) -> Callable[..., Any]:
    """As :func:`batching_rule`, for ``weights`` whose first dimension is the categories."""

    def rule(
        info: Any,
        in_dims: tuple[list[Dim], Dim, Dim, Dim],
        hidden_states: list[Tensor],
        weights: Tensor,
        category_ids: Tensor | None,
        normalize: str,
    ) -> tuple[Any, Any]:
        size = info.batch_size
        dims, weights_dim, ids_dim, _ = in_dims
        layers = [_joined(*pair, size) for pair in zip(hidden_states, dims, strict=True)]
        ids = _joined(category_ids, ids_dim, size)
        if weights_dim is not None:
            weights = weights.movedim(weights_dim, 0)
            num_images, num_categories = layers[0].shape[0], weights.shape[1]
            table = torch.arange(size, device=weights.device)
            table = table.repeat_interleave(num_images // max(size, 1)) * num_categories
            ids = table if ids is None else table + ids
            weights = weights.flatten(0, 1)
        return _parted(op(layers, weights, ids, normalize), size)

    return rule


def _joined(argument: Any, dim: Dim, size: int) -> Any:
    """Reshapes [V, B, ...] to [V * B, ...]."""
    if not isinstance(argument, Tensor):
        return argument
    mapped = argument.expand(size, *argument.shape) if dim is None else argument.movedim(dim, 0)
    return mapped.flatten(0, 1)


def _parted(outputs: Tensor | tuple[Tensor, ...], size: int) -> tuple[Any, Any]:
    """Reshapes [V * B, ...] to [V, B, ...]; returns it with the mapped dimension, 0."""
    if isinstance(outputs, Tensor):
        return outputs.unflatten(0, (size, outputs.shape[0] // max(size, 1))), 0
    return tuple(_parted(output, size)[0] for output in outputs), (0,) * len(outputs)
