"""The attention that each token receives."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

from .. import backends, reference
from ..backends.table import OpSpec
from ._checks import FLOATS, Arguments, as_int, may_read, without_vmap
from ._library import define_op

LARGEST_SCALE = torch.finfo(torch.float32).max


def attention_salience(
    query: Tensor,
    key: Tensor,
    *,
    scale: float | None = None,
    causal: bool = False,
    key_valid: Tensor | None = None,
    query_weights: Tensor | None = None,
    key_range: tuple[int, int] | None = None,
) -> Tensor:
    """The mean attention probability on each key, over heads and over weighted query rows.

    For every query row, softmax over its allowed keys of ``scale * q.k``. The result is the
    weighted mean over rows, and the mean over heads, of the probabilities of the reported keys. The
    model does not need to return attention weights and can use SDPA or FlashAttention. The
    reference materializes [Hq, T, S] in float32 for one image at a time.

    Args:
        query: [B, Hq, T, d]; float32, bfloat16 or float16.
        key: [B, Hkv, S, d] of the same dtype; Hq must be a multiple of Hkv (grouped-query: query
            head h reads key head h // (Hq / Hkv)).
        scale: factor on the logits; 1 / sqrt(d) by default.
        causal: the T rows are the last of the S positions, and each sees itself and earlier keys.
        key_valid: [B, S] bool; keys where it is False are masked, as padding.
        query_weights: [B, T] float, finite and not negative, normalized to sum 1; uniform by
            default. Rows of weight 0 are ignored, even if they hold NaN. If all weights are 0, the
            result is 0.
        key_range: (start, stop) of the keys to report, non-empty and inside 0..S; all by default.
            The softmax always runs over all allowed keys.

    Returns:
        [B, N] float32 with N = stop - start. A row without allowed keys adds 0.
        Deterministic: the same input gives the same bits.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape, device, head count, ``key_range``, ``scale`` or weight.

    Source: vision-encoder attention as token relevance, CLASP, arXiv 2604.12767.

    >>> import torch
    >>> from clasp_kernels import attention_salience
    >>> query = torch.tensor([4.0, 0.0]).view(1, 1, 1, 2)
    >>> key = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]).view(1, 1, 3, 2)
    >>> attention_salience(query, key, scale=1.0)
    tensor([[0.9647, 0.0177, 0.0177]])
    >>> attention_salience(query, key, scale=1.0, key_range=(1, 3))
    tensor([[0.0177, 0.0177]])
    """
    arguments = Arguments("attention_salience")
    arguments.tensor("query", query, "B Hq T d", FLOATS)
    arguments.tensor("key", key, "B Hkv S d", (query.dtype,))
    query_heads, rows, width = query.shape[1:]
    key_heads, keys = key.shape[1:3]
    if rows == 0 or width == 0:
        raise ValueError(
            "attention_salience: query must have at least one row and one feature, "
            f"got shape {list(query.shape)}."
        )
    if query_heads == 0 or key_heads == 0 or query_heads % key_heads != 0:
        raise ValueError(
            "attention_salience: the heads of query must be a multiple of the heads of key, "
            f"got {query_heads} and {key_heads}."
        )
    arguments.mask("key_valid", key_valid, "B S")
    if query_weights is not None:
        arguments.tensor("query_weights", query_weights, "B T", FLOATS)
        _check_weights(query_weights)
    if scale is None:
        scale = 1.0 / math.sqrt(width)
    elif isinstance(scale, bool) or not isinstance(scale, (int, float, Real, torch.SymFloat)):
        raise TypeError(f"attention_salience: scale must be a number, got {type(scale).__name__}.")
    elif not -LARGEST_SCALE <= scale <= LARGEST_SCALE:  # math.isfinite cannot be traced
        raise ValueError(f"attention_salience: scale must be finite in float32, got {scale}.")
    causal = arguments.flag("causal", causal)
    start, stop = _check_range(key_range, keys)
    op = backends.overload("attention_salience", query.device)
    return op(query, key, float(scale), causal, key_valid, query_weights, start, stop)


def _check_weights(query_weights: Tensor) -> None:
    if query_weights.numel() == 0 or not may_read(query_weights):
        return
    query_weights = without_vmap(query_weights)
    least, most = (bound.item() for bound in query_weights.aminmax())
    if not (least >= 0 and most < math.inf):  # both bounds are NaN if any weight is NaN
        wrong = ~((query_weights >= 0) & (query_weights < math.inf))
        raise ValueError(
            "attention_salience: query_weights must be finite and not negative, "
            f"got {float(query_weights[wrong][0])}."
        )


def _check_range(key_range: tuple[int, int] | None, keys: int) -> tuple[int, int]:
    if key_range is None:
        if keys == 0:
            raise ValueError("attention_salience: key must have at least one position, got S = 0.")
        return 0, keys
    start = stop = None
    if isinstance(key_range, (tuple, list)) and len(key_range) == 2:
        start, stop = as_int(key_range[0]), as_int(key_range[1])
    if start is None or stop is None:
        raise TypeError(
            f"attention_salience: key_range must be two ints (start, stop), got {key_range!r}."
        )
    if not 0 <= start < stop <= keys:
        raise ValueError(
            "attention_salience: key_range must be non-empty and inside 0..S = "
            f"0..{keys}, got ({start}, {stop})."
        )
    return start, stop


def _fake(
    query: Tensor,
    key: Tensor,
    scale: float,
    causal: bool,
    key_valid: Tensor | None,
    query_weights: Tensor | None,
    start: int,
    stop: int,
) -> Tensor:
    return query.new_empty((query.shape[0], stop - start), dtype=torch.float32)


define_op(
    OpSpec(
        name="attention_salience",
        schema="(Tensor query, Tensor key, float scale, bool causal, Tensor? key_valid, "
        "Tensor? query_weights, SymInt start, SymInt stop) -> Tensor",
        reference=reference.attention_salience,
        fake=_fake,
        cpu=True,
        triton="clasp_kernels.triton.attention_salience:attention_salience",
        ordered_by_barriers=True,
    )
)
