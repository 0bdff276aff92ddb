"""Layer fusion as one would write it without the package: every good form in eager torch we know.

All accumulate in float32 except those named "native", which stay in the layers' own dtype. That is
less exact in half precision, but what one writes first, and it moves fewer bytes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

RMS_EPSILON = 1e-6

# hidden_states L x [B, N, D], weights [C, L], category_ids [B] or None, normalize "" or "rms".
Fuse = Callable[[list[Tensor], Tensor, "Tensor | None", str], Tensor]


def _rows(weights: Tensor, category_ids: Tensor | None) -> Tensor:
    return weights[:1] if category_ids is None else weights[category_ids]  # [1 or B, L]


def _inverse_rms(states: Tensor) -> Tensor:
    """[B, N, 1]. The norm accumulates in float32 without converting the layer."""
    norm = torch.linalg.vector_norm(states, dim=-1, keepdim=True, dtype=torch.float32)
    return norm.square_().div_(states.shape[-1]).add_(RMS_EPSILON).rsqrt_()


def loop(
    hidden_states: list[Tensor], weights: Tensor, category_ids: Tensor | None, normalize: str
) -> Tensor:
    """One multiply-add over all images per layer, in place; nothing is stacked."""
    first = hidden_states[0]
    rows = _rows(weights, category_ids)
    fused = first.new_zeros(first.shape, dtype=torch.float32)
    for layer, states in enumerate(hidden_states):
        if normalize or category_ids is not None:
            scale = rows[:, layer, None, None]
            fused.addcmul_(states, scale * _inverse_rms(states) if normalize else scale)
        else:
            fused.add_(states, alpha=float(rows[0, layer]))
    return fused.to(first.dtype)


def loop_images(
    hidden_states: list[Tensor], weights: Tensor, category_ids: Tensor | None, normalize: str
) -> Tensor:
    """One multiply-add per image and layer: a weight of 0 costs nothing."""
    first = hidden_states[0]
    rows = _rows(weights, category_ids).expand(first.shape[0], -1).tolist()
    fused = torch.empty_like(first)
    for image, row in enumerate(rows):
        total = first.new_zeros(first.shape[1:], dtype=torch.float32)
        for states, weight in zip(hidden_states, row, strict=True):
            if weight == 0:
                continue
            if normalize:
                total.addcmul_(states[image], _inverse_rms(states[image]).mul_(weight))
            else:
                total.add_(states[image], alpha=weight)
        fused[image] = total
    return fused


def loop_native(
    hidden_states: list[Tensor], weights: Tensor, category_ids: Tensor | None, normalize: str
) -> Tensor:
    """As ``loop``, in the layers' dtype."""
    rows = _rows(weights, category_ids)
    fused: Tensor | None = None
    for layer, states in enumerate(hidden_states):
        scale = rows[:, layer, None, None]
        if normalize:
            scale = scale * _inverse_rms(states)
        if normalize or category_ids is not None:
            scale = scale.to(states.dtype)
            fused = states * scale if fused is None else fused.addcmul_(states, scale)
        else:
            weight = float(rows[0, layer])
            fused = states * weight if fused is None else fused.add_(states, alpha=weight)
    assert fused is not None
    return fused


def stack_matmul(
    hidden_states: list[Tensor], weights: Tensor, category_ids: Tensor | None, normalize: str
) -> Tensor:
    """One small matrix product: [1, L] by [L, N D], for every image with its own weights."""
    first = hidden_states[0]
    rows = _rows(weights, category_ids)
    if normalize:
        hidden_states = [states * _inverse_rms(states) for states in hidden_states]
    if category_ids is None:
        stacked = torch.stack(hidden_states).float()
        return (rows @ stacked.flatten(1)).view(first.shape).to(first.dtype)
    stacked = torch.stack(hidden_states, 1).float()  # [B, L, N, D]
    return torch.bmm(rows[:, None], stacked.flatten(2)).view(first.shape).to(first.dtype)


def stack_einsum(
    hidden_states: list[Tensor], weights: Tensor, category_ids: Tensor | None, normalize: str
) -> Tensor:
    first = hidden_states[0]
    rows = _rows(weights, category_ids).expand(first.shape[0], -1)
    if normalize:
        hidden_states = [states * _inverse_rms(states) for states in hidden_states]
    stacked = torch.stack(hidden_states).float()
    return torch.einsum("bl,lbnd->bnd", rows, stacked).to(first.dtype)


def expression(
    hidden_states: list[Tensor], weights: Tensor, category_ids: Tensor | None, normalize: str
) -> Tensor:
    """The formula, for ``torch.compile`` to make one pass of."""
    rows = _rows(weights, category_ids)
    fused = hidden_states[0].new_zeros((), dtype=torch.float32)
    for layer, states in enumerate(hidden_states):
        wide = states.float()
        if normalize:
            wide = wide * (wide.square().mean(-1, keepdim=True) + RMS_EPSILON).rsqrt()
        fused = fused + rows[:, layer, None, None] * wide
    return fused.to(hidden_states[0].dtype)


EAGER: dict[str, Fuse] = {
    "eager-loop": loop,
    "eager-loop-images": loop_images,
    "eager-loop-native": loop_native,
    "eager-matmul": stack_matmul,
    "eager-einsum": stack_einsum,
}
