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


def usable_weights(weights: Tensor | None, valid: Tensor | None, image: int) -> list[float] | None:
    """Return the weights of an image within bounds, or None if all valid tokens' are equal."""
    if weights is None:
        return None
    usable = [
        min(weight, 2.0**50) if weight >= 2.0**-50 else 0.0 for weight in weights[image].tolist()
    ]
    different = {w for n, w in enumerate(usable) if is_valid(valid, image, n)}
    return usable if len(different) > 1 else None


def greed(covered: float, weights: list[float] | None, token: int) -> tuple[int, float]:
    """Return how bad a token is as the next pick: its tier, then its coverage or negative gain."""
    if weights is None:
        return 0, covered
    if weights[token] == 0:
        return 1, 0.0
    return 0, -weights[token] * (1 - max(covered, -1.0))


def complete_tokens(
    features: Tensor,
    selected: Tensor,
    num_tokens: int,
    weights: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    rows = []
    for b in range(features.shape[0]):
        weight = usable_weights(weights, valid, b)
        taken = [j for j in selected[b].tolist() if j >= 0]
        coverage = Coverage(features[b].double().tolist(), taken)
        left = [n for n in range(features.shape[1]) if is_valid(valid, b, n) and n not in taken]
        picks: list[int] = []
        while left and len(picks) < num_tokens:
            picks.append(min(left, key=lambda n: (greed(coverage.covered[n], weight, n), n)))
            left.remove(picks[-1])
            coverage.select(picks[-1])
        rows.append(padded(picks, num_tokens, -1))
    return torch.tensor(rows, dtype=torch.int64).view(len(rows), num_tokens)


def certify_completion(
    features: Tensor,
    selected: Tensor,
    picks: Tensor,
    weights: Tensor | None = None,
    valid: Tensor | None = None,
) -> None:
    """Check in float64 that every pick was as good as the best one, given the picks before it."""
    for b in range(features.shape[0]):
        weight = usable_weights(weights, valid, b)
        tolerance = CERTIFICATE[features.dtype] * max(weight or [1.0])
        taken = [j for j in selected[b].tolist() if j >= 0]
        coverage = Coverage(features[b].double().tolist(), taken)
        left = [n for n in range(features.shape[1]) if is_valid(valid, b, n) and n not in taken]
        for step, pick in enumerate(picks[b].tolist()):
            where = f"image {b} step {step}"
            if not left:
                assert pick == -1, f"{where}: {pick} picked, but no token is left"
                continue
            assert pick in left, f"{where}: {pick} is not one of {left}"
            greeds = {n: greed(coverage.covered[n], weight, n) for n in left}
            best = min(left, key=lambda n: (greeds[n], n))
            (tier, value), (best_tier, least) = greeds[pick], greeds[best]
            assert tier == best_tier, f"{where}: {pick} of weight 0, but {best} is left"
            # Not value - least, because both may be infinite.
            assert value <= least + tolerance, f"{where}: {pick} {value}, but {best} {least}"
            left.remove(pick)
            coverage.select(pick)


class Representation:
    """Tracks best[n], how well token n is represented by the selected ones, and what picks add."""

    def __init__(
        self,
        features: list[list[float]],
        selected: list[int],
        weights: list[float],
        preference: list[float],
    ) -> None:
        self.similarity = [
            [s if 0 < (s := cosine(a, b)) < math.inf else 0.0 for b in features] for a in features
        ]
        self.weights, self.preference = weights, preference
        self.best = [0.0] * len(features)
        for token in selected:
            self.select(token)

    def gain(self, token: int) -> float:
        added = zip(self.weights, self.similarity[token], self.best, strict=True)
        return self.preference[token] * sum(w * max(0.0, s - best) for w, s, best in added)

    def select(self, token: int) -> None:
        self.best = list(map(max, self.best, self.similarity[token]))


def representation(
    features: Tensor,
    selected: Tensor,
    weights: Tensor | None,
    preference: Tensor | None,
    valid: Tensor | None,
    image: int,
) -> Representation:
    rows = features[image].double().tolist()
    ones = [1.0] * len(rows)
    weight = usable_weights(weights, valid, image) or ones
    return Representation(
        rows,
        [j for j in selected[image].tolist() if j >= 0],
        [w if is_valid(valid, image, n) else 0.0 for n, w in enumerate(weight)],
        usable_weights(preference, valid, image) or ones,
    )


def cover_tokens(
    features: Tensor,
    selected: Tensor,
    num_tokens: int | list[int],
    weights: Tensor | None = None,
    preference: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    batch = features.shape[0]
    counts = [num_tokens] * batch if isinstance(num_tokens, int) else num_tokens
    width = max(counts, default=0)
    rows = []
    for b in range(batch):
        state = representation(features, selected, weights, preference, valid, b)
        taken = selected[b].tolist()
        left = [n for n in range(features.shape[1]) if is_valid(valid, b, n) and n not in taken]
        picks: list[int] = []
        while left and len(picks) < counts[b]:
            picks.append(min(left, key=lambda n: (-state.gain(n), n)))
            left.remove(picks[-1])
            state.select(picks[-1])
        rows.append(padded(picks, width, -1))
    return torch.tensor(rows, dtype=torch.int64).view(batch, width)


def certify_cover(
    features: Tensor,
    selected: Tensor,
    picks: Tensor,
    weights: Tensor | None = None,
    preference: Tensor | None = None,
    valid: Tensor | None = None,
) -> None:
    """Check in float64 that every pick gained as much as the best one, given those before it."""
    for b in range(features.shape[0]):
        state = representation(features, selected, weights, preference, valid, b)
        # A similarity that is off by the certificate changes a gain by at most this much.
        most = max(state.preference, default=1.0) * max(sum(state.weights), 1e-30)
        tolerance = CERTIFICATE[features.dtype] * most
        taken = selected[b].tolist()
        left = [n for n in range(features.shape[1]) if is_valid(valid, b, n) and n not in taken]
        for step, pick in enumerate(picks[b].tolist()):
            where = f"image {b} step {step}"
            if not left:
                assert pick == -1, f"{where}: {pick} picked, but no token is left"
                continue
            assert pick in left, f"{where}: {pick} is not one of {left}"
            best = max(left, key=state.gain)
            gain, most_gain = state.gain(pick), state.gain(best)
            assert gain >= most_gain - tolerance, f"{where}: {pick} {gain}, but {best} {most_gain}"
            left.remove(pick)
            state.select(pick)


def select_tokens(
    features: Tensor,
    salience: Tensor,
    budget: int | list[int],
    pivot_counts: int | list[int],
    weights: Tensor | None = None,
    completion: str = "farthest",
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
        second = complete_tokens if completion == "farthest" else cover_tokens
        picks = second(
            features[one],
            torch.tensor([pivots], dtype=torch.int64).view(1, -1),
            budgets[b] - share,
            weights=None if weights is None else weights[one],
            valid=None if valid is None else valid[one],
        )
        kept = sorted(pivots + [n for n in picks[0].tolist() if n >= 0])
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
