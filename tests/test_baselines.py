"""What the ops are compared with computes them, or is the method that it is named for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ops import attention_salience as saliences
from ops import complete_tokens as completions
from ops import fuse_layers as fusions
from ops import gather_tokens as gathers
from ops import merge_tokens as merges
from ops import select_pivots as pivots
from ops import select_tokens as selections
from torch import Tensor

from clasp_kernels import (
    attention_salience,
    complete_tokens,
    fuse_layers,
    gather_tokens,
    merge_tokens,
    select_pivots,
    select_tokens,
    use_backend,
)

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_name(functions: dict[str, Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("function", functions.values(), ids=functions.keys())


@pytest.fixture(autouse=True)
def reference() -> Any:
    with use_backend("reference"):
        yield


# Baselines that claim to compute the same.


@DTYPES
@pytest.mark.parametrize("normalize", ["", "rms"])
@pytest.mark.parametrize("categories", [False, True])
@by_name(fusions.EAGER | {"compiled": fusions.expression})
def test_fusions_agree(function: Any, categories: bool, normalize: str, dtype: Any) -> None:
    layers = [randn(3, 5, 8, seed=seed).to(dtype) for seed in range(3)]
    weights = torch.tensor([[0.5, 0.3, 0.2], [0.0, 1.5, 0.0]])
    ids = torch.tensor([1, 0, 1]) if categories else None
    expected = fuse_layers(
        layers, weights if categories else weights[0], ids, normalize=normalize or None
    )
    fused = function(layers, weights, ids, normalize)
    assert fused.dtype == dtype
    torch.testing.assert_close(
        fused, expected, atol=1e-5 if dtype == torch.float32 else 4e-2, rtol=0
    )


@DTYPES
@pytest.mark.parametrize("causal", [False, True])
@by_name(saliences.EAGER | saliences.EAGER_NATIVE | {"compiled": saliences.expression})
def test_saliences_agree(function: Any, causal: bool, dtype: Any) -> None:
    query, key = randn(2, 6, 4, 16).to(dtype), randn(2, 3, 9, 16, seed=1).to(dtype)
    expected = attention_salience(query, key, causal=causal, key_range=(1, 8))
    salience = function(query, key, causal, (1, 8))
    assert salience.dtype == torch.float32
    tolerance = 1e-5 if dtype == torch.float32 else 3e-3
    torch.testing.assert_close(salience, expected, atol=tolerance, rtol=0)


@by_name(pivots.EAGER)
def test_pivots_agree(function: Any) -> None:
    salience = randn(3, 40)
    assert torch.equal(function(salience, 7), select_pivots(salience, 7))


@by_name(completions.EAGER | {"eager-gram-native": completions.gram_native})
def test_completions_agree(function: Any) -> None:
    features, salience = randn(3, 40, 16), randn(3, 40, seed=1)
    selected = salience.topk(4).indices
    assert torch.equal(function(features, selected, 9), complete_tokens(features, selected, 9))
    kept = selections.select(features, salience, 13, 4, function)
    assert torch.equal(kept, select_tokens(features, salience, 13, 4).indices)


@pytest.mark.parametrize("native", [False, True])
def test_the_steps_that_are_compiled_agree(native: bool, monkeypatch: Any) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # that takes seconds
    features = randn(3, 40, 16).to(torch.bfloat16)
    selected = randn(3, 40, seed=1).topk(4).indices
    complete = completions.compiled.__wrapped__(4, native)
    assert torch.equal(complete(features, selected, 9), complete_tokens(features, selected, 9))


@by_name(gathers.EAGER)
def test_gathers_agree(function: Any) -> None:
    tokens, indices = randn(3, 12, 5), randn(3, 12, seed=1).argsort(-1)[:, :4]
    assert torch.equal(function(tokens, indices), gather_tokens(tokens, indices))


@by_name(merges.EAGER)
def test_merges_agree(function: Any) -> None:
    tokens, features = randn(3, 30, 5), randn(3, 30, 8, seed=1)
    indices = randn(3, 30, seed=2).argsort(-1)[:, :4]
    merged = function(tokens, features, indices)
    torch.testing.assert_close(merged, merge_tokens(tokens, features, indices))


# Peers.


@by_name(selections.PEERS)
def test_peers_keep_distinct_tokens(function: Any) -> None:
    kept = function(randn(3, 50, 16), randn(3, 50, seed=1), 12, 5)
    assert kept.shape == (3, 12)
    assert kept.min() >= 0 and kept.max() < 50
    assert (kept[:, 1:] > kept[:, :-1]).all()


@pytest.mark.parametrize("name", ["vispruner", "visionzip"])
def test_peers_that_keep_the_salient_tokens_do(name: str) -> None:
    salience = randn(2, 50, seed=1)
    kept = selections.PEERS[name](randn(2, 50, 16), salience, 12, 5)
    for image in range(2):
        assert set(salience[image].topk(5).indices.tolist()) <= set(kept[image].tolist())


def greedy_determinant(kernel: Tensor, count: int) -> list[int]:
    """CDPruner's choice by its definition, a determinant for every candidate."""
    picks: list[int] = []
    for _ in range(count):
        rest = [n for n in range(len(kernel)) if n not in picks]
        gains = [kernel[[*picks, n]][:, [*picks, n]].double().det() for n in rest]
        picks.append(rest[int(torch.stack(gains).argmax())])
    return sorted(picks)


def test_cdpruner_maximises_the_determinant() -> None:
    features, salience = randn(1, 14, 16), randn(1, 14, seed=1)
    unit = torch.nn.functional.normalize(features[0], dim=-1)
    low, high = salience[0].aminmax()
    relevance = (salience[0] - low) / (high - low) + 1e-6
    kernel = relevance[:, None] * (unit @ unit.T) * relevance
    kept = selections.cdpruner(features, salience, 5, 2)[0].tolist()
    assert kept == greedy_determinant(kernel, 5)


def test_divprune_takes_the_farthest() -> None:
    """Three directions with near copies: one of each."""
    features = torch.eye(3).repeat_interleave(4, 0) + 0.01 * randn(12, 3)
    kept = selections.divprune(features[None], torch.zeros(1, 12), 3, 1)[0]
    assert (kept // 4).tolist() == [0, 1, 2]


def test_vispruner_removes_duplicates() -> None:
    features = torch.eye(8).repeat_interleave(2, 0)[None]  # 16 tokens, each twice
    kept = selections.vispruner(features, -torch.arange(16.0)[None], 9, 1)[0]
    assert len(set((kept[kept > 0] // 2).tolist())) == 8


def test_visionzip_averages_what_it_drops() -> None:
    tokens = torch.tensor([[[4.0, 0], [1, 0], [3, 0], [0, 1], [0, 3]]])
    merged = merges.visionzip_merge(tokens, torch.tensor([[0, 1, 3]]))
    # One of three is dominant; 2 joins 1, and 4 joins 3.
    assert torch.equal(merged, torch.tensor([[[4.0, 0], [2, 0], [0, 2]]]))
