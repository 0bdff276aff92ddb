"""How relevant each visual token is to the prompt, from embeddings that the model has anyway."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def prompt_relevance(tokens: Tensor, text: Tensor, text_valid: Tensor | None = None) -> Tensor:
    """Return the mean cosine similarity of each visual token with the prompt's text tokens.

    Both are embeddings at the input of the language model, so no other model is needed. Published
    rules often use a CLIP text encoder instead, whose similarities are better aligned with images.

    Args:
        tokens: [B, N, D], the projected visual tokens.
        text: [B, T, D], the embeddings of the prompt's text.
        text_valid: [B, T] bool; False where a column is no text. All by default.

    Returns:
        [B, N] float32 in -1..1. 0 for a zero vector or if there is no text; NaN and Inf in
        ``tokens`` give NaN.

    >>> import torch
    >>> tokens = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]]])
    >>> prompt_relevance(tokens, torch.tensor([[[3.0, 0.0]]]))
    tensor([[ 1.,  0., -1.]])
    """
    return similarity_to(tokens, text_direction(text, text_valid))


def text_direction(text: Tensor, text_valid: Tensor | None = None) -> Tensor:
    """Return the mean of the unit vectors of ``text`` [B, T, D], [B, D] float32."""
    unit = functional.normalize(text.float(), dim=-1)
    if text_valid is None:
        return unit.sum(1) / max(text.shape[1], 1)
    unit = unit.masked_fill(~text_valid[..., None], 0.0)
    return unit.sum(1) / text_valid.sum(1, keepdim=True).clamp_min(1)


def similarity_to(tokens: Tensor, direction: Tensor) -> Tensor:
    """Return the cosine of each of ``tokens`` [B, N, D] with each unit vector that ``direction``
    [B, D] is the mean of, on average: [B, N] float32."""
    return (functional.normalize(tokens.float(), dim=-1) @ direction[..., None])[..., 0]


def as_weights(scores: Tensor | None, valid: Tensor | None) -> Tensor | None:
    """Return scores [B, N] scaled to 0..1 in each image, 0 for NaN; None for None.

    The lowest finite score of an image's valid tokens becomes 0 and the highest 1. If they are all
    the same, all are 1.
    """
    if scores is None:
        return None
    scores = scores.float()
    if scores.shape[1] == 0:
        return scores
    counts = scores.isfinite() if valid is None else scores.isfinite() & valid
    low = scores.masked_fill(~counts, float("inf")).amin(1, keepdim=True)
    high = scores.masked_fill(~counts, float("-inf")).amax(1, keepdim=True)
    span = high - low
    scaled = torch.where(span > 0, (scores - low) / span, 1.0)
    return scaled.clamp(0, 1).masked_fill(scores.isnan(), 0.0)
