"""Ranking of an image's tokens by salience: keys, and ranks by counting.

The rank of a token is the number of tokens of its image with a smaller key. A program counts the
ranks of its own tokens without a sort and without waiting for other programs, at N comparisons per
token.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .order import RANK_OF_INVALID, RETIRED, descending_rank, rank_of, ranked


@triton.jit
def salience_ranks(
    p_salience,  # [N], of the image
    p_valid,  # [N] bool, of the image; not read unless HAS_VALID
    b_token,
    num_tokens,
    stride_salience,
    stride_valid,
    HAS_VALID: tl.constexpr,
):
    """The rank (int32) of each token by salience alone; the most salient token has the smallest.

    NaN comes after every number. Invalid tokens, and indices of ``num_tokens`` or more, come last
    with RANK_OF_INVALID.
    """
    m_token = b_token < num_tokens
    b_offset = b_token.to(tl.int64)
    b_salience = tl.load(p_salience + b_offset * stride_salience, mask=m_token, other=0.0)
    m_valid = m_token
    if HAS_VALID:
        m_valid = tl.load(p_valid + b_offset * stride_valid, mask=m_token, other=0) != 0
    return descending_rank(b_salience.to(tl.float32), m_valid)


@triton.jit
def salience_keys(
    p_salience,
    p_valid,
    b_token,
    num_tokens,
    stride_salience,
    stride_valid,
    HAS_VALID: tl.constexpr,
):
    """The keys (int64) of an image's tokens: :func:`salience_ranks` with ties broken by index.

    ``b_token`` has any shape. Indices of ``num_tokens`` or more get the key RETIRED.
    """
    b_rank = salience_ranks(
        p_salience, p_valid, b_token, num_tokens, stride_salience, stride_valid, HAS_VALID
    )
    return tl.where(b_token < num_tokens, ranked(b_rank, b_token), RETIRED)


@triton.jit
def is_candidate(b_key):
    """Whether the token may be chosen: it exists and is valid."""
    return rank_of(b_key) != RANK_OF_INVALID


@triton.jit
def counted_ranks(
    b_key,  # [T]
    p_salience,
    p_valid,
    num_tokens,
    stride_salience,
    stride_valid,
    HAS_VALID: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """[T] int32: for each of ``b_key``, the number of tokens of the image with a smaller key.

    If ``b_key`` comes from :func:`salience_keys` with the same arguments, the ranks of all tokens
    are 0..num_tokens-1 without repeats, candidates first. The P most salient valid tokens, ties to
    the lower index, are therefore ``is_candidate(b_key) & (counted_ranks(b_key, ...) < P)``.

    T x BLOCK_N comparisons are made at once.
    """
    b_count = tl.zeros((b_key.shape[0], BLOCK_N), tl.int32)
    for first in range(0, num_tokens, BLOCK_N):
        b_other = salience_keys(
            p_salience,
            p_valid,
            first + tl.arange(0, BLOCK_N),
            num_tokens,
            stride_salience,
            stride_valid,
            HAS_VALID,
        )
        b_count += (b_other[None, :] < b_key[:, None]).to(tl.int32)
    return tl.sum(b_count, axis=1)
