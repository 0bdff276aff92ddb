"""How the tokens of an image rank by salience: their keys, and ranks by counting.

A token's rank is how many tokens of its image have a smaller key. Every program can count the
ranks of its own tokens alone, without a sort and without waiting for another program, for N
comparisons a token.
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
    """What of an image's tokens is ranked before the index (int32): the smallest the most salient.

    NaN comes after every number and what may not be chosen, which is also what ``num_tokens`` and
    more name, after NaN: RANK_OF_INVALID.
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
    """The keys (int64) of an image's tokens: as :func:`salience_ranks`, ties by index.

    ``b_token`` has any shape; what it holds of ``num_tokens`` or more has RETIRED as its key.
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
    """[T] int32: how many of all tokens of the image have a smaller key than each of ``b_key``.

    For keys of tokens of this image, from :func:`salience_keys` with the same arguments, the ranks
    are 0..num_tokens-1, each once, the candidates' before the others'. So the P most salient valid
    tokens, ties to the lower index, are ``is_candidate(b_key) & (counted_ranks(b_key, ...) < P)``.

    BLOCK_N is how many tokens are compared at once; there are T x BLOCK_N comparisons in flight.
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
