"""The ops in float64, vectorised: at the sizes of real models the loops of oracle.py take hours."""

from __future__ import annotations

import torch
from oracle import CERTIFICATE
from torch import Tensor


def fuse_layers(
    hidden_states: list[Tensor],
    weights: Tensor,
    category_ids: Tensor | None = None,
    normalize: str | None = None,
) -> Tensor:
    fused = torch.zeros((), dtype=torch.float64, device=weights.device)
    rows = weights[None] if category_ids is None else weights[category_ids]
    for layer, states in enumerate(hidden_states):
        wide = states.double()
        if normalize == "l2":
            norm = wide.square().sum(-1, keepdim=True).sqrt()
            wide = wide / norm.where(norm > 0, 1.0)
        elif normalize == "rms":
            wide = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        fused = fused + rows[:, layer, None, None].double() * wide
    return fused


def attention_salience(
    query: Tensor,
    key: Tensor,
    causal: bool = False,
    key_valid: Tensor | None = None,
    query_weights: Tensor | None = None,
    key_range: tuple[int, int] | None = None,
) -> Tensor:
    rows, width, keys = query.shape[2], query.shape[3], key.shape[2]
    heads = key.double().repeat_interleave(query.shape[1] // key.shape[1], 1)
    logits = query.double() @ heads.transpose(2, 3) / width**0.5
    allowed = torch.ones(rows, keys, dtype=torch.bool, device=query.device)
    if causal:
        allowed = allowed.tril(keys - rows)
    if key_valid is not None:
        allowed = allowed & key_valid[:, None, None]
    probability = logits.masked_fill(~allowed, -torch.inf).softmax(-1).where(allowed, 0.0)
    weights = query.new_ones(rows) if query_weights is None else query_weights
    shares = weights.double() / weights.double().sum(-1, keepdim=True)
    start, stop = key_range or (0, keys)
    return (probability.mean(1) * shares[..., None]).sum(1)[:, start:stop]


def unit_rows(features: Tensor) -> Tensor:
    """Zero vectors stay zero, and so have a similarity of 0 to everything."""
    wide = features.double()
    norm = wide.square().sum(-1, keepdim=True).sqrt()
    return wide / norm.where(norm > 0, 1.0)


def usable_weights(weights: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weights [B, N] within bounds, which are 1 for images whose valid tokens have equal ones, and
    whether they have [B, 1]."""
    usable = weights.double()
    usable = torch.where(usable >= 2.0**-50, usable.clamp(max=2.0**50), 0.0)
    counted = torch.ones_like(usable, dtype=torch.bool) if valid is None else valid
    most = usable.masked_fill(~counted, -torch.inf).amax(1, keepdim=True)
    least = usable.masked_fill(~counted, torch.inf).amin(1, keepdim=True)
    return torch.where(most <= least, 1.0, usable), most <= least


def certify_completion(
    features: Tensor,
    selected: Tensor,
    picks: Tensor,
    weights: Tensor | None = None,
    valid: Tensor | None = None,
) -> None:
    """As oracle.certify_completion, for features that are finite."""
    batch, tokens = features.shape[:2]
    image = torch.arange(batch, device=features.device)
    unit = unit_rows(features)
    given = unit.new_ones(batch, tokens) if weights is None else weights
    weight, without = usable_weights(given, valid)
    tolerance = CERTIFICATE[features.dtype] * weight.amax(1)
    free = torch.ones(batch, tokens, dtype=torch.bool, device=features.device)
    free = free if valid is None else valid.clone()
    covered = unit.new_full((batch, tokens), -torch.inf)

    def select(chosen: Tensor, covered: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
        """``chosen`` [B], -1 for none."""
        known = (chosen >= 0)[:, None]
        slot = chosen.clamp(0, tokens - 1)
        similarity = (unit @ unit[image, slot][..., None])[..., 0]
        mine = torch.arange(tokens, device=slot.device) == slot[:, None]
        return covered.maximum(similarity.where(known, -torch.inf)), free & ~(known & mine)

    for chosen in selected.unbind(1):
        covered, free = select(chosen, covered, free)
    wrong = []
    for chosen in picks.unbind(1):
        order = -weight * (1 - covered.clamp(min=-1))
        order = torch.where(without, covered, order.masked_fill(weight == 0, 1e30))
        best = order.masked_fill(~free, torch.inf).amin(1)
        slot = chosen.clamp(0, tokens - 1)[:, None]
        good = (chosen >= 0) & (chosen < tokens) & free.gather(1, slot)[:, 0]
        good &= order.gather(1, slot)[:, 0] <= best + tolerance
        wrong.append(~torch.where(free.any(1), good, chosen == -1))
        covered, free = select(chosen, covered, free)
    if wrong:
        steps = torch.stack(wrong, 1).nonzero().tolist()
        assert not steps, f"not certified at [image, step] {steps[:5]}"


def certify_cover(
    features: Tensor,
    selected: Tensor,
    picks: Tensor,
    num_tokens: int | list[int],
    weights: Tensor,
    preference: Tensor,
    valid: Tensor,
) -> None:
    """As oracle.certify_cover, for finite features. Checks the number of picks too."""
    batch, tokens = features.shape[:2]
    index = torch.arange(tokens, device=features.device)
    weight, preferred = (usable_weights(given, valid)[0] for given in (weights, preference))
    weight = weight.masked_fill(~valid, 0.0)
    counts = [num_tokens] * batch if isinstance(num_tokens, int) else num_tokens
    wrong = []
    for image in range(batch):
        unit = unit_rows(features[image])
        similarity = (unit @ unit.T).clamp(min=0)
        tolerance = CERTIFICATE[features.dtype] * preferred[image].amax() * weight[image].sum()
        best, free = unit.new_zeros(tokens), valid[image].clone()
        for chosen in selected[image].unbind():
            row = similarity[chosen.clamp(0, tokens - 1)]
            best = torch.where(chosen >= 0, best.maximum(row), best)
            free &= index != chosen
        for step, chosen in enumerate(picks[image].unbind()):
            gain = preferred[image] * ((similarity - best).clamp(min=0) @ weight[image])
            most = gain.masked_fill(~free, -torch.inf).amax()
            slot = chosen.clamp(0, tokens - 1)
            good = (chosen == slot) & free[slot] & (gain[slot] >= most - tolerance)
            if step >= counts[image] or not free.any():
                good = chosen == -1
            if not good:
                wrong.append([image, step])
            if chosen >= 0:
                best = best.maximum(similarity[slot])
                free &= index != chosen
    assert not wrong, f"not certified at [image, step] {wrong[:5]}"


def merge_tokens(
    tokens: Tensor, features: Tensor, indices: Tensor, valid: Tensor | None = None
) -> Tensor:
    """For features whose similarities are exact in float64; others could tie differently."""
    count, slots = tokens.shape[1], indices.shape[1]
    merged = tokens.new_zeros((*indices.shape, tokens.shape[2]), dtype=torch.float64)
    for image in range(tokens.shape[0]):
        kept, by_index = indices[image].masked_fill(indices[image] < 0, count).sort()
        wide = features[image].double()
        others = wide[kept.clamp(max=count - 1)]
        # Correctly rounded products and quotients of small integers: ties stay ties.
        norms = (wide.square().sum(-1).sqrt()[:, None] * others.square().sum(-1).sqrt()).clone()
        similarity = torch.where(norms > 0, (wide @ others.T) / norms, 0.0)
        similarity = similarity.masked_fill(kept == count, -torch.inf)
        group = by_index[similarity.argmax(1)]
        if valid is not None:
            group = group.masked_fill(~valid[image], slots)
        group = group.masked_fill((kept == count).all(), slots)
        own = torch.arange(count, device=kept.device)[:, None] == indices[image]
        group = torch.where(own.any(1), own.long().argmax(1), group)
        member = (group[:, None] == torch.arange(slots, device=group.device)).double()
        sums = member.T @ tokens[image].double()
        merged[image] = sums / member.sum(0).clamp(min=1)[:, None]
    return merged
