"""merge_tokens into N / 9 tokens, by the tokens' own similarity. No index is -1 here, and every
token is valid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from case import (
    INDEX_BYTES,
    Benchmark,
    Implementation,
    Inputs,
    Memory,
    compiled,
    eager,
    token_cases,
)
from machine import Counted
from rows import PEER
from timing import rows_agree
from torch import Tensor
from torch.nn import functional

from clasp_kernels import merge_tokens

from .gather_tokens import KeepingCase

Merge = Callable[[Tensor, Tensor, Tensor], Tensor]  # tokens, features, indices -> [B, R, D]


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


def visionzip_merge(tokens: Tensor, indices: Tensor) -> Tensor:
    """VisionZip's contextual merge: the first half of the kept tokens are dominant and stay as they
    are; the others each become the mean of themselves and of the tokens most similar to them, by a
    one-hot product. indices [B, R] -> [B, R, D]."""
    batch, count, width = tokens.shape
    num_dominant = indices.shape[1] // 2
    dominant, targets = indices[:, :num_dominant], indices[:, num_dominant:]
    kept = tokens.gather(1, dominant[..., None].expand(-1, -1, width))
    free = torch.ones(batch, count, dtype=torch.bool).scatter_(1, dominant, False)
    rest = tokens[free].view(batch, -1, width)
    place = free.long().cumsum(1).sub_(1).gather(1, targets)  # of the targets in ``rest``
    unit = functional.normalize(rest.float(), dim=-1).to(tokens.dtype)
    centres = unit.gather(1, place[..., None].expand(-1, -1, width))
    group = torch.bmm(unit, centres.transpose(1, 2)).argmax(-1)
    group.scatter_(1, place, torch.arange(place.shape[1]).expand_as(place))
    member = functional.one_hot(group, place.shape[1]).to(tokens.dtype)  # [B, N', R']
    sums = torch.bmm(member.transpose(1, 2), rest)
    merged = (sums / member.sum(1, dtype=torch.float32)[..., None]).to(tokens.dtype)
    return torch.cat([kept, merged], 1)


EAGER: dict[str, Merge] = {
    "eager-one-hot": merge_one_hot,
    "eager-one-hot-native": merge_one_hot_native,
    "eager-index-add": merge_index_add,
    "eager-embedding-bag": merge_embedding_bag,
    "eager-embedding-bag-native": merge_embedding_bag_native,
}


def by_itself(merge: Merge) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda tokens, indices: merge(tokens, tokens, indices)


@dataclass(frozen=True)
class Case(KeepingCase):
    op = "merge_tokens"

    def counted(self) -> Counted:
        """All tokens are read and the kept ones written; every dropped token's product with every
        kept one, the norms of the kept ones and the sums are multiply-adds."""
        kept = self.batch * self.num_kept
        tokens = self.batch * self.num_tokens
        moved = (tokens + kept) * self.dim * self.element_bytes + kept * INDEX_BYTES
        products = (tokens - kept) * self.num_kept + kept + tokens
        return Counted(moved, products * self.dim, self.dtype)

    def ours(self, tokens: Tensor, indices: Tensor) -> Tensor:
        return merge_tokens(tokens, tokens, indices)

    def agree(self, inputs: Inputs, ours: Tensor, theirs: Tensor) -> bool:
        # Rounding decides for some tokens which kept one is the most similar, and a group's mean
        # differs if one of its nine or so tokens does.
        return rows_agree(ours, theirs, 2e-2) >= (0.98 if self.dtype == "float32" else 0.7)

    def baselines(self, gpu: bool) -> list[Implementation]:
        others = eager({name: by_itself(merge) for name, merge in EAGER.items()})
        if self.compiles or not gpu:
            others.append(compiled("compiled-one-hot", by_itself(merge_one_hot_native)))
        return [*others, *([] if gpu else eager({"visionzip": visionzip_merge}, PEER))]


CPU = token_cases(Case)
BENCHMARK = Benchmark(
    cpu=CPU,
    gpu=[
        Case(8, 576, 1024, "bfloat16", priority=0, compiles=True),
        Case(1, 576, 1024, "bfloat16", priority=1),
        Case(64, 576, 1024, "bfloat16", priority=1),
        Case(1, 2880, 1024, "bfloat16"),
        Case(8, 2880, 3584, "bfloat16"),
        Case(8, 576, 1024, "float32"),
    ],
    telling=("1x576x1024 float32 R64", "8x576x1024 bfloat16 R64"),
    memory=Memory(
        [case for case in CPU if case.num_tokens in (576, 2880)],
        against="eager-embedding-bag-native",
    ),
)
