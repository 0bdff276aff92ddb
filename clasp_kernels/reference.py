"""The ops in plain torch: the reference that every other backend is tested against.

There is one function per op, with the op's schema as its signature. The functions follow the
formulas and are not optimized. If a formula is per image, the function loops over images and copies
each of them, so that no bit of a result depends on the rest of the batch. Nothing is read back to
the host.

:mod:`clasp_kernels.ops` has already checked the arguments.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")

# A non-finite similarity counts as larger than any cosine, so such a token is picked last.
NOT_FINITE = torch.finfo(torch.float32).max
RMS_EPSILON = 1e-6
# A smaller weight of a token counts as 0, a larger one as the largest. Products of two weights and
# a similarity then neither overflow float32 nor become subnormal.
SMALLEST_WEIGHT = 2.0**-50
LARGEST_WEIGHT = 2.0**50


def forward_only(function: Callable[..., Result]) -> Callable[..., Result]:
    """Disables autograd and autocast, so that ``function`` computes in float32."""

    @functools.wraps(function)
    def run(first: Tensor | list[Tensor], *rest: object) -> Result:
        device = first.device if isinstance(first, Tensor) else first[0].device
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return function(first, *rest)

    return run


@forward_only
def fuse_layers(
    hidden_states: list[Tensor],  # L x [B, N, D]
    weights: Tensor,  # [C, L] float32
    category_ids: Tensor | None,  # [B]
    normalize: str,
) -> Tensor:
    first = hidden_states[0]
    fused = first.new_zeros(first.shape, dtype=torch.float32)
    rows = weights if category_ids is None else weights[category_ids]  # [1 or B, L]
    for layer, states in enumerate(hidden_states):
        weight = rows[:, layer, None, None]
        # torch.where instead of a product with 0: an unused layer may hold NaN, and 0 * NaN is NaN.
        fused += torch.where(weight == 0, 0.0, weight * _normalized(_float_copy(states), normalize))
    return fused.to(first.dtype)


def _normalized(states: Tensor, normalize: str) -> Tensor:
    if normalize == "l2":
        norm = states.square().sum(-1, keepdim=True).sqrt()
        return states / norm.where(norm > 0, 1.0)
    if normalize == "rms":
        return states / (states.square().mean(-1, keepdim=True) + RMS_EPSILON).sqrt()
    return states


@forward_only
def attention_salience(
    query: Tensor,  # [B, Hq, T, d]
    key: Tensor,  # [B, Hkv, S, d]
    scale: float,
    causal: bool,
    key_valid: Tensor | None,  # [B, S] bool
    query_weights: Tensor | None,  # [B, T]
    start: int,
    stop: int,
) -> Tensor:
    """Materializes the [Hq, T, S] attention of one image at a time."""
    batch, query_heads, rows = query.shape[:3]
    key_heads, keys = key.shape[1:3]
    salience = query.new_zeros((batch, stop - start), dtype=torch.float32)
    for image in range(batch):
        queries = _float_copy(query[image])  # [Hq, T, d]
        image_keys = _float_copy(key[image]).repeat_interleave(query_heads // key_heads, 0)

        allowed = torch.ones(rows, keys, dtype=torch.bool, device=query.device)
        if causal:
            allowed = allowed.tril(keys - rows)
        if key_valid is not None:
            allowed = allowed & key_valid[image]

        logits = scale * (queries @ image_keys.transpose(1, 2))  # [Hq, T, S]
        probability = logits.masked_fill(~allowed, float("-inf")).softmax(-1)
        # The softmax of a row without allowed keys is NaN; such a row adds 0.
        probability = torch.where(allowed, probability, 0.0)

        weight = queries.new_ones(rows) if query_weights is None else query_weights[image].float()
        # Divide by the largest weight first, because the sum of large weights would overflow.
        for whole in (torch.amax, torch.sum):
            total = whole(weight)
            weight = weight / total.where(total > 0, 1.0)
        weight = weight[:, None]  # [T, 1]
        per_head = torch.where(weight == 0, 0.0, weight * probability).sum(1)  # [Hq, S]
        # Cut out last, so that no bit depends on the range. narrow() raises if the range is out of
        # bounds, whereas a slice could come out one key wide and broadcast over the row.
        salience[image] = per_head.mean(0).narrow(0, start, stop - start)
    return salience


@forward_only
def select_pivots(
    salience: Tensor,  # [B, N]
    num_pivots: int,
    k: Tensor | None,  # [B]
    valid: Tensor | None,  # [B, N] bool
) -> Tensor:
    batch, tokens = salience.shape
    score = salience.float()
    # Tiers: 0 for a number, 1 for NaN, 2 for not valid. Two stable sorts, because no float is below
    # -inf.
    tier = score.isnan().long()
    if valid is not None:
        tier = tier.masked_fill(~valid, 2)
    number = score.masked_fill(score.isnan(), float("-inf"))
    order = number.argsort(dim=-1, descending=True, stable=True)
    order = order.gather(-1, tier.gather(-1, order).argsort(dim=-1, stable=True))

    available = (tier < 2).sum(-1, keepdim=True)
    limit = available if k is None else available.minimum(k[:, None])
    pivots = salience.new_full((batch, num_pivots), -1, dtype=torch.int64)
    width = min(num_pivots, tokens)
    slot = torch.arange(width, device=salience.device)
    pivots[:, :width] = torch.where(slot < limit, order[:, :width], -1)
    return pivots


@forward_only
def complete_tokens(
    features: Tensor,  # [B, N, D]
    selected: Tensor,  # [B, P], -1 where unused
    num_picks: int,
    valid: Tensor | None,  # [B, N] bool
    weights: Tensor | None = None,  # [B, N] float32
) -> Tensor:
    batch, tokens = features.shape[:2]
    completion = features.new_full((batch, num_picks), -1, dtype=torch.int64)
    if tokens == 0:
        return completion
    index = torch.arange(tokens, device=features.device)
    for image in range(batch):
        rows = _float_copy(features[image])
        norms = _norms(rows)
        free = torch.ones_like(index, dtype=torch.bool) if valid is None else valid[image].clone()
        covered = norms.new_full((tokens,), float("-inf"))
        for chosen in selected[image].unbind():
            similarity = _similarity(rows, norms, chosen.clamp(min=0))
            covered = torch.where(chosen >= 0, covered.maximum(similarity), covered)
            free &= index != chosen
        for step in range(num_picks):
            order = covered
            if weights is not None:
                order = _order_by_gain(covered, *_usable_weights(weights, valid, image))
            # argmin returns the first of equal values.
            chosen = torch.where(free, order, float("inf")).argmin()
            completion[image, step] = torch.where(free.any(), chosen, -1)
            covered = covered.maximum(_similarity(rows, norms, chosen))
            free &= index != chosen
    return completion


def _usable_weights(weights: Tensor, valid: Tensor | None, image: int) -> tuple[Tensor, Tensor]:
    """Returns the weights [N] of an image, within bounds, and whether they are all equal."""
    weight = weights[image]
    # Also drops NaN, which compares false.
    weight = weight.where(weight >= SMALLEST_WEIGHT, 0.0).clamp(max=LARGEST_WEIGHT)
    most, least = weight, weight
    if valid is not None:
        most = weight.masked_fill(~valid[image], float("-inf"))
        least = weight.masked_fill(~valid[image], float("inf"))
    return weight, most.amax() == least.amin()


def _order_by_gain(covered: Tensor, weight: Tensor, all_equal: Tensor) -> Tensor:
    """Returns what the next pick minimizes: the negative gain, or coverage if weights are equal."""
    order = -(weight * (1 - covered.clamp(min=-1)))
    order = order.masked_fill(covered == NOT_FINITE, NOT_FINITE / 2)
    order = order.masked_fill(weight == 0, NOT_FINITE)
    return torch.where(all_equal, covered, order)


@forward_only
def cover_tokens(
    features: Tensor,  # [B, N, D]
    selected: Tensor,  # [B, P], -1 where unused
    num_picks: int,
    counts: Tensor | None,  # [B], clamped to 0..num_picks
    weights: Tensor | None,  # [B, N] float32
    preference: Tensor | None,  # [B, N] float32
    valid: Tensor | None,  # [B, N] bool
) -> Tensor:
    """Materializes the [N, N] similarities of one image at a time."""
    batch, tokens = features.shape[:2]
    picks = features.new_full((batch, num_picks), -1, dtype=torch.int64)
    if tokens == 0:
        return picks
    index = torch.arange(tokens, device=features.device)
    for image in range(batch):
        rows = _float_copy(features[image])
        similarity = _similarities(rows, _norms(rows))  # [N, N]
        free = torch.ones_like(index, dtype=torch.bool) if valid is None else valid[image].clone()
        weight, preferred = (
            _weights_or_ones(given, valid, image, rows) for given in (weights, preference)
        )
        if valid is not None:
            weight = weight.masked_fill(~valid[image], 0.0)
        best = weight.new_zeros(tokens)
        for chosen in selected[image].unbind():
            row = similarity.index_select(0, chosen.clamp(min=0)[None])[0]
            best = torch.where(chosen >= 0, best.maximum(row), best)
            free &= index != chosen
        for step in range(num_picks):
            gain = preferred * (weight * (similarity - best).clamp(min=0)).sum(1)  # [N]
            # argmax returns the first of equal values.
            chosen = gain.masked_fill(~free, -1.0).argmax()
            wanted = free.any() if counts is None else free.any() & (step < counts[image])
            picks[image, step] = torch.where(wanted, chosen, -1)
            best = best.maximum(similarity.index_select(0, chosen[None])[0])
            free &= index != chosen
    return picks


def _weights_or_ones(
    weights: Tensor | None, valid: Tensor | None, image: int, rows: Tensor
) -> Tensor:
    """Returns the weights [N] of an image, which are 1 if they are not given or all equal."""
    ones = rows.new_ones(len(rows))
    if weights is None:
        return ones
    weight, all_equal = _usable_weights(weights, valid, image)
    return torch.where(all_equal, ones, weight)


@forward_only
def select_tokens(
    features: Tensor,  # [B, N, D]
    salience: Tensor,  # [B, N]
    num_kept: int,
    budget: Tensor | None,  # [B], clamped to 0..num_kept
    num_pivots: int,
    pivot_counts: Tensor | None,  # [B], clamped to 1..num_pivots and to the budget
    valid: Tensor | None,  # [B, N] bool
    weights: Tensor | None = None,  # [B, N] float32
) -> tuple[Tensor, Tensor, Tensor]:
    batch, tokens = salience.shape
    if budget is None:
        budget = salience.new_full((batch,), num_kept, dtype=torch.int64)
    if pivot_counts is None:
        pivot_counts = salience.new_full((batch,), num_pivots, dtype=torch.int64)
    budget = budget.clamp(0, num_kept)
    num_pivots = max(num_pivots, 1)
    pivot_counts = pivot_counts.clamp(1, num_pivots).minimum(budget)

    pivots = select_pivots(salience, num_pivots, pivot_counts, valid)  # [B, P]
    found = (pivots >= 0).sum(-1, keepdim=True)
    # Greedy picks do not depend on how many follow, so the surplus ones can be dropped.
    completion = complete_tokens(features, pivots, num_kept, valid, weights)  # [B, R]
    slot = torch.arange(num_kept, device=salience.device)
    completion = torch.where(slot < budget[:, None] - found, completion, -1)

    kept = torch.cat([pivots, completion], dim=1)
    is_pivot = torch.cat([pivots >= 0, torch.zeros_like(completion, dtype=torch.bool)], dim=1)
    order = kept.masked_fill(kept < 0, tokens).argsort(dim=-1, stable=True)[:, :num_kept]
    indices = kept.gather(1, order)
    return indices, is_pivot.gather(1, order), (indices >= 0).sum(-1)


@forward_only
def gather_tokens(
    tokens: Tensor,  # [B, N, D]
    indices: Tensor,  # [B, R], -1 for a row of zeros
) -> Tensor:
    if tokens.shape[1] == 0:
        return tokens.new_zeros((*indices.shape, tokens.shape[2]))
    image = torch.arange(tokens.shape[0], device=tokens.device)[:, None]
    gathered = tokens[image, indices.clamp(min=0)]
    return gathered.masked_fill((indices < 0)[..., None], 0.0)


@forward_only
def merge_tokens(
    tokens: Tensor,  # [B, N, D]
    features: Tensor,  # [B, N, F]
    indices: Tensor,  # [B, R], -1 for a row of zeros
    valid: Tensor | None,  # [B, N] bool
) -> Tensor:
    batch, count, _ = tokens.shape
    slots = indices.shape[1]
    merged = tokens.new_zeros((batch, slots, tokens.shape[2]))
    if count == 0 or slots == 0:
        return merged
    token = torch.arange(count, device=tokens.device)
    groups = torch.arange(slots + 1, device=tokens.device)
    for image in range(batch):
        rows = _float_copy(features[image])
        norms = _norms(rows)
        # Ties go to the kept token with the lower *token* index, so the slots are sorted by it.
        # Unused slots come last and attract nothing.
        kept, by_index = indices[image].masked_fill(indices[image] < 0, count).sort()
        similarity = torch.stack(
            [_similarity(rows, norms, chosen.clamp(max=count - 1)) for chosen in kept.unbind()], 1
        )
        similarity = similarity.masked_fill(similarity == NOT_FINITE, -NOT_FINITE)
        similarity = similarity.masked_fill(kept == count, float("-inf"))
        group = by_index[similarity.argmax(1)]  # [N], argmax returns the first of equal values

        # Group `slots`, past the last one, takes the tokens that join no group.
        if valid is not None:
            group = group.masked_fill(~valid[image], slots)
        group = group.masked_fill((kept == count).all(), slots)
        own = token[:, None] == indices[image]  # [N, R]: a kept token stays in its own group
        group = torch.where(own.any(1), own.long().argmax(1), group)

        order = group.argsort(stable=True)
        lengths = (group[:, None] == groups).sum(0)
        sums = torch.segment_reduce(
            tokens[image].float()[order], "sum", lengths=lengths, axis=0, unsafe=True, initial=0.0
        )
        merged[image] = (sums / lengths.clamp(min=1)[:, None])[:slots].to(tokens.dtype)
    return merged


def _float_copy(rows: Tensor) -> Tensor:
    """Returns a float32 copy with contiguous rows.

    Copies float32 too: BLAS may round differently at another alignment, and the address of an image
    depends on its place in the batch.
    """
    return rows.to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def _norms(rows: Tensor) -> Tensor:
    # The square root of float64 rounds correctly to float32. torch's float32 square root on the CPU
    # is MKL's, which is off by one unit for every sixth number and would break ties.
    return rows.square().sum(-1).double().sqrt().float()


def _similarity(rows: Tensor, norms: Tensor, chosen: Tensor) -> Tensor:
    """Cosine similarity of every row to row ``chosen``: 0 for zero vectors, never NaN."""
    # index_select, because rows[chosen] would copy the index to the host.
    other = rows.index_select(0, chosen[None])[0]
    other_norm = norms.index_select(0, chosen[None])
    cosine = (rows @ other) / (norms * other_norm)
    cosine = cosine.where(cosine.isfinite(), NOT_FINITE)
    return cosine.masked_fill((norms == 0) | (other_norm == 0), 0.0)


def _similarities(rows: Tensor, norms: Tensor) -> Tensor:
    """All cosine similarities, [N, N]; 0 where they are negative, not finite or of zero vectors."""
    cosine = (rows @ rows.mT) / (norms[:, None] * norms)
    return cosine.where(cosine.isfinite(), 0.0).clamp(min=0)
