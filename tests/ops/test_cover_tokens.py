"""Greedy facility location: exact where sums are, certified elsewhere."""

import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from inputs import (
    DTYPES,
    draw_mask,
    dtypes,
    dtypes_for,
    dyadic_features,
    exact_weights,
    generator,
    masks,
    random_features,
    seeds,
)
from test_complete_tokens import random_selected

from clasp_kernels import cover_tokens

OP = "cover_tokens"
NAN, INF = float("nan"), float("inf")
EMPTY = torch.empty(1, 0, dtype=torch.int64)

shapes = {
    "seed": seeds,
    "batch": st.integers(1, 3),
    "tokens": st.integers(0, 14),
    "selections": st.integers(0, 5),
    "picks": st.integers(0, 16),
    "mask": masks,
    "weighted": st.booleans(),
    "preferred": st.booleans(),
}


@given(**shapes)
def test_equals_the_oracle_where_gains_are_exact(
    backend, seed, batch, tokens, selections, picks, mask, weighted, preferred
) -> None:
    features = dyadic_features(seed, batch, tokens)
    selected = random_selected(seed, batch, tokens, selections)
    options = {
        "weights": exact_weights(seed, batch, tokens) if weighted else None,
        "preference": exact_weights(seed + 7, batch, tokens) if preferred else None,
        "valid": draw_mask(mask, seed, batch, tokens),
    }
    # 1e-20 counts as 0, and no other weight is so small that a sum would round.
    expected = oracle.cover_tokens(features, selected, picks, **options)
    for dtype in dtypes_for(backend, seed):
        assert torch.equal(cover_tokens(features.to(dtype), selected, picks, **options), expected)


@given(**shapes, dtype=dtypes, width=st.integers(1, 40), weight_dtype=dtypes)
def test_every_pick_is_certified(
    backend, seed, batch, tokens, selections, picks, mask, weighted, preferred, dtype, width,
    weight_dtype,
) -> None:  # fmt: skip
    features = random_features(seed, batch, tokens, width, dtype)
    selected = random_selected(seed, batch, tokens, selections)
    weights = torch.rand(2, batch, tokens, generator=generator(seed)).to(weight_dtype)
    if seed % 2:
        weights[:, :, : tokens // 3] = torch.tensor([0.0, -1.0, NAN, 4.0])[seed // 2 % 4]
    options = {
        "weights": weights[0] if weighted else None,
        "preference": weights[1] if preferred else None,
        "valid": draw_mask(mask, seed, batch, tokens),
    }
    actual = cover_tokens(features, selected, picks, **options)
    oracle.certify_cover(features, selected, actual, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_certified_at_a_realistic_width(backend, dtype) -> None:
    features = random_features(1, 1, 40, 203, dtype)
    for selected in (torch.tensor([[3, 17, -1, 30]]), EMPTY):
        picks = cover_tokens(features, selected, 12)
        oracle.certify_cover(features, selected, picks)


def test_represents_the_many_before_the_outlier(backend) -> None:
    features = torch.tensor([[[-1.0, -1.0], [1.0, 0.1], [1.0, 0.0], [1.0, -0.1]]])
    assert cover_tokens(features, EMPTY, 2).tolist() == [[2, 0]]


def test_a_weight_says_how_much_a_token_has_to_be_represented(backend) -> None:
    features = torch.tensor([[[-1.0, -1.0], [1.0, 0.1], [1.0, 0.0], [1.0, -0.1]]])
    weights = torch.tensor([[9.0, 1.0, 1.0, 1.0]])
    assert cover_tokens(features, EMPTY, 2, weights=weights).tolist() == [[0, 2]]


def test_a_preference_says_how_much_it_counts_to_pick_a_token(backend) -> None:
    features = torch.tensor([[[-1.0, -1.0], [1.0, 0.1], [1.0, 0.0], [1.0, -0.1]]])
    preference = torch.tensor([[1.0, 1.0, 0.5, 1.0]])
    assert cover_tokens(features, EMPTY, 2, preference=preference).tolist() == [[1, 0]]


def test_a_token_that_is_not_valid_is_not_counted_but_a_selected_one_represents(backend) -> None:
    features = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]])
    valid = torch.tensor([[True, True, True, False, False]])
    assert cover_tokens(features, EMPTY, 1, valid=valid).tolist() == [[0]]
    assert cover_tokens(features, torch.tensor([[3]]), 2, valid=valid).tolist() == [[0, 1]]


def test_ties_go_to_the_lower_index_and_running_out_pads(backend) -> None:
    features = torch.ones(1, 4, 2)
    assert cover_tokens(features, torch.tensor([[1]]), 5).tolist() == [[0, 2, 3, -1, -1]]


def test_counts_per_image(backend) -> None:
    features = random_features(1, 3, 20, 8, torch.float32)
    selected = torch.tensor([[3], [-1], [5]])
    whole = cover_tokens(features, selected, 6)
    some = cover_tokens(features, selected, [2, 6, 0])
    for b, count in enumerate([2, 6, 0]):
        assert torch.equal(some[b, :count], whole[b, :count])
        assert (some[b, count:] == -1).all()


@given(seed=seeds, dtype=dtypes, garbage=st.lists(st.sampled_from([NAN, INF, -INF]), min_size=1))
def test_garbage_never_breaks_the_result(backend, seed, dtype, garbage) -> None:
    random = generator(seed)
    features = random_features(seed, 1, 10, 4, dtype)
    bad = torch.randint(10, (len(garbage),), generator=random)
    features[0, bad, torch.randint(4, (len(garbage),), generator=random)] = torch.tensor(
        garbage, dtype=dtype
    )
    valid = draw_mask("some", seed, 1, 10)
    picks = cover_tokens(features, EMPTY, 10, valid=valid)
    oracle.certify_cover(features, EMPTY, picks, valid=valid)


def test_everything_is_garbage(backend) -> None:
    features = torch.full((1, 4, 3), NAN)
    assert cover_tokens(features, torch.tensor([[2]]), 4).tolist() == [[0, 1, 3, -1]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_weights_change_nothing(backend, dtype) -> None:
    features = random_features(1, 2, 21, 19, dtype)
    selected = torch.tensor([[3, 17, -1, 20], [-1, -1, -1, -1]])
    expected = cover_tokens(features, selected, 9)
    for value in (0.0, 0.3, 1e30, NAN):
        weights = torch.full((2, 21), value)
        options = {"weights": weights, "preference": weights.flip(1)}
        assert torch.equal(cover_tokens(features, selected, 9, **options), expected)


def test_many_tokens(backend) -> None:
    features = dyadic_features(3, 1, 90)
    selected = torch.tensor([[5, 40]])
    picks = cover_tokens(features, selected, 9)
    assert torch.equal(picks, oracle.cover_tokens(features, selected, 9))
