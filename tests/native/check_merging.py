"""Merging, checked against its definition, and copying of rows."""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np
from arrays import SCALARS, at_end_of_page, decode, encode, nearest, random_mask
from check_completion import cosine, lattice

WORST = float(np.finfo(np.float32).min)


def merge(
    merger: object,
    tokens: np.ndarray,
    scalar: str,
    features: np.ndarray,
    features_scalar: str,
    indices: list[int],
    valid: list[bool],
    pieces: int = 1,
) -> np.ndarray:
    out = at_end_of_page(np.full((len(indices), tokens.shape[1]), 7, tokens.dtype))
    merger.merge(tokens, scalar, features, features_scalar, indices, valid, pieces, out)
    return out


def groups(features: np.ndarray, indices: list[int], valid: list[bool]) -> list[list[int]]:
    """The definition in float64: the members of each slot, ascending."""
    slots = {n: slot for slot, n in reversed(list(enumerate(indices))) if n >= 0}
    members: list[list[int]] = [[] for _ in indices]
    for n, token in enumerate(features):
        if n in slots:
            members[slots[n]].append(n)
        elif valid[n] and slots:
            similarity = {kept: cosine(token, features[kept]) for kept in sorted(slots)}
            numbers = {k: s if math.isfinite(s) else WORST for k, s in similarity.items()}
            members[slots[max(numbers, key=numbers.__getitem__)]].append(n)
    return members


def means(tokens: np.ndarray, scalar: str, members: list[list[int]]) -> np.ndarray:
    """Returns the bit patterns of the means, for tokens with exact sums."""
    rows = [tokens[group].sum(0) if group else np.zeros_like(tokens[0]) for group in members]
    sizes = np.maximum([len(group) for group in members], 1).astype(np.float32)
    return nearest(np.asarray(rows, np.float32) / sizes[:, None], scalar)


def random_indices(rng: np.random.Generator, num_tokens: int, width: int) -> list[int]:
    """Returns distinct tokens in random order, and some unused slots."""
    indices = rng.permutation(num_tokens + width)[:width]
    return [int(n) if n < num_tokens else -1 for n in indices]


def check_exact_similarities_give_the_exact_groups(core: ModuleType, isa: str) -> None:
    rng = np.random.default_rng(30)
    merger = core.Merger(isa)
    for trial in range(120):
        num_tokens, dim = int(rng.integers(1, 50)), int(rng.integers(4, 40))
        width = int(rng.integers(1, 70))
        scalar, features_scalar = SCALARS[trial % 3], SCALARS[trial // 3 % 3]
        features = lattice(rng, num_tokens, dim)
        tokens = rng.integers(-100, 101, (num_tokens, width)).astype(np.float64)
        indices = random_indices(rng, num_tokens, int(rng.integers(1, 20)))
        valid = random_mask(rng, num_tokens)
        merged = merge(
            merger,
            at_end_of_page(encode(tokens, scalar)),
            scalar,
            at_end_of_page(encode(features, features_scalar)),
            features_scalar,
            indices,
            valid,
        )
        expected = means(tokens, scalar, groups(features, indices, valid))
        np.testing.assert_array_equal(merged, expected, str(trial))


def check_groups_are_certified(core: ModuleType, isa: str) -> None:
    """Uses enough tokens for several batches of tokens and of kept tokens."""
    rng = np.random.default_rng(31)
    merger = core.Merger(isa)
    for num_tokens, num_kept, dim in ((400, 150, 40), (90, 50, 5000), (37, 9, 1)):
        for scalar in SCALARS:
            features = encode(rng.standard_normal((num_tokens, dim)), scalar)
            indices = rng.permutation(num_tokens)[:num_kept].tolist()
            members = np.eye(num_tokens, dtype=np.float32)
            merged = merge(
                merger, members, "float32", features, scalar, indices, [True] * num_tokens
            )
            # Each row of `merged` holds 1 / group size for each member of its group.
            assert ((merged > 0).sum(0) == 1).all()
            slot = (merged > 0).argmax(0)
            values = decode(features, scalar)
            unit = values / np.linalg.norm(values, axis=1, keepdims=True)
            similarity = unit @ unit[indices].T
            chosen = similarity[np.arange(num_tokens), slot]
            others = np.setdiff1d(np.arange(num_tokens), indices)
            assert (slot[indices] == np.arange(num_kept)).all()
            assert (chosen[others] >= similarity[others].max(1) - 1e-5).all()


def check_neither_pieces_nor_strides_matter_to_means(core: ModuleType, isa: str) -> None:
    rng = np.random.default_rng(32)
    num_tokens, dim = 333, 261
    values = rng.standard_normal((num_tokens, dim))
    indices = random_indices(rng, num_tokens, 40)
    valid = random_mask(rng, num_tokens)
    for scalar in SCALARS:
        encoded = encode(values, scalar)
        whole = merge(core.Merger(isa), encoded, scalar, encoded, scalar, indices, valid)
        exact = np.zeros((40, dim))
        for slot, group in enumerate(groups(decode(encoded, scalar), indices, valid)):
            if group:
                exact[slot] = decode(encoded, scalar)[group].mean(0)
        error = {"float32": 1e-6, "bfloat16": 2.0**-8, "float16": 2.0**-11}[scalar]
        assert np.allclose(decode(whole, scalar), exact, rtol=error, atol=1e-6)

        wide = np.full((2 * num_tokens, 3 * dim + 1), 7, encoded.dtype)
        views = [
            wide[::2, 1 : dim + 1],
            wide[:num_tokens, 1::3],
            np.full((dim, num_tokens), 7, encoded.dtype).T,
            wide[num_tokens - 1 :: -1, dim - 1 :: -1][:num_tokens],
        ]
        merger = core.Merger(isa)
        # Reused buffers must not affect the next image.
        merge(merger, encoded[5:50], scalar, encoded[5:50], scalar, [1, 7], [True] * 45, 2)
        for pieces in (2, 3, 7, 400):
            again = merge(merger, encoded, scalar, encoded, scalar, indices, valid, pieces)
            np.testing.assert_array_equal(again, whole)
        for view in views:
            view[...] = encoded
            again = merge(merger, view, scalar, view, scalar, indices, valid, 3)
            np.testing.assert_array_equal(again, whole)


def check_what_is_no_number_attracts_least(core: ModuleType, isa: str) -> None:
    rng = np.random.default_rng(33)
    merger = core.Merger(isa)
    for scalar in SCALARS:
        features = lattice(rng, 40, 9)
        features[4, 3], features[9, 0], features[20, 8] = math.nan, math.inf, -math.inf
        features[33] = math.nan
        features[11] = features[30] = 0
        tokens = rng.integers(-100, 101, (40, 5)).astype(np.float64)
        encoded = encode(tokens, scalar), scalar, encode(features, scalar), scalar
        for indices in ([4], [9, 4, 33], [30, 20, 2], [33, 11], [7, 4, 1], [20, 33, 9, 4]):
            merged = merge(merger, *encoded, indices, [True] * 40)
            expected = means(tokens, scalar, groups(features, indices, [True] * 40))
            np.testing.assert_array_equal(merged, expected, str(indices))


def check_empty_slots_and_images(core: ModuleType, isa: str) -> None:
    merger = core.Merger(isa)
    tokens = np.arange(1, 13, dtype=np.float32).reshape(4, 3)
    image = tokens, "float32", tokens, "float32"
    assert not merge(merger, *image, [-1, -5], [True] * 4).any()
    assert merge(merger, *image, [], [True] * 4).shape == (0, 3)
    np.testing.assert_array_equal(merge(merger, *image, [2, -1], [False] * 4)[0], tokens[2])
    repeated = merge(merger, *image, [1, 1, -1, 1], [True] * 4)
    np.testing.assert_array_equal(repeated[0], tokens.mean(0))
    assert not repeated[1:].any()
    nothing = tokens[:0], "float32", tokens[:0], "float32"
    assert not merge(merger, *nothing, [-1], []).any()
    narrow = tokens[:, :0], "float32", tokens, "float32"
    assert merge(merger, *narrow, [1], [True] * 4).shape == (1, 0)
    flat = tokens, "float32", tokens[:, :0], "float32"
    np.testing.assert_array_equal(merge(merger, *flat, [3], [True] * 4)[0], tokens.mean(0))


def check_rows_are_copied(core: ModuleType, _: str) -> None:
    rng = np.random.default_rng(34)
    for scalar in SCALARS:
        bits = "uint32" if scalar == "float32" else "uint16"
        for width in (0, 1, 3, 17, 64, 100):
            values = rng.integers(0, np.iinfo(bits).max, (5, width), bits, endpoint=True)
            rows = at_end_of_page(values).view(np.float32 if scalar == "float32" else np.uint16)
            views = [rows, rows[::-1, ::-1], rows[:, ::3], np.ascontiguousarray(rows.T).T]
            for view in views:
                for index in range(-2, 5):
                    out = at_end_of_page(np.full(view.shape[1], 7, view.dtype))
                    core.copy_row(view, scalar, index, out)
                    expected = np.ascontiguousarray(view[index]).view(bits) if index >= 0 else 0
                    np.testing.assert_array_equal(out.view(bits), expected)
