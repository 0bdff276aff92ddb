"""Fuses several vision layers into one representation with per-image mixture weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import backends, reference
from ..backends.table import OpSpec
from ._checks import FLOATS, INDEX, Arguments
from ._library import define_op
from ._vmap import fuse_layers_rule

NORMALIZATIONS = (None, "l2", "rms")


def fuse_layers(
    hidden_states: Sequence[Tensor] | Tensor,
    weights: Tensor,
    category_ids: Tensor | None = None,
    *,
    normalize: str | None = None,
) -> Tensor:
    """Class-adaptive layer fusion: a weighted sum over layers, with weights chosen per image.

    For image b and token n::

        out[b, n] = sum over l of  weights[category_ids[b], l] * norm(hidden_states[l][b, n])

    Args:
        hidden_states: L tensors [B, N, D] of one dtype and device, or one [L, B, N, D]; float32,
            bfloat16 or float16. The list form copies nothing: ``h[:, 1:]`` is read in place.
        weights: [L], or [C, L] together with ``category_ids``; float32, used as given.
        category_ids: [B] int64 in 0..C-1, the row of ``weights`` for each image.
        normalize: normalization of each layer's token before weighting: None, "l2"
            (x / abs(x); a zero vector stays zero) or "rms" (x / sqrt(mean(x^2) + 1e-6)).

    Returns:
        [B, N, D] contiguous, in the dtype of ``hidden_states``, accumulated in float32.

    A layer whose weight is exactly 0 for an image does not influence that image, even if it holds
    NaN.

    Norms come from squares summed in float32. They are exact to rounding while the largest element
    of a vector is between about 1e-18 and 1e18 in magnitude. If the sum overflows, "l2" and "rms"
    give zeros. If it underflows to 0, "l2" leaves the token unchanged. "rms" has no lower bound,
    because its epsilon dominates for such tokens.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape, device, category id or ``normalize``.

    Source: the layer fusion of CLASP, arXiv 2604.12767.

    >>> import torch
    >>> from clasp_kernels import fuse_layers
    >>> shallow, deep = torch.ones(2, 1, 3), torch.full((2, 1, 3), 10.0)
    >>> weights = torch.tensor([[0.5, 0.5], [0.0, 1.0]])  # a row per category
    >>> fuse_layers([shallow, deep], weights, torch.tensor([1, 0]))
    tensor([[[10.0000, 10.0000, 10.0000]],
            [[ 5.5000,  5.5000,  5.5000]]])
    """
    arguments = Arguments("fuse_layers")
    if isinstance(hidden_states, Tensor):
        arguments.tensor("hidden_states", hidden_states, "L B N D", FLOATS)
        layers = list(hidden_states.unbind(0))
    elif isinstance(hidden_states, Sequence):
        layers = list(hidden_states)
        arguments.sizes["L"] = len(layers)
        for layer, states in enumerate(layers):
            name = f"hidden_states[{layer}]"
            dtypes = FLOATS if layer == 0 else (layers[0].dtype,)
            arguments.tensor(name, states, "B N D", dtypes)
    else:
        raise TypeError(
            "fuse_layers: hidden_states must be a sequence of tensors or one tensor, "
            f"got {type(hidden_states).__name__}."
        )
    if not layers:
        raise ValueError("fuse_layers: hidden_states must hold at least one layer, got none.")
    if normalize not in NORMALIZATIONS:
        raise ValueError(f"fuse_layers: normalize must be None, 'l2' or 'rms', got {normalize!r}.")

    if category_ids is None:
        if isinstance(weights, Tensor) and weights.dim() == 2:
            raise ValueError(
                "fuse_layers: weights must be [L] without category_ids, which choose among rows, "
                f"got shape {list(weights.shape)}."
            )
        weights = arguments.tensor("weights", weights, "L", (torch.float32,))[None]
    else:
        arguments.tensor("weights", weights, "C L", (torch.float32,))
        if weights.shape[0] == 0:
            raise ValueError(
                "fuse_layers: weights must have at least one row, which category_ids chooses, "
                f"got shape {list(weights.shape)}."
            )
        arguments.tensor("category_ids", category_ids, "B", INDEX)
        arguments.indices_in_range(
            "category_ids", category_ids, 0, weights.shape[0], "the rows of weights"
        )
    op = backends.overload("fuse_layers", layers[0].device)
    return op(layers, weights, category_ids, normalize or "none")


def _fake(
    hidden_states: list[Tensor], weights: Tensor, category_ids: Tensor | None, normalize: str
) -> Tensor:
    return hidden_states[0].new_empty(hidden_states[0].shape)


define_op(
    OpSpec(
        name="fuse_layers",
        schema="(Tensor[] hidden_states, Tensor weights, Tensor? category_ids, str normalize) "
        "-> Tensor",
        reference=reference.fuse_layers,
        fake=_fake,
        vmap=fuse_layers_rule,
        cpu=True,
        triton="clasp_kernels.triton.fuse_layers:fuse_layers",
    )
)
