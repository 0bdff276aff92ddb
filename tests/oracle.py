"""The ops in float64 and plain Python loops, written directly from their definitions.

This module shares no code with ``clasp_kernels.reference``, so that it can find errors there.
Python floats are float64, and every supported dtype converts to float64 exactly.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# How much worse than the best a greedy pick may be, by input dtype.
CERTIFICATE = {torch.float32: 1e-5, torch.bfloat16: 2e-3, torch.float16: 2e-3}


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def cosine(a: list[float], b: list[float]) -> float:
    """Return the cosine; 0 for a zero vector, +inf for any other non-finite similarity."""
    if not any(a) or not any(b):
        return 0.0
    if not all(map(math.isfinite, [*a, *b])):
        return math.inf
    return dot(a, b) / (math.sqrt(dot(a, a)) * math.sqrt(dot(b, b)))


def is_valid(valid: Tensor | None, image: int, token: int) -> bool:
    return valid is None or bool(valid[image, token])


def padded(values: list, width: int, filler: object) -> list:
    return values + [filler] * (width - len(values))


def fuse_layers(
    hidden_states: list[Tensor],
    weights: Tensor,
    category_ids: Tensor | None = None,
    normalize: str | None = None,
) -> Tensor:
    batch, tokens, width = hidden_states[0].shape
    layers = [layer.double().tolist() for layer in hidden_states]
    fused = torch.zeros(batch, tokens, width, dtype=torch.float64)
    for b in range(batch):
        row = weights if category_ids is None else weights[int(category_ids[b])]
        for n in range(tokens):
            out = [0.0] * width
            for weight, layer in zip(row.tolist(), layers, strict=True):
                if weight == 0:
                    continue
                token = layer[b][n]
                size = 1.0
                if normalize == "l2":
                    size = math.sqrt(dot(token, token)) or 1.0
                elif normalize == "rms":
                    size = math.sqrt(dot(token, token) / width + 1e-6)
                out = [sum_ + weight * x / size for sum_, x in zip(out, token, strict=True)]
            fused[b, n] = torch.tensor(out, dtype=torch.float64)
    return fused


def attention_salience(
    query: Tensor,
    key: Tensor,
    scale: float | None = None,
    causal: bool = False,
    key_valid: Tensor | None = None,
    query_weights: Tensor | None = None,
    key_range: tuple[int, int] | None = None,
) -> Tensor:
    batch, query_heads, rows, width = query.shape
    key_heads, keys = key.shape[1:3]
    start, stop = key_range or (0, keys)
    scale = width**-0.5 if scale is None else scale
    q, k = query.double().tolist(), key.double().tolist()
    salience = torch.zeros(batch, stop - start, dtype=torch.float64)
    for b in range(batch):
        weight = [1.0] * rows if query_weights is None else query_weights[b].double().tolist()
        total = sum(weight)
        for h in range(query_heads):
            head_keys = k[b][h // (query_heads // key_heads)]
            for t in range(rows):
                allowed = [
                    s
                    for s in range(keys)
                    if is_valid(key_valid, b, s) and (not causal or s <= keys - rows + t)
                ]
                if weight[t] == 0 or not allowed:
                    continue
                logits = {s: scale * dot(q[b][h][t], head_keys[s]) for s in allowed}
                most = max(logits.values())
                exponentials = {s: math.exp(logit - most) for s, logit in logits.items()}
                partition = sum(exponentials.values())
                for s in allowed:
                    if start <= s < stop:
                        share = exponentials[s] / partition * weight[t] / total / query_heads
                        salience[b, s - start] += share
    return salience


def rank(salience: Tensor, valid: Tensor | None, image: int) -> list[int]:
    """Return all valid tokens of an image, most salient first."""
    values = salience[image].double().tolist()
    tokens = [n for n in range(len(values)) if is_valid(valid, image, n)]
    return sorted(
        tokens, key=lambda n: (1, 0.0, n) if math.isnan(values[n]) else (0, -values[n], n)
    )


def select_pivots(salience: Tensor, k: int | list[int], valid: Tensor | None = None) -> Tensor:
    batch = salience.shape[0]
    counts = [k] * batch if isinstance(k, int) else k
    width = max(counts, default=0)
    rows = [padded(rank(salience, valid, b)[: counts[b]], width, -1) for b in range(batch)]
    return torch.tensor(rows, dtype=torch.int64).view(batch, width)


class Coverage:
    """Tracks covered[n], the largest cosine of token n with a selected token."""

    def __init__(self, features: list[list[float]], selected: list[int]) -> None:
        self.features = features
        self.covered = [-math.inf] * len(features)
        for token in selected:
            self.select(token)

    def select(self, token: int) -> None:
        for n, row in enumerate(self.features):
            self.covered[n] = max(self.covered[n], cosine(row, self.features[token]))


def complete_tokens(
    features: Tensor, selected: Tensor, num_tokens: int, valid: Tensor | None = None
) -> Tensor:
    rows = []
    for b in range(features.shape[0]):
        taken = [j for j in selected[b].tolist() if j >= 0]
        coverage = Coverage(features[b].double().tolist(), taken)
        left = [n for n in range(features.shape[1]) if is_valid(valid, b, n) and n not in taken]
        picks: list[int] = []
        while left and len(picks) < num_tokens:
            picks.append(min(left, key=lambda n: (coverage.covered[n], n)))
            left.remove(picks[-1])
            coverage.select(picks[-1])
        rows.append(padded(picks, num_tokens, -1))
    return torch.tensor(rows, dtype=torch.int64).view(len(rows), num_tokens)


def certify_completion(
    features: Tensor, selected: Tensor, picks: Tensor, valid: Tensor | None = None
) -> None:
    """Check in float64 that every pick was as good as the best one, given the picks before it."""
    tolerance = CERTIFICATE[features.dtype]
    for b in range(features.shape[0]):
        taken = [j for j in selected[b].tolist() if j >= 0]
        coverage = Coverage(features[b].double().tolist(), taken)
        left = [n for n in range(features.shape[1]) if is_valid(valid, b, n) and n not in taken]
        for step, pick in enumerate(picks[b].tolist()):
            where = f"image {b} step {step}"
            if not left:
                assert pick == -1, f"{where}: {pick} picked, but no token is left"
                continue
            assert pick in left, f"{where}: {pick} is not one of {left}"
            best = min(left, key=lambda n: (coverage.covered[n], n))
            least, covered = coverage.covered[best], coverage.covered[pick]
            # Not covered - least, because both may be infinite.
            assert covered <= least + tolerance, f"{where}: {pick} {covered}, but {best} {least}"
            left.remove(pick)
            coverage.select(pick)


def select_tokens(
    features: Tensor,
    salience: Tensor,
    budget: int | list[int],
    pivot_counts: int | list[int],
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    batch = features.shape[0]
    budgets = [budget] * batch if isinstance(budget, int) else budget
    shares = [pivot_counts] * batch if isinstance(pivot_counts, int) else pivot_counts
    width = max(budgets, default=0)
    indices, is_pivot, counts = [], [], []
    for b in range(batch):
        share = min(max(shares[b], 1), budgets[b])
        pivots = rank(salience, valid, b)[:share]
        one = slice(b, b + 1)
        completion = complete_tokens(
            features[one],
            torch.tensor([pivots], dtype=torch.int64).view(1, -1),
            budgets[b] - share,
            None if valid is None else valid[one],
        )
        kept = sorted(pivots + [n for n in completion[0].tolist() if n >= 0])
        indices.append(padded(kept, width, -1))
        is_pivot.append(padded([n in pivots for n in kept], width, False))
        counts.append(len(kept))
    return (
        torch.tensor(indices, dtype=torch.int64).view(batch, width),
        torch.tensor(is_pivot, dtype=torch.bool).view(batch, width),
        torch.tensor(counts, dtype=torch.int64),
    )


def merge_groups(features: Tensor, indices: Tensor, valid: Tensor | None, image: int) -> list[int]:
    """Return for each token the kept token that it is merged into, or -1."""
    rows = features[image].double().tolist()
    kept = sorted(j for j in indices[image].tolist() if j >= 0)
    groups = []
    for n in range(len(rows)):
        if n in kept:
            groups.append(n)
        elif not kept or not is_valid(valid, image, n):
            groups.append(-1)
        else:
            similarity = {j: cosine(rows[n], rows[j]) for j in kept}
            attraction = {j: s if math.isfinite(s) else -math.inf for j, s in similarity.items()}
            groups.append(min(kept, key=lambda j: (-attraction[j], j)))
    return groups


def merge_tokens(
    tokens: Tensor, features: Tensor, indices: Tensor, valid: Tensor | None = None
) -> Tensor:
    batch, _, width = tokens.shape
    merged = torch.zeros(batch, indices.shape[1], width, dtype=torch.float64)
    for b in range(batch):
        groups = merge_groups(features, indices, valid, b)
        for slot, kept in enumerate(indices[b].tolist()):
            if kept >= 0:
                members = [tokens[b, n].double() for n, group in enumerate(groups) if group == kept]
                merged[b, slot] = sum(members) / len(members)
    return merged
