"""gather_tokens of N / 9 tokens. No index is -1 here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from case import (
    DTYPES,
    INDEX_BYTES,
    Benchmark,
    Implementation,
    Inputs,
    Maker,
    TokenCase,
    compiled,
    eager,
    memcpy,
    token_cases,
)
from machine import Counted
from torch import Tensor

from clasp_kernels import gather_tokens

Gather = Callable[[Tensor, Tensor], Tensor]  # tokens [B, N, D], indices [B, R] -> [B, R, D]


def gather_expanded(tokens: Tensor, indices: Tensor) -> Tensor:
    return tokens.gather(1, indices[..., None].expand(-1, -1, tokens.shape[2]))


def gather_indexed(tokens: Tensor, indices: Tensor) -> Tensor:
    return tokens[torch.arange(tokens.shape[0], device=tokens.device)[:, None], indices]


def gather_flat(tokens: Tensor, indices: Tensor) -> Tensor:
    """One index_select over all images' tokens in a row."""
    flat = (indices + _first_rows(tokens)).view(-1)
    return tokens.flatten(0, 1).index_select(0, flat).view(*indices.shape, -1)


def gather_per_image(tokens: Tensor, indices: Tensor) -> Tensor:
    gathered = tokens.new_empty(*indices.shape, tokens.shape[2])
    for image in range(tokens.shape[0]):
        torch.index_select(tokens[image], 0, indices[image], out=gathered[image])
    return gathered


def _first_rows(tokens: Tensor) -> Tensor:
    """[B, 1]: where each image starts when all tokens are in a row."""
    return torch.arange(tokens.shape[0], device=tokens.device)[:, None] * tokens.shape[1]


EAGER: dict[str, Gather] = {
    "eager-gather": gather_expanded,
    "eager-index": gather_indexed,
    "eager-index-select": gather_flat,
    "eager-index-select-images": gather_per_image,
}


@dataclass(frozen=True)
class KeepingCase(TokenCase):
    """A case of keeping N / 9 tokens."""

    @property
    def num_kept(self) -> int:
        return self.num_tokens // 9

    def __str__(self) -> str:
        return f"{super().__str__()} R{self.num_kept}"

    def small(self) -> KeepingCase:
        return replace(self, batch=min(self.batch, 2), num_tokens=27, dim=16)

    def inputs(self, device: str, seed: int) -> Inputs:
        make = Maker(device, seed)
        size = (self.batch, self.num_tokens)
        tokens = make.randn(*size, self.dim, dtype=DTYPES[self.dtype])
        return tokens, make.randn(*size).argsort(-1)[:, : self.num_kept].sort(-1).values


@dataclass(frozen=True)
class Case(KeepingCase):
    op = "gather_tokens"

    def counted(self) -> Counted:
        """Kept tokens are read and written; nothing is multiplied."""
        kept = self.batch * self.num_kept
        return Counted(kept * (2 * self.dim * self.element_bytes + INDEX_BYTES), 0, self.dtype)

    def ours(self, tokens: Tensor, indices: Tensor) -> Tensor:
        return gather_tokens(tokens, indices)

    def agree(self, inputs: Inputs, ours: Tensor, theirs: Tensor) -> bool:
        return torch.equal(ours, theirs)

    def baselines(self, gpu: bool) -> list[Implementation]:
        functions = dict(EAGER)
        if self.batch > 8:
            del functions["eager-index-select-images"]  # B launches where others have one
        wanted = self.compiles or not gpu
        return [
            memcpy(self.counted()),
            *eager(functions),
            *([compiled("compiled", gather_indexed)] if wanted else []),
        ]


BENCHMARK = Benchmark(
    cpu=token_cases(Case),
    gpu=[
        Case(64, 576, 1024, "bfloat16", priority=0, compiles=True),
        Case(1, 576, 1024, "bfloat16", priority=1),
        Case(8, 2880, 3584, "bfloat16", priority=1),
        Case(8, 576, 1024, "bfloat16"),
        Case(64, 2880, 1024, "bfloat16"),
        Case(8, 8192, 3584, "bfloat16"),
        Case(64, 576, 1024, "float32"),
    ],
    telling=("8x576x1024 bfloat16 R64", "4x2048x3584 bfloat16 R227"),
)
