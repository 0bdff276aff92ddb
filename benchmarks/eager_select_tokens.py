"""What one would write without the package: the best selections in eager torch that we know of.

All compute the same greedy completion. They normalise once, keep ``covered`` up to date instead of
recomputing it, and allocate nothing inside the loop. They differ in where the similarities come
from, and which is best depends on the shape, so a benchmark has to run them all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

Complete = Callable[[Tensor, Tensor, int], Tensor]


def select_tokens(
    features: Tensor, salience: Tensor, budget: int, num_pivots: int, complete: Complete
) -> Tensor:
    """The kept indices [B, R], ascending."""
    pivots = salience.topk(num_pivots, dim=1).indices
    completion = complete(features, pivots, budget - num_pivots)
    return torch.cat([pivots, completion], dim=1).sort(dim=1).values


def _unit_rows(features: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features.float(), dim=-1)


def _covered_by(unit: Tensor, selected: Tensor) -> Tensor:
    """[B, N]: the largest similarity to a selected token; inf for the selected ones."""
    rows = unit.gather(1, selected[..., None].expand(-1, -1, unit.shape[2]))
    covered = torch.bmm(unit, rows.transpose(1, 2)).amax(-1)
    return covered.scatter_(1, selected, float("inf"))


def per_image(features: Tensor, selected: Tensor, num_tokens: int) -> Tensor:
    """One matrix-vector product a step and image. The fastest for float32 at most shapes: the
    batched product below is far slower than as many products one by one."""
    picks = selected.new_empty(features.shape[0], num_tokens)
    for image in range(features.shape[0]):
        unit = _unit_rows(features[image : image + 1])
        covered = _covered_by(unit, selected[image : image + 1])[0]
        rows = unit[0]
        similarity = torch.empty_like(covered)
        for step in range(num_tokens):
            pick = int(covered.argmin())
            picks[image, step] = pick
            torch.mv(rows, rows[pick], out=similarity)
            torch.maximum(covered, similarity, out=covered)
            covered[pick] = float("inf")
    return picks


def batched(features: Tensor, selected: Tensor, num_tokens: int) -> Tensor:
    """One batched matrix-vector product a step."""
    unit = _unit_rows(features)
    covered = _covered_by(unit, selected)
    picks = selected.new_empty(features.shape[0], num_tokens)
    image = torch.arange(features.shape[0], device=features.device)
    similarity = covered.new_empty(*covered.shape, 1)
    for step in range(num_tokens):
        pick = covered.argmin(1)
        picks[:, step] = pick
        torch.bmm(unit, unit[image, pick].unsqueeze(-1), out=similarity)
        torch.maximum(covered, similarity[..., 0], out=covered)
        covered.scatter_(1, pick[:, None], float("inf"))
    return picks


def gram(features: Tensor, selected: Tensor, num_tokens: int) -> Tensor:
    """All N x N similarities first, then steps that only look them up."""
    unit = _unit_rows(features)
    return _look_up(torch.bmm(unit, unit.transpose(1, 2)), selected, num_tokens)


def _look_up(similarities: Tensor, selected: Tensor, num_tokens: int) -> Tensor:
    image = torch.arange(similarities.shape[0], device=similarities.device)
    covered = similarities[image[:, None], selected].amax(1)
    covered.scatter_(1, selected, float("inf"))
    picks = selected.new_empty(similarities.shape[0], num_tokens)
    for step in range(num_tokens):
        pick = covered.argmin(1)
        picks[:, step] = pick
        torch.maximum(covered, similarities[image, pick], out=covered)
        covered.scatter_(1, pick[:, None], float("inf"))
    return picks


def gram_native(features: Tensor, selected: Tensor, num_tokens: int) -> Tensor:
    """``gram`` with the product in the features' dtype, which half precision has faster units for;
    the similarities are then rounded to it."""
    unit = _unit_rows(features).to(features.dtype)
    similarities = torch.bmm(unit, unit.transpose(1, 2))
    return _look_up(similarities, selected, num_tokens)


def _start(features: Tensor, selected: Tensor, native: bool) -> tuple[Tensor, Tensor, Tensor]:
    """What the steps read [B, N, D], the inverse norms that it still needs, and ``covered``."""
    if not native:
        unit = _unit_rows(features)
        return unit, unit.new_ones(unit.shape[:2]), _covered_by(unit, selected)
    inverse = features.float().square().sum(-1).rsqrt()
    rows = features.gather(1, selected[..., None].expand(-1, -1, features.shape[2])).float()
    rows = rows * inverse.gather(1, selected)[..., None]
    covered = torch.bmm(features.float(), rows.transpose(1, 2)).amax(-1) * inverse
    return features, inverse, covered.scatter(1, selected, float("inf"))


def _steps(features: Tensor, inverse: Tensor, covered: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """``count`` steps, unrolled. Products and sums, which fuse with the conversion to float32; as a
    matrix product each would be ``batched`` again."""
    picks = []
    for _ in range(count):
        pick = covered.argmin(1, keepdim=True)
        row = features.gather(1, pick[..., None].expand(-1, -1, features.shape[2]))
        row = row.float() * inverse.gather(1, pick)[..., None]
        similarity = (features.float() * row).sum(-1) * inverse
        covered = covered.maximum(similarity).scatter(1, pick, float("inf"))
        picks.append(pick)
    return torch.cat(picks, 1), covered


@functools.cache  # so that cases of one shape share what is compiled
def compiled(steps: int, native: bool) -> Complete:
    """``torch.compile`` on the start and on a few steps at once: one fused pass over the features a
    step. Several steps a call, as one call costs about as much as a step over a small image.

    ``native`` keeps half precision as it is in memory and converts on the fly.
    """
    torch._dynamo.config.recompile_limit = 32  # shapes and dtypes; 8 would be too few
    start = torch.compile(functools.partial(_start, native=native), fullgraph=True, dynamic=False)
    step = torch.compile(functools.partial(_steps, count=steps), fullgraph=True, dynamic=False)

    def complete(features: Tensor, selected: Tensor, num_tokens: int) -> Tensor:
        features, inverse, covered = start(features, selected)
        picks = []
        for _ in range(0, num_tokens, steps):
            some, covered = step(features, inverse, covered)
            picks.append(some)
        return torch.cat(picks, 1)[:, :num_tokens]

    return complete


EAGER: dict[str, Complete] = {
    "eager-per-image": per_image,
    "eager-batched": batched,
    "eager-gram": gram,
}
