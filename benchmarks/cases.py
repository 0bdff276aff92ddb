"""The cases of every op, on CPU and GPU alike: their shapes, how they are written, and their work.

What the benchmarks of a device add is the inputs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from machine import Counted
from torch import Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BYTES = {"float32": 4, "bfloat16": 2}
INDEX_BYTES = 8
# B, N, D: LLaVA-1.5 and a batch of it, LLaVA-NeXT, and four images of Qwen2.5-VL.
TOKENS = ((1, 576, 1024), (8, 576, 1024), (1, 2880, 1024), (4, 2048, 3584))


@dataclass(frozen=True)
class TokenCase:
    """A case with visual tokens [B, N, D]."""

    batch: int
    num_tokens: int
    dim: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.batch}x{self.num_tokens}x{self.dim} {self.dtype}"

    @property
    def element_bytes(self) -> int:
        return BYTES[self.dtype]

    def shape(self) -> dict[str, Any]:
        return asdict(self)

    def randn(self, *shape: int, seed: int = 0) -> Tensor:
        """float32; all of a case's tensors of one shape are alike unless the seeds differ."""
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def token_cases(case: Any, **more: Any) -> list[Any]:
    """One of ``case`` for every shape of tokens and dtype."""
    return [case(*shape, dtype, **more) for shape in TOKENS for dtype in DTYPES]


@dataclass(frozen=True)
class FuseCase(TokenCase):
    layers: int = 4
    normalize: str = ""
    categories: bool = False

    def __str__(self) -> str:
        mixture = " categories" if self.categories else ""
        normalized = f" {self.normalize}" if self.normalize else ""
        return f"{super().__str__()} L{self.layers}{mixture}{normalized}"

    def counted(self) -> Counted:
        """Layers of weight 0 are not counted; the norms are one multiply-add an element."""
        read = self.layers // 2 if self.categories else self.layers
        elements = self.batch * self.num_tokens * self.dim
        multiply_adds = elements * read * (2 if self.normalize else 1)
        return Counted(elements * (read + 1) * self.element_bytes, multiply_adds, self.dtype)


@dataclass(frozen=True)
class SalienceCase:
    batch: int
    query_heads: int
    key_heads: int
    rows: int
    keys: int
    width: int
    dtype: str
    causal: bool
    key_range: tuple[int, int]

    def __str__(self) -> str:
        heads = f"H{self.query_heads}/{self.key_heads} d{self.width}"
        return f"B{self.batch} T{self.rows} S{self.keys} {self.dtype} {heads}"

    def shape(self) -> dict[str, Any]:
        return asdict(self)

    def counted(self) -> Counted:
        """Every logit that the mask allows, d multiply-adds each."""
        heads = self.query_heads * self.rows + self.key_heads * self.keys
        read = self.batch * heads * self.width * BYTES[self.dtype]
        written = self.batch * (self.key_range[1] - self.key_range[0]) * 4
        logits = self.rows * self.keys
        if self.causal:
            logits -= self.rows * (self.rows - 1) // 2
        multiply_adds = self.batch * self.query_heads * logits * self.width
        return Counted(read + written, multiply_adds, self.dtype)


@dataclass(frozen=True)
class PivotCase:
    batch: int
    num_tokens: int
    k: int
    dtype: str = "float32"

    def __str__(self) -> str:
        return f"{self.batch}x{self.num_tokens} {self.dtype} k{self.k}"

    def shape(self) -> dict[str, Any]:
        return asdict(self)

    def counted(self) -> Counted:
        """No multiply-adds; comparisons are not counted."""
        moved = self.batch * (self.num_tokens * BYTES[self.dtype] + self.k * INDEX_BYTES)
        return Counted(moved, 0, self.dtype)


@dataclass(frozen=True)
class SelectCase(TokenCase):
    budget: int
    num_pivots: int
    features: str = "random"

    def __str__(self) -> str:
        return f"{super().__str__()} R{self.budget} P{self.num_pivots} {self.features}"

    def counted(self) -> Counted:
        """Features and salience are read once. The similarities that no evaluation can do without,
        however lazy: of each completion token to all that were selected before it, as its
        coverage must be known, of each token that is never selected to one selected token, as
        that alone can show it is covered, and the norms."""
        steps = self.budget - self.num_pivots
        similarities = (
            steps * self.num_pivots
            + steps * (steps - 1) // 2
            + (self.num_tokens - self.budget)
            + self.num_tokens
        )
        read = self.num_tokens * (self.dim * self.element_bytes + BYTES["float32"])
        moved = read + self.budget * (INDEX_BYTES + 1)
        return Counted(self.batch * moved, self.batch * similarities * self.dim, self.dtype)


@dataclass(frozen=True)
class GatherCase(TokenCase):
    @property
    def num_kept(self) -> int:
        return self.num_tokens // 9

    def __str__(self) -> str:
        return f"{super().__str__()} R{self.num_kept}"

    def counted(self) -> Counted:
        """Kept tokens are read and written; nothing is multiplied."""
        kept = self.batch * self.num_kept
        return Counted(kept * (2 * self.dim * self.element_bytes + INDEX_BYTES), 0, self.dtype)


@dataclass(frozen=True)
class MergeCase(GatherCase):
    """The tokens are merged by their own similarity."""

    def counted(self) -> Counted:
        """All tokens are read and the kept ones written; every dropped token's product with every
        kept one, the norms of the kept ones and the sums are multiply-adds."""
        kept = self.batch * self.num_kept
        tokens = self.batch * self.num_tokens
        moved = (tokens + kept) * self.dim * self.element_bytes + kept * INDEX_BYTES
        products = (tokens - kept) * self.num_kept + kept + tokens
        return Counted(moved, products * self.dim, self.dtype)
