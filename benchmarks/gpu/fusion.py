"""fuse_layers of 4 and of 24 layers against eager torch, torch.compile and a copy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import cases
import eager_fuse_layers
import torch
from cases import DTYPES
from timing import close
from torch import Tensor

from clasp_kernels import fuse_layers

from .implementation import Implementation, Inputs, Maker, compiled, copy_of, eager

# Every category leaves out half of the layers, as mixtures from shallow to deep do.
CATEGORIES = 3


@dataclass(frozen=True)
class FuseCase(cases.FuseCase):
    priority: int = 2
    compiles: bool = False

    op = "fuse_layers"

    def small(self) -> FuseCase:
        return replace(self, batch=min(self.batch, 2), num_tokens=5, dim=16, layers=4)

    def inputs(self, device: str, seed: int) -> Inputs:
        make, dtype = Maker(device, seed), DTYPES[self.dtype]
        size = (self.batch, self.num_tokens, self.dim)
        layers = [make.randn(*size, dtype=dtype) for _ in range(self.layers)]
        weights = make.randn(CATEGORIES if self.categories else 1, self.layers).softmax(-1)
        ids = None
        if self.categories:
            for category in range(CATEGORIES):
                weights[category, category % 2 :: 2] = 0
            ids = torch.arange(self.batch, device=device) % CATEGORIES
        return layers, weights, ids, self.normalize

    def ours(self, layers: list[Tensor], weights: Tensor, ids: Any, normalize: str) -> Tensor:
        weights = weights[0] if ids is None else weights
        return fuse_layers(layers, weights, ids, normalize=normalize or None)

    def agree(self, inputs: Inputs, ours: Tensor, theirs: Tensor) -> bool:
        return close(ours, theirs, 1e-4 if self.dtype == "float32" else 5e-2)

    def implementations(self) -> list[Implementation]:
        baselines = dict(eager_fuse_layers.EAGER)
        if self.dtype == "float32":
            del baselines["eager-loop-native"]  # the same as eager-loop
        others = []
        for one in eager(baselines):
            reads = one.name == "eager-loop-images" or (
                "loop" in one.name and not (self.categories or self.normalize)
            )
            others.append(replace(one, adapt=weights_on_the_host) if reads else one)
        if self.compiles:
            others.insert(0, compiled("compiled", eager_fuse_layers.expression))
        return [copy_of(self.counted()), *others]


def weights_on_the_host(inputs: Inputs) -> Inputs:
    """For those that use them as numbers: reading them off the device would take most of the time,
    and whoever writes such a loop has them on the host."""
    layers, weights, ids, normalize = inputs
    return layers, weights.cpu(), None if ids is None else ids.cpu(), normalize


def fuse_cases() -> list[FuseCase]:
    bf16 = "bfloat16"
    return [
        FuseCase(64, 576, 1024, bf16, priority=0, compiles=True),
        FuseCase(1, 576, 1024, bf16, priority=0, compiles=True),
        FuseCase(8, 576, 1024, bf16, priority=1, compiles=True),
        FuseCase(64, 576, 1024, bf16, categories=True, priority=1, compiles=True),
        FuseCase(64, 576, 1024, bf16, normalize="rms", priority=1, compiles=True),
        FuseCase(8, 2880, 3584, bf16, priority=1),
        FuseCase(8, 576, 1024, bf16, layers=24, priority=1),
        FuseCase(64, 576, 1024, "float32", priority=1),
        FuseCase(1, 2880, 1024, bf16),
        FuseCase(1, 2880, 3584, bf16),
        FuseCase(1, 8192, 3584, bf16),
        FuseCase(1, 576, 1024, bf16, layers=24),
        FuseCase(64, 576, 1024, bf16, layers=24),
        FuseCase(64, 2880, 1024, bf16),
        FuseCase(8, 8192, 1024, bf16),
        FuseCase(8, 2880, 3584, bf16, layers=24),
        FuseCase(8, 8192, 3584, bf16),
        FuseCase(64, 8192, 3584, bf16),
        FuseCase(64, 8192, 3584, bf16, layers=24),
        FuseCase(1, 576, 1024, "float32"),
    ]
