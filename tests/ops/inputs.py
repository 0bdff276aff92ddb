"""Inputs for the op tests: random, clustered, and with similarities that are exact in float32."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from clasp_kernels.triton import INTERPRETED

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Norms are integers, so a cosine is one correctly rounded quotient of small integers: the same in
# every backend, whatever the order of summation. The zero vector belongs to the family.
EXACT_ROWS = [
    [0, 0, 0, 0],
    [1, 0, 0, 0],
    [3, 4, 0, 0],
    [1, 2, 2, 0],
    [2, 3, 6, 0],
    [1, 1, 1, 1],
    [1, 1, 3, 5],
    [2, 4, 5, 6],
]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def exact_features(seed: int, batch: int, tokens: int) -> Tensor:
    """[batch, tokens, 4] with exact cosines, full of ties and duplicates."""
    random = generator(seed)
    rows = torch.tensor(EXACT_ROWS, dtype=torch.float32)
    features = rows[torch.randint(len(rows), (batch, tokens), generator=random)]
    order = torch.rand(features.shape, generator=random).argsort(-1)
    signs = 1.0 - 2.0 * torch.randint(2, features.shape, generator=random)
    scale = torch.randint(1, 4, (batch, tokens, 1), generator=random)
    return features.gather(-1, order) * signs * scale


# Of rows with norm 1 or 2, so that cosines are multiples of 1/2: a sum of a few of them is exact.
DYADIC_ROWS = [[0, 0, 0, 0], [1, 0, 0, 0], [2, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]


def dyadic_features(seed: int, batch: int, tokens: int) -> Tensor:
    """[batch, tokens, 4], as exact_features(), but sums of similarities are exact too."""
    random = generator(seed)
    rows = torch.tensor(DYADIC_ROWS, dtype=torch.float32)
    features = rows[torch.randint(len(rows), (batch, tokens), generator=random)]
    order = torch.rand(features.shape, generator=random).argsort(-1)
    signs = 1.0 - 2.0 * torch.randint(2, features.shape, generator=random)
    return features.gather(-1, order) * signs


def exact_weights(seed: int, batch: int, tokens: int) -> Tensor:
    """[batch, tokens] small integers, and values that count as 0; few, so that ties are common."""
    values = torch.tensor([0.0, 1.0, 1.0, 2.0, 3.0, -1.0, float("nan"), -0.0, 1e-20])
    random = generator(seed + 1)
    weights = values[torch.randint(len(values), (batch, tokens), generator=random)]
    if seed % 4 == 0:
        weights[:1] = 2.0
    return weights


def random_features(seed: int, batch: int, tokens: int, width: int, dtype: torch.dtype) -> Tensor:
    """[batch, tokens, width]: noise, clusters, duplicates and zero vectors, by seed."""
    random = generator(seed)
    features = torch.randn(batch, tokens, width, generator=random)
    if seed % 3 == 1 and tokens:  # tight clusters
        centre = torch.randint(max(1, tokens // 4), (tokens,), generator=random)
        features = features[:, centre] + 0.05 * features
    if seed % 3 == 2 and tokens > 2:
        features[:, tokens // 2] = features[:, 0]
        features[:, -1] = 0
    return features.to(dtype)


def random_mask(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator(seed)) < 0.7


def dtypes_for(backend: str, seed: int) -> tuple[torch.dtype, ...]:
    """All dtypes; for the interpreter, which is slow, one that the seed chooses."""
    return (DTYPES[seed % 3],) if backend == "triton" and INTERPRETED else DTYPES


seeds = st.integers(0, 2**31)
dtypes = st.sampled_from(DTYPES)
masks = st.sampled_from(["all", "some", "none"])


def draw_mask(kind: str, seed: int, *shape: int) -> Tensor | None:
    """``kind`` as drawn from ``masks``: no mask, a random one, or one that excludes everything."""
    if kind == "all":
        return None
    return random_mask(seed, *shape) if kind == "some" else torch.zeros(*shape, dtype=torch.bool)


@dataclass
class Call:
    """An op with valid arguments for a batch of three images; all are passed by name."""

    op: str
    arguments: dict[str, Any]
    per_image: tuple[str, ...] = field(default=())
    """The arguments whose first dimension, or in lists of tensors whose items' is the batch."""

    def take(self, images: list[int]) -> dict[str, Any]:
        """The arguments for some of the images, in fresh memory."""
        taken = dict(self.arguments)
        for name in self.per_image:
            value = taken[name]
            if isinstance(value, Tensor):
                taken[name] = value[images]
            elif isinstance(value[0], Tensor):
                taken[name] = [item[images] for item in value]
            else:
                taken[name] = [value[image] for image in images]
        return taken


def calls(dtype: torch.dtype = torch.float32) -> dict[str, Call]:
    """One full call per op: B = 3, N = 13, per-image counts and masks wherever they exist."""
    features = random_features(4, 3, 13, 7, dtype)
    other = random_features(5, 3, 13, 5, dtype)
    salience = torch.rand(3, 13, generator=generator(6)).to(dtype)
    valid = random_mask(7, 3, 13)
    selected = torch.tensor([[1, 5, -1], [0, 12, 3], [-1, -1, -1]])
    relevance = torch.rand(3, 13, generator=generator(11))
    weights = torch.tensor([[0.5, 0.25, 0.25], [0.0, 1.0, 0.5]])
    # Odd sizes: where an image starts in memory then differs from image to image in alignment.
    query = torch.randn(3, 4, 3, 19, generator=generator(8)).to(dtype)
    key = torch.randn(3, 2, 9, 19, generator=generator(9)).to(dtype)
    rows = [
        Call(
            "fuse_layers",
            {
                "hidden_states": [features, 2 * features, -features],
                "weights": weights,
                "category_ids": torch.tensor([1, 0, 1]),
                "normalize": "rms",
            },
            ("hidden_states", "category_ids"),
        ),
        Call(
            "attention_salience",
            {
                "query": query,
                "key": key,
                "causal": True,
                "key_valid": random_mask(10, 3, 9),
                "query_weights": torch.tensor([[1.0, 0.0, 2.0], [1.0, 1.0, 1.0], [0.0, 0.0, 3.0]]),
                "key_range": (2, 8),
            },
            ("query", "key", "key_valid", "query_weights"),
        ),
        Call(
            "select_pivots",
            {"salience": salience, "k": [4, 0, 6], "valid": valid},
            ("salience", "k", "valid"),
        ),
        Call(
            "complete_tokens",
            {
                "features": features,
                "selected": selected,
                "num_tokens": 5,
                "weights": relevance,
                "valid": valid,
            },
            ("features", "selected", "weights", "valid"),
        ),
        Call(
            "cover_tokens",
            {
                "features": features,
                "selected": selected,
                "num_tokens": [4, 5, 0],
                "weights": relevance,
                "preference": relevance.flip(1),
                "valid": valid,
            },
            ("features", "selected", "num_tokens", "weights", "preference", "valid"),
        ),
        Call(
            "select_tokens",
            {
                "features": features,
                "salience": salience,
                "budget": [6, 2, 5],
                "pivot_counts": [3, 4, 1],
                "weights": relevance,
                "valid": valid,
            },
            ("features", "salience", "budget", "pivot_counts", "weights", "valid"),
        ),
        Call(
            "gather_tokens",
            {"tokens": features, "indices": selected},
            ("tokens", "indices"),
        ),
        Call(
            "merge_tokens",
            {"tokens": features, "features": other, "indices": selected, "valid": valid},
            ("tokens", "features", "indices", "valid"),
        ),
    ]
    return {call.op: call for call in rows}


def plain_calls() -> dict[str, Call]:
    """One call per op with every optional argument left out and one count for all images."""
    features = random_features(4, 2, 6, 3, torch.float32)
    salience = torch.rand(2, 6, generator=generator(6))
    indices = torch.tensor([[0, 3], [5, 1]])
    heads = torch.randn(2, 2, 6, 3, generator=generator(8))
    rows = [
        Call("fuse_layers", {"hidden_states": [features], "weights": torch.ones(1)}),
        Call("attention_salience", {"query": heads, "key": heads}),
        Call("select_pivots", {"salience": salience, "k": 2}),
        Call("complete_tokens", {"features": features, "selected": indices, "num_tokens": 2}),
        Call("cover_tokens", {"features": features, "selected": indices, "num_tokens": 2}),
        Call(
            "select_tokens",
            {"features": features, "salience": salience, "budget": 3, "pivot_counts": 2},
        ),
        Call("gather_tokens", {"tokens": features, "indices": indices}),
        Call("merge_tokens", {"tokens": features, "features": features, "indices": indices}),
    ]
    return {call.op: call for call in rows}
