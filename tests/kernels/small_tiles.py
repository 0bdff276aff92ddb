"""Tiles so small that a few tokens fill several of them, for the kernels of greedy selection."""

from __future__ import annotations

import pytest
from torch import Tensor

from clasp_kernels.triton import configs
from clasp_kernels.triton.configs import Completion, RowBlocks


def small(wave: int) -> Completion:
    """Tiles of 16 tokens and 16 features."""
    return Completion(rows=16, columns=16, padded=0, wave=wave, num_warps=1, num_stages=2)


def use(monkeypatch: pytest.MonkeyPatch, tiles: Completion) -> None:
    """Has the launchers take ``tiles``, and blocks of 16 tokens everywhere else."""

    def config(num_tokens: int, dim: int, element_bytes: int) -> Completion:
        return tiles._replace(padded=-(-num_tokens // 16) * 16)

    monkeypatch.setattr(configs, "completion", config)
    monkeypatch.setattr(configs, "SELECTION_BLOCK", 16)
    monkeypatch.setattr(configs, "WEIGHTS_BLOCK", 16)
    for name in ("completion_tokens", "completion_step"):
        monkeypatch.setattr(configs, name, lambda dim, element_bytes: RowBlocks(16, 16, 1))
    # More columns than rows, and not a divisor of the tokens.
    monkeypatch.setattr(configs, "covering_step", lambda *_: RowBlocks(16, 32, 1))


def apart(values: Tensor) -> Tensor:
    """Twice as far apart in every dimension."""
    for dimension in range(values.dim()):
        values = values.repeat_interleave(2, dimension)
    return values[tuple(slice(None, None, 2) for _ in range(values.dim()))]
