"""fuse_layers of 4 and of 24 layers, by every good form in eager torch we know.

All accumulate in float32 except those named "native", which stay in the layers' own dtype. That is
less exact in half precision, but what one writes first, and it moves fewer bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from case import (
    DTYPES,
    Benchmark,
    Implementation,
    Inputs,
    Maker,
    Memory,
    TokenCase,
    compiled,
    eager,
    memcpy,
    token_cases,
)
from machine import Counted
from timing import close
from torch import Tensor

from clasp_kernels import fuse_layers

CATEGORIES = 3
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


def weights_on_the_host(inputs: Inputs) -> Inputs:
    """For those that use them as numbers: reading them off a GPU would take most of the time, and
    whoever writes such a loop has them on the host."""
    layers, weights, ids, normalize = inputs
    return layers, weights.cpu(), None if ids is None else ids.cpu(), normalize


@dataclass(frozen=True)
class Case(TokenCase):
    layers: int = 4
    normalize: str = ""
    categories: bool = False

    op = "fuse_layers"

    def __str__(self) -> str:
        mixture = " categories" if self.categories else ""
        normalized = f" {self.normalize}" if self.normalize else ""
        return f"{super().__str__()} L{self.layers}{mixture}{normalized}"

    def small(self) -> Case:
        return replace(self, batch=min(self.batch, 2), num_tokens=5, dim=16, layers=4)

    def inputs(self, device: str, seed: int) -> Inputs:
        make, dtype = Maker(device, seed), DTYPES[self.dtype]
        size = (self.batch, self.num_tokens, self.dim)
        layers = [make.randn(*size, dtype=dtype) for _ in range(self.layers)]
        weights = make.randn(CATEGORIES if self.categories else 1, self.layers).softmax(-1)
        ids = None
        if self.categories:
            # Every category leaves out half of the layers, as mixtures from shallow to deep do.
            for category in range(CATEGORIES):
                weights[category, category % 2 :: 2] = 0
            ids = torch.arange(self.batch, device=device) % CATEGORIES
        return layers, weights, ids, self.normalize

    def counted(self) -> Counted:
        """Layers of weight 0 are not counted; the norms are one multiply-add an element."""
        read = self.layers // 2 if self.categories else self.layers
        elements = self.batch * self.num_tokens * self.dim
        multiply_adds = elements * read * (2 if self.normalize else 1)
        return Counted(elements * (read + 1) * self.element_bytes, multiply_adds, self.dtype)

    def ours(
        self, layers: list[Tensor], weights: Tensor, ids: Tensor | None, normalize: str
    ) -> Tensor:
        weights = weights[0] if ids is None else weights
        return fuse_layers(layers, weights, ids, normalize=normalize or None)

    def agree(self, inputs: Inputs, ours: Tensor, theirs: Tensor) -> bool:
        return close(ours, theirs, 1e-4 if self.dtype == "float32" else 5e-2)

    def baselines(self, gpu: bool) -> list[Implementation]:
        functions = dict(EAGER)
        if self.dtype == "float32":
            del functions["eager-loop-native"]  # the same as eager-loop
        others = []
        for one in eager(functions):
            reads = one.name == "eager-loop-images" or (
                "loop" in one.name and not (self.categories or self.normalize)
            )
            others.append(replace(one, adapt=weights_on_the_host) if reads else one)
        if self.compiles or not gpu:
            others.append(compiled("compiled", expression))
        return [memcpy(self.counted()), *others]


CPU = [
    *token_cases(Case),
    *(Case(8, 576, 1024, dtype, normalize="rms") for dtype in DTYPES),
    *(Case(8, 576, 1024, dtype, categories=True) for dtype in DTYPES),
]
BF16 = "bfloat16"
GPU = [
    Case(64, 576, 1024, BF16, priority=0, compiles=True),
    Case(1, 576, 1024, BF16, priority=0, compiles=True),
    Case(8, 576, 1024, BF16, priority=1, compiles=True),
    Case(64, 576, 1024, BF16, categories=True, priority=1, compiles=True),
    Case(64, 576, 1024, BF16, normalize="rms", priority=1, compiles=True),
    Case(8, 2880, 3584, BF16, priority=1),
    Case(8, 576, 1024, BF16, layers=24, priority=1),
    Case(64, 576, 1024, "float32", priority=1),
    Case(1, 2880, 1024, BF16),
    Case(1, 2880, 3584, BF16),
    Case(1, 8192, 3584, BF16),
    Case(1, 576, 1024, BF16, layers=24),
    Case(64, 576, 1024, BF16, layers=24),
    Case(64, 2880, 1024, BF16),
    Case(8, 8192, 1024, BF16),
    Case(8, 2880, 3584, BF16, layers=24),
    Case(8, 8192, 3584, BF16),
    Case(64, 8192, 3584, BF16),
    Case(64, 8192, 3584, BF16, layers=24),
    Case(1, 576, 1024, "float32"),
]
BENCHMARK = Benchmark(
    cpu=CPU,
    gpu=GPU,
    telling=(
        "1x576x1024 float32 L4",
        "8x576x1024 bfloat16 L4",
        "8x576x1024 bfloat16 L4 categories",
        "4x2048x3584 bfloat16 L4",
    ),
    memory=Memory([case for case in CPU if case.batch == 8]),
)
