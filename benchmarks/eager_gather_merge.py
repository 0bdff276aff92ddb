"""Gathering and merging tokens in eager torch. No index is -1 here, and every token is valid."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Gather = Callable[[Tensor, Tensor], Tensor]  # tokens [B, N, D], indices [B, R] -> [B, R, D]
Merge = Callable[[Tensor, Tensor, Tensor], Tensor]  # tokens, features, indices -> [B, R, D]


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


def _groups(features: Tensor, indices: Tensor) -> Tensor:
    """[B, N]: the slot of the most similar kept token; a kept token's own slot."""
    unit = functional.normalize(features.float(), dim=-1)
    kept = unit.gather(1, indices[..., None].expand(-1, -1, unit.shape[2]))
    group = torch.bmm(unit, kept.transpose(1, 2)).argmax(-1)
    slots = torch.arange(indices.shape[1], device=indices.device).expand_as(indices)
    return group.scatter(1, indices, slots)


def _groups_native(features: Tensor, indices: Tensor) -> Tensor:
    """As ``_groups`` with the product in the features' dtype, and only the kept ones scaled: a
    token's own norm does not change which slot is the most similar."""
    kept = features.gather(1, indices[..., None].expand(-1, -1, features.shape[2]))
    kept = functional.normalize(kept.float(), dim=-1).to(features.dtype)
    group = torch.bmm(features, kept.transpose(1, 2)).argmax(-1)
    slots = torch.arange(indices.shape[1], device=indices.device).expand_as(indices)
    return group.scatter(1, indices, slots)


def _one_hot_mean(tokens: Tensor, group: Tensor, num_slots: int) -> Tensor:
    member = functional.one_hot(group, num_slots).to(tokens.dtype)  # [B, N, R]
    count = member.sum(1, dtype=torch.float32)  # [B, R]
    sums = torch.bmm(member.transpose(1, 2), tokens)
    return (sums / count[..., None]).to(tokens.dtype)


def merge_one_hot(tokens: Tensor, features: Tensor, indices: Tensor) -> Tensor:
    """A one-hot assignment matrix times the tokens, as VisionZip merges its contextual tokens
    (Yang et al., arXiv 2412.04467)."""
    return _one_hot_mean(tokens, _groups(features, indices), indices.shape[1])


def merge_one_hot_native(tokens: Tensor, features: Tensor, indices: Tensor) -> Tensor:
    return _one_hot_mean(tokens, _groups_native(features, indices), indices.shape[1])


def _index_add_mean(tokens: Tensor, group: Tensor, slots: int) -> Tensor:
    batch, _, width = tokens.shape
    flat = (group + torch.arange(batch, device=group.device)[:, None] * slots).view(-1)
    sums = tokens.new_zeros(batch * slots, width, dtype=torch.float32)
    sums.index_add_(0, flat, tokens.float().flatten(0, 1))
    count = flat.bincount(minlength=batch * slots)
    return sums.div_(count[:, None]).view(batch, slots, width).to(tokens.dtype)


def merge_index_add(tokens: Tensor, features: Tensor, indices: Tensor) -> Tensor:
    return _index_add_mean(tokens, _groups(features, indices), indices.shape[1])


def _bag_mean(tokens: Tensor, group: Tensor, slots: int) -> Tensor:
    """Tokens sorted by group, then one mean per bag: no float is added out of order."""
    batch, _, width = tokens.shape
    flat = (group + torch.arange(batch, device=group.device)[:, None] * slots).view(-1)
    lengths = flat.bincount(minlength=batch * slots)
    merged = functional.embedding_bag(
        flat.argsort(stable=True),
        tokens.flatten(0, 1),
        lengths.cumsum(0) - lengths,
        mode="mean",
    )
    return merged.view(batch, slots, width)


def merge_embedding_bag(tokens: Tensor, features: Tensor, indices: Tensor) -> Tensor:
    return _bag_mean(tokens, _groups(features, indices), indices.shape[1])


def merge_embedding_bag_native(tokens: Tensor, features: Tensor, indices: Tensor) -> Tensor:
    return _bag_mean(tokens, _groups_native(features, indices), indices.shape[1])


GATHER: dict[str, Gather] = {
    "eager-gather": gather_expanded,
    "eager-index": gather_indexed,
    "eager-index-select": gather_flat,
    "eager-index-select-images": gather_per_image,
}
MERGE: dict[str, Merge] = {
    "eager-one-hot": merge_one_hot,
    "eager-one-hot-native": merge_one_hot_native,
    "eager-index-add": merge_index_add,
    "eager-embedding-bag": merge_embedding_bag,
    "eager-embedding-bag-native": merge_embedding_bag_native,
}
