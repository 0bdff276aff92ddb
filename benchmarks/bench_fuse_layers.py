"""fuse_layers of four layers, against eager torch, torch.compile and a memcpy of as many bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import eager_fuse_layers
import pytest
from cases import DTYPES, FuseCase, token_cases
from timing import Implementation, close, eager, memcpy, ours, pairs, to_compile
from torch import Tensor, tensor

from clasp_kernels import fuse_layers

# Every category leaves out half of the layers, as mixtures from shallow to deep do.
CATEGORY_WEIGHTS = [[0.5, 0.5, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0], [0.0, 0.0, 0.3, 0.7]]
WEIGHTS = [[0.1, 0.2, 0.3, 0.4]]


@dataclass(frozen=True)
class Case(FuseCase):
    def inputs(self) -> tuple[list[Tensor], Tensor, Tensor | None, str]:
        size = (self.batch, self.num_tokens, self.dim)
        layers = [self.randn(*size, seed=i).to(DTYPES[self.dtype]) for i in range(self.layers)]
        if not self.categories:
            return layers, tensor(WEIGHTS), None, self.normalize
        ids = tensor([image % len(CATEGORY_WEIGHTS) for image in range(self.batch)])
        return layers, tensor(CATEGORY_WEIGHTS), ids, self.normalize


CASES = [
    *token_cases(Case),
    *(Case(8, 576, 1024, dtype, normalize="rms") for dtype in DTYPES),
    *(Case(8, 576, 1024, dtype, categories=True) for dtype in DTYPES),
]


def our_fuse(layers: list[Tensor], weights: Tensor, ids: Tensor | None, normalize: str) -> Tensor:
    weights = weights[0] if ids is None else weights
    return fuse_layers(layers, weights, ids, normalize=normalize or None)


def implementations(case: Case) -> list[Implementation]:
    baselines = dict(eager_fuse_layers.EAGER)
    if case.dtype == "float32":
        del baselines["eager-loop-native"]  # the same as eager-loop
    return [
        ours(our_fuse),
        memcpy(),
        *to_compile({"compiled": eager_fuse_layers.expression}),
        *eager(baselines),
    ]


@pytest.mark.parametrize(("case", "implementation"), pairs(CASES, implementations))
def bench_fuse_layers(
    case: Case, implementation: Implementation, measure: Callable[..., None]
) -> None:
    tolerance = 1e-4 if case.dtype == "float32" else 5e-2
    measure("fuse_layers", case, implementation, our_fuse, lambda a, b: close(a, b, tolerance))
