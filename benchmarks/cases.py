"""What the cases of all ops share: shapes of visual tokens, dtypes and how they are written."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
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
