"""The calls with which the check compiles every kernel of each Triton launcher.

A case is one line in CASES: a builder from below with the options that differ from its defaults.
The launcher gets the builder's result, in the order of the op's schema. The lists are not full
products: each option and shape class is combined with the defaults, in the dtypes for which it
matters, which keeps the check at seconds per op. The batch is not an option, because another batch
must not trigger a compilation.

EXCEPTIONS says why some kernels may spill, or use so many registers that they halve occupancy: see
Exemption in kernel_report.py.
"""

from __future__ import annotations

from typing import Any

from kernel_report import Exemption
from torch import bfloat16, dtype, float16, float32
from triton_case import Case, case, indices, mask, meta

FLOATS = (float32, bfloat16, float16)
DIMS = (1024, 3584)
TOKENS = (576, 2880, 8192)


@case
def fuse_layers(
    batch: int,
    *,
    scalar: dtype = bfloat16,
    L: int = 4,
    N: int = 576,
    D: int = 1024,
    normalize: str = "none",
    categories: int = 7,
    cls: int = 1,
) -> tuple[Any, ...]:
    """Layers whose first ``cls`` tokens are cut off, so they are not contiguous."""
    layers = [meta(batch, cls + N, D, scalar=scalar)[:, cls:] for _ in range(L)]
    weights = meta(max(categories, 1), L, scalar=float32)
    return layers, weights, indices(batch) if categories else None, normalize


@case
def attention_salience(
    batch: int,
    *,
    scalar: dtype = bfloat16,
    Hq: int = 16,
    Hkv: int = 16,
    T: int = 64,
    S: int = 640,
    d: int = 128,
    causal: bool = False,
    masked: bool = False,
    weighted: bool = False,
    start: int = 0,
) -> tuple[Any, ...]:
    """The layout of models: [B, T, H, d] with the middle dimensions swapped."""
    query = meta(batch, T, Hq, d, scalar=scalar).transpose(1, 2)
    key = meta(batch, S, Hkv, d, scalar=scalar).transpose(1, 2)
    key_valid = mask(batch, S) if masked else None
    query_weights = meta(batch, T, scalar=float32) if weighted else None
    return query, key, d**-0.5, causal, key_valid, query_weights, start, S


@case
def select_pivots(
    batch: int,
    *,
    scalar: dtype = float32,
    N: int = 576,
    K: int = 64,
    ragged: bool = False,
    masked: bool = False,
) -> tuple[Any, ...]:
    k = indices(batch) if ragged else None
    return meta(batch, N, scalar=scalar), K, k, mask(batch, N) if masked else None


@case
def complete_tokens(
    batch: int,
    *,
    scalar: dtype = bfloat16,
    N: int = 576,
    D: int = 1024,
    P: int = 32,
    M: int = 32,
    weighted: bool = False,
    masked: bool = False,
) -> tuple[Any, ...]:
    features = meta(batch, N, D, scalar=scalar)
    weights = meta(batch, N, scalar=float32) if weighted else None
    return features, indices(batch, P), M, mask(batch, N) if masked else None, weights


@case
def cover_tokens(
    batch: int,
    *,
    scalar: dtype = bfloat16,
    N: int = 576,
    D: int = 1024,
    P: int = 32,
    M: int = 32,
    ragged: bool = False,
    weighted: bool = False,
    preferred: bool = False,
    masked: bool = False,
) -> tuple[Any, ...]:
    features, counts = meta(batch, N, D, scalar=scalar), indices(batch) if ragged else None
    weights, preference = (
        meta(batch, N, scalar=float32) if given else None for given in (weighted, preferred)
    )
    valid = mask(batch, N) if masked else None
    return features, indices(batch, P), M, counts, weights, preference, valid


@case
def select_tokens(
    batch: int,
    *,
    scalar: dtype = bfloat16,
    N: int = 576,
    D: int = 1024,
    R: int = 64,
    P: int = 32,
    ragged: bool = False,
    weighted: bool = False,
    masked: bool = False,
) -> tuple[Any, ...]:
    features, salience = meta(batch, N, D, scalar=scalar), meta(batch, N, scalar=float32)
    per_image = indices(batch) if ragged else None
    weights = meta(batch, N, scalar=float32) if weighted else None
    valid = mask(batch, N) if masked else None
    return features, salience, R, per_image, P, per_image, valid, weights


@case
def gather_tokens(
    batch: int, *, scalar: dtype = bfloat16, N: int = 576, D: int = 1024, R: int = 64
) -> tuple[Any, ...]:
    return meta(batch, N, D, scalar=scalar), indices(batch, R)


@case
def merge_tokens(
    batch: int,
    *,
    scalar: dtype = bfloat16,
    features: dtype = bfloat16,
    N: int = 576,
    D: int = 1024,
    F: int = 1024,
    R: int = 64,
    masked: bool = False,
) -> tuple[Any, ...]:
    return (
        meta(batch, N, D, scalar=scalar),
        meta(batch, N, F, scalar=features),
        indices(batch, R),
        mask(batch, N) if masked else None,
    )


CASES: dict[str, list[Case]] = {
    "fuse_layers": [
        *(fuse_layers(scalar=scalar, wide=True) for scalar in FLOATS),
        *(fuse_layers(normalize=norm, scalar=s) for norm in ("l2", "rms") for s in FLOATS[:2]),
        *(fuse_layers(L=L, D=D, wide=True) for L in (1, 4, 24) for D in DIMS),
        fuse_layers(L=24, D=3584, normalize="rms", wide=True),
        fuse_layers(D=8192, normalize="l2", scalar=float32, wide=True),
        *(fuse_layers(D=16384, normalize="rms", scalar=scalar, wide=True) for scalar in FLOATS[:2]),
        fuse_layers(L=65, wide=True),
        fuse_layers(D=1001),
        fuse_layers(D=1001, normalize="l2"),
        fuse_layers(categories=0),
    ],
    "attention_salience": [
        *(attention_salience(scalar=scalar) for scalar in FLOATS),
        *(attention_salience(d=d, scalar=s) for d in (64, 72, 256) for s in FLOATS[:2]),
        *(attention_salience(T=T, S=S) for T in (1, 32, 64) for S in (640, 16384)),
        attention_salience(T=577, S=577, start=1),
        attention_salience(T=577, S=577, start=1, d=72, scalar=float32),
        attention_salience(Hq=32, Hkv=8, T=1, S=2048),
        # The counters of the first launch are a multiple of 4 for some batch sizes only.
        attention_salience(Hq=3, Hkv=3, T=1, S=2048),
        attention_salience(Hq=32, Hkv=8, T=32, S=2048, causal=True, masked=True, weighted=True),
        attention_salience(S=512, scalar=float32),
        attention_salience(S=200, T=1),
        attention_salience(causal=True),
        attention_salience(masked=True),
        attention_salience(weighted=True),
    ],
    "select_pivots": [
        *(select_pivots(scalar=scalar) for scalar in FLOATS),
        *(select_pivots(N=N, K=320) for N in (2880, 16384)),
        *(select_pivots(N=N, K=2048, ragged=True, masked=True) for N in (8192, 16384)),
    ],
    "complete_tokens": [
        *(complete_tokens(scalar=scalar) for scalar in FLOATS),
        *(complete_tokens(N=N) for N in (*TOKENS, 16384)),
        complete_tokens(N=8192, D=3584),
        *(complete_tokens(N=N, weighted=True, masked=True) for N in (576, 2880, 8192, 16384)),
        complete_tokens(masked=True, D=1001),
        complete_tokens(P=0),
    ],
    "cover_tokens": [
        *(cover_tokens(scalar=scalar) for scalar in FLOATS),
        *(cover_tokens(N=N) for N in (*TOKENS, 16384)),
        *(cover_tokens(N=16384, scalar=scalar, preferred=True) for scalar in FLOATS[::2]),
        cover_tokens(N=2880, D=3584),
        cover_tokens(N=2880, ragged=True, weighted=True, preferred=True, masked=True),
        *(cover_tokens(N=N, masked=True, D=1001) for N in (576, 16384)),
        cover_tokens(P=0, M=1),
    ],
    "select_tokens": [
        *(select_tokens(scalar=scalar) for scalar in FLOATS),
        *(select_tokens(N=N) for N in (*TOKENS, 16384)),
        *(select_tokens(N=N, D=3584) for N in (2880, 16384)),
        *(select_tokens(N=N, weighted=True) for N in (576, 8192, 16384)),
        select_tokens(ragged=True, masked=True, D=1001),
    ],
    "gather_tokens": [
        *(gather_tokens(scalar=scalar, D=D, wide=True) for scalar in FLOATS for D in DIMS),
        gather_tokens(D=1001),
    ],
    "merge_tokens": [
        *(merge_tokens(scalar=scalar, features=scalar) for scalar in FLOATS),
        merge_tokens(features=float32),
        *(merge_tokens(N=N, D=D, F=D) for N in TOKENS for D in DIMS),
        merge_tokens(R=320, masked=True),
        merge_tokens(masked=True, D=1001, F=999),
    ],
}

_LOADS_IN_SHARED_MEMORY = (
    "Three steps of features are on their way to shared memory meanwhile, without registers or "
    "warps. Those that are loaded one by one, as rows are no whole 16 bytes, keep their addresses."
)
_SPLIT_FLOATS = (
    "Each float32 of a tile becomes two tf32 in registers; the next tiles are loaded meanwhile, so "
    "that one block a multiprocessor is enough to keep it busy."
)
# One program per image; most GPUs have more multiprocessors than a batch has images.
_ALL_RANKS = "The ranks of all 16384 tokens of an image and their places are held in 255 registers."
# The Triton version that EXCEPTIONS are for: each version allocates registers differently.
JUDGED_WITH = "3.7"

EXCEPTIONS: list[Exemption] = [
    Exemption("merge_tokens._assign_kernel", _LOADS_IN_SHARED_MEMORY, warps=8),
    Exemption("salience_by_passes._statistics_kernel", _SPLIT_FLOATS, warps=8),
    Exemption("salience_by_passes._columns_kernel", _SPLIT_FLOATS, warps=8),
    Exemption("attention_salience._whole_kernel", _SPLIT_FLOATS, warps=8),
    Exemption(
        "salience_by_passes._statistics_kernel",
        "ptxas keeps float32 to 128 registers of 255 here, for twice the warps.",
        spilled=8,
        capabilities=(100,),
    ),
    Exemption(
        "attention_salience._whole_kernel",
        "All logits of 1024 keys stay in registers; 16 warps have 128 each and keep a few values "
        "that are used once a block of rows elsewhere.",
        spilled=64,
        capabilities=(80, 100),
    ),
    Exemption("select_pivots._sort_kernel", _ALL_RANKS, warps=8),
    Exemption("select_pivots._sort_kernel", _ALL_RANKS, spilled=32, capabilities=(100,)),
]
