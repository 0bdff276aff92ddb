"""Average pooling: means of neighbouring tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clasp_kernels.upload import upload

from ._selections import selection_of
from .pooling import PooledSelection, pool_tokens
from .registry import register_rule

# Squared distances this close are ties. Those of tokens on a grid differ by rounding or by more.
_TIE = 1e-7


@register_rule("pool", uses_salience=False, uses_places=True, pools=True)
def pool(
    features: Tensor,
    salience: Tensor,
    budget: Sequence[int],
    *,
    places: Tensor,
    valid: Tensor | None = None,
) -> PooledSelection:
    """Average neighbouring tokens, in as many cells of an image as its budget R.

    An image of N tokens is cut into A = sqrt(R * height / width) bands, rounded, and each band into
    cells. The first i bands have c = i * R // A cells and, in the order of (y, x, index),
    c * N // R tokens. The first j of a band's k cells have, in the order of (x, y, index),
    j * n // k of its n tokens. No cell is empty. For 24 x 24 tokens, R = 144 is average pooling of
    2 x 2, and R = 64 of 3 x 3.

    The tokens of several views of an image, such as the whole and its tiles, are pooled by where
    they lie in the image. A video is pooled within its frames, which share R in proportion to their
    tokens. Only if R is smaller than the number of frames are consecutive ones pooled together.

    The token nearest to the mean place of its cell gives the mean its place in the prompt and its
    position id; ties go to the lower index. No token is a pivot.

    Needs places alone, and works only before the LLM. Costs sorts of [B, N] and a mean, in eager
    PyTorch: no op of this package fits.

    >>> import torch
    >>> y, x = torch.meshgrid(torch.arange(2.0), torch.arange(4.0), indexing="ij")
    >>> places = torch.stack([0 * x, (y + 0.5) / 4, (x + 0.5) / 4], -1).view(1, 8, 3)
    >>> pooled = pool(torch.ones(1, 8, 2), torch.zeros(1, 8), [2], places=places)
    >>> pooled.indices, pooled.groups
    (tensor([[0, 2]]), tensor([[0, 0, 1, 1, 0, 0, 1, 1]]))
    """
    width = max(budget, default=0)
    if features.shape[0] == 0 or features.shape[1] == 0 or width == 0:
        nothing = torch.full(features.shape[:2], -1, dtype=torch.int64, device=features.device)
        return PooledSelection(*selection_of(nothing, budget), nothing)
    cells = upload(list(budget), places.device)[:, None]
    is_pooled = (cells > 0).expand(places.shape[:2])
    if valid is not None:
        is_pooled = is_pooled & valid
    total = is_pooled.sum(1, keepdim=True).clamp_min(1)
    cells = cells.minimum(total)  # [B, 1]
    axes = places.double().masked_fill(~is_pooled[..., None], float("inf")).movedim(-1, 0)
    time, y, x = axes.contiguous()

    # A frame earns R / N cells for each of its tokens. Frames that only together earn a whole cell
    # are one part, named by its first cell: the frame after one that earned none begins with the
    # same cell.
    earlier = torch.searchsorted(time.sort(dim=1).values, time)
    part = (earlier * cells // total).where(is_pooled, cells)
    in_order = part.sort(dim=1).values
    later = torch.searchsorted(in_order, part, right=True)
    share = (torch.cat([in_order, cells], dim=1).gather(1, later) - part).clamp_min(1)

    aspect = _extent(y, is_pooled) / _extent(x, is_pooled)
    # An image without tokens has NaN. Bands may outnumber cells: then some bands have none.
    bands = (share * aspect).sqrt().round().nan_to_num(1.0, posinf=1.0).clamp_min(1).long()
    cell = _cut(part, share, y, x)
    band = ((cell + 1) * bands - 1) // share
    first, last = share * band // bands, share * (band + 1) // bands
    groups = part + first + _cut(part + first, last - first, x, y)
    groups = groups.where(is_pooled, -1)

    representatives = _nearest_to_mean(places.double(), groups, width)
    selection = selection_of(representatives, budget)
    # Kept tokens are in the order of their index, which is not that of their cells.
    kept = selection.indices.masked_fill(selection.indices < 0, features.shape[1])
    kept_by = representatives.gather(1, groups.clamp_min(0))
    return PooledSelection(*selection, torch.searchsorted(kept, kept_by).where(is_pooled, -1))


def _extent(along: Tensor, counts: Tensor) -> Tensor:
    """Return the size [B, 1] of each image, in which tokens lie symmetrically."""
    low = along.masked_fill(~counts, float("inf")).amin(1, keepdim=True)
    return low + along.masked_fill(~counts, float("-inf")).amax(1, keepdim=True)


def _cut(part: Tensor, pieces: Tensor, *keys: Tensor) -> Tensor:
    """Return the piece of each token if each ``part`` of the tokens, in the order of the keys and
    of the index, is cut into ``pieces`` that are equal up to one token. All are [B, N]."""
    place = torch.arange(part.shape[1], device=part.device).expand_as(part)
    order = place
    for key in (*reversed(keys), part):
        order = order.gather(1, key.gather(1, order).argsort(dim=1, stable=True))
    parts = part.gather(1, order)
    start, stop = (torch.searchsorted(parts, part, right=right) for right in (False, True))
    place = torch.empty_like(order).scatter_(1, order, place)
    return ((place - start + 1) * pieces - 1) // (stop - start)


def _nearest_to_mean(places: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """Return the token of each group that is nearest to the group's mean place, ties to the lower
    index: [B, R] int64, -1 for a group without tokens."""
    num_images, num_tokens = groups.shape
    means = pool_tokens(places, groups, num_groups)
    slot = groups.where(groups >= 0, num_groups)  # a last one for tokens that are in no group
    own = means.gather(1, groups.clamp_min(0)[..., None].expand_as(places))
    distance = (places - own).square().sum(-1)
    least = distance.new_full((num_images, num_groups + 1), float("inf"))
    least = least.scatter_reduce(1, slot, distance, "amin")
    is_nearest = distance <= least.gather(1, slot) + _TIE
    index = torch.arange(num_tokens, device=groups.device).expand_as(groups)
    index = index.where(is_nearest, num_tokens)
    found = torch.full_like(least, num_tokens, dtype=torch.int64)
    found = found.scatter_reduce(1, slot, index, "amin")[:, :num_groups]
    return found.where(found < num_tokens, -1)
