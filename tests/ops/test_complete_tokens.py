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
    exact_features,
    exact_weights,
    generator,
    masks,
    random_features,
    seeds,
)
from torch import Tensor

from clasp_kernels import complete_tokens

OP = "complete_tokens"
NAN, INF = float("nan"), float("inf")


def random_selected(seed: int, batch: int, tokens: int, width: int) -> Tensor:
    """[batch, width] distinct indices with -1 sprinkled in."""
    order = torch.rand(batch, tokens + width, generator=generator(seed)).argsort(-1)[:, :width]
    return order.masked_fill(order >= tokens, -1)


shapes = {
    "seed": seeds,
    "batch": st.integers(1, 3),
    "tokens": st.integers(0, 14),
    "selections": st.integers(0, 5),
    "picks": st.integers(0, 16),
    "mask": masks,
}


@given(**shapes)
def test_equals_the_oracle_where_similarities_are_exact(
    backend, seed, batch, tokens, selections, picks, mask
) -> None:
    features = exact_features(seed, batch, tokens)
    selected = random_selected(seed, batch, tokens, selections)
    valid = draw_mask(mask, seed, batch, tokens)
    expected = oracle.complete_tokens(features, selected, picks, valid=valid)
    for dtype in dtypes_for(backend, seed):  # small integers are exact in all of them
        actual = complete_tokens(features.to(dtype), selected, picks, valid=valid)
        assert torch.equal(actual, expected)


@given(**shapes, dtype=dtypes, width=st.integers(1, 40))
def test_every_pick_is_certified(
    backend, seed, batch, tokens, selections, picks, mask, dtype, width
) -> None:
    features = random_features(seed, batch, tokens, width, dtype)
    selected = random_selected(seed, batch, tokens, selections)
    valid = draw_mask(mask, seed, batch, tokens)
    actual = complete_tokens(features, selected, picks, valid=valid)
    oracle.certify_completion(features, selected, actual, valid=valid)


@given(**shapes)
def test_equals_the_oracle_where_gains_are_exact(
    backend, seed, batch, tokens, selections, picks, mask
) -> None:
    features = dyadic_features(seed, batch, tokens)
    weights = exact_weights(seed, batch, tokens)
    selected = random_selected(seed, batch, tokens, selections)
    valid = draw_mask(mask, seed, batch, tokens)
    expected = oracle.complete_tokens(features, selected, picks, weights, valid)
    for dtype in dtypes_for(backend, seed):
        actual = complete_tokens(features.to(dtype), selected, picks, weights=weights, valid=valid)
        assert torch.equal(actual, expected)


@given(**shapes, dtype=dtypes, width=st.integers(1, 40), weight_dtype=dtypes)
def test_every_weighted_pick_is_certified(
    backend, seed, batch, tokens, selections, picks, mask, dtype, width, weight_dtype
) -> None:
    features = random_features(seed, batch, tokens, width, dtype)
    weights = torch.rand(batch, tokens, generator=generator(seed)).to(weight_dtype)
    if seed % 2:
        weights[:, : tokens // 3] = torch.tensor([0.0, -1.0, NAN, INF])[seed // 2 % 4]
    selected = random_selected(seed, batch, tokens, selections)
    valid = draw_mask(mask, seed, batch, tokens)
    actual = complete_tokens(features, selected, picks, weights=weights, valid=valid)
    oracle.certify_completion(features, selected, actual, weights, valid)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_certified_at_a_realistic_width(backend, dtype) -> None:
    features = random_features(1, 1, 40, 203, dtype)
    selected = torch.tensor([[3, 17, -1, 30]])
    actual = complete_tokens(features, selected, 12)
    oracle.certify_completion(features, selected, actual)


@given(seed=seeds, dtype=dtypes, garbage=st.lists(st.sampled_from([NAN, INF, -INF]), min_size=1))
def test_garbage_never_breaks_the_result(backend, seed, dtype, garbage) -> None:
    """In range, valid, no repeats, and those with garbage last."""
    random = generator(seed)
    features = random_features(seed, 1, 10, 4, dtype)
    bad = torch.randint(10, (len(garbage),), generator=random)
    features[0, bad, torch.randint(4, (len(garbage),), generator=random)] = torch.tensor(
        garbage, dtype=dtype
    )
    valid = draw_mask("some", seed, 1, 10)
    good = [n for n in range(10) if n not in bad and valid[0, n]]
    start = torch.tensor([good[:1]], dtype=torch.int64).view(1, -1)
    picks = complete_tokens(features, start, 10, valid=valid)
    oracle.certify_completion(features, start, picks, valid=valid)
    if good:
        # Zero vectors have similarity 0 to everything, garbage included.
        zeros = [n for n in good if not features[0, n].any()]
        order = [n for n in picks[0].tolist() if n >= 0 and n not in zeros]
        assert set(order[: len(good) - 1 - len(set(zeros) - set(good[:1]))]) <= set(good)


def test_everything_is_garbage(backend) -> None:
    features = torch.full((1, 4, 3), NAN)
    assert complete_tokens(features, torch.tensor([[2]]), 4).tolist() == [[0, 1, 3, -1]]
    assert complete_tokens(features, torch.tensor([[-1]]), 2).tolist() == [[0, 1]]


def test_zero_vectors_have_similarity_zero_also_to_garbage(backend) -> None:
    features = torch.tensor([[[NAN, 1.0], [1.0, 0.0], [0.0, 0.0], [-1.0, 0.0]]])
    # 1 and 3 are not comparable with 0; 2 is, at 0.
    assert complete_tokens(features, torch.tensor([[0]]), 3).tolist() == [[2, 1, 3]]


def test_nothing_selected_starts_at_the_lowest_valid_index(backend) -> None:
    features = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]])
    empty = torch.empty(1, 0, dtype=torch.int64)
    valid = torch.tensor([[False, True, True, True]])
    assert complete_tokens(features, empty, 3, valid=valid).tolist() == [[1, 3, 2]]


def test_ties_go_to_the_lower_index(backend) -> None:
    features = torch.ones(1, 5, 2)
    assert complete_tokens(features, torch.tensor([[1]]), 3).tolist() == [[0, 2, 3]]


def test_coverage_is_by_direction_not_by_length(backend) -> None:
    features = torch.tensor([[[1.0, 0.0], [100.0, 1.0], [0.01, 0.02]]])
    assert complete_tokens(features, torch.tensor([[0]]), 1).tolist() == [[2]]


def test_a_selected_token_that_is_not_valid_still_covers(backend) -> None:
    features = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]])
    valid = torch.tensor([[False, True, True]])
    assert complete_tokens(features, torch.tensor([[0]]), 3, valid=valid).tolist() == [[2, 1, -1]]


def test_running_out_pads_with_minus_one(backend) -> None:
    features = torch.randn(2, 3, 4)
    picks = complete_tokens(features, torch.tensor([[0], [2]]), 5)
    assert (picks[:, 2:] == -1).all()
    assert picks[:, :2].sort(1).values.tolist() == [[1, 2], [0, 1]]
    none = torch.zeros(2, 3, dtype=torch.bool)
    assert (complete_tokens(features, torch.tensor([[0], [2]]), 5, valid=none) == -1).all()


def test_nothing_to_pick_or_to_pick_from(backend) -> None:
    none = torch.empty(2, 0, dtype=torch.int64)
    assert complete_tokens(torch.randn(2, 3, 4), none, 0).shape == (2, 0)
    assert complete_tokens(torch.randn(2, 0, 4), none, 2).tolist() == [[-1, -1]] * 2
    assert complete_tokens(torch.randn(2, 1, 4), none, 2).tolist() == [[0, -1]] * 2
    assert complete_tokens(torch.randn(2, 3, 0), none, 2).tolist() == [[0, 1]] * 2


def test_norms_beyond_float32(backend) -> None:
    """As documented: with an overflow 0 or, if both overflow, not finite; 0 with an underflow."""
    features = torch.tensor([[[1.0, 0.0], [-1e20, 0.0], [-1e-25, 0.0], [-1e18, 0.0], [1.0, 1.0]]])
    # Similarities to token 0: 0, 0, -1, 0.7.
    picked = complete_tokens(features, torch.tensor([[0]]), 4)
    assert picked.tolist() == [[3, 1, 2, 4]]
    # Only the dot product of the two largest overflows as well.
    features[0, 0] = torch.tensor([-1e20, 1e20])
    picked = complete_tokens(features, torch.tensor([[1]]), 4)
    assert picked[0, 3] == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_weights_change_nothing(backend, dtype) -> None:
    features = random_features(1, 2, 41, 19, dtype)
    selected = torch.tensor([[3, 17, -1, 30], [-1, -1, -1, -1]])
    expected = complete_tokens(features, selected, 12)
    for value in (0.0, 0.3, 1e30, NAN):
        weights = torch.full((2, 41), value)
        assert torch.equal(complete_tokens(features, selected, 12, weights=weights), expected)
    # Each image has a weight of its own. The weights of tokens that are not valid do not matter.
    weights = torch.tensor([[0.5], [3.0]]).repeat(1, 41)
    weights[:, 9], weights[:, 35:] = 4.0, NAN
    valid = torch.ones(2, 41, dtype=torch.bool)
    valid[:, 9], valid[:, 35:] = False, False
    expected = complete_tokens(features, selected, 12, valid=valid)
    actual = complete_tokens(features, selected, 12, weights=weights, valid=valid)
    assert torch.equal(actual, expected)


def test_relevance_counts_as_much_as_difference(backend) -> None:
    features = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 0.0]]])
    selected = torch.tensor([[0]])
    # The gains are 1 * w, 0.29 * w and 2 * w.
    for weights, first in (([9, 1, 1, 1], 3), ([9, 3, 1, 1], 1), ([0, 1, 9, 1], 2)):
        picks = complete_tokens(features, selected, 1, weights=torch.tensor([weights]).float())
        assert picks.tolist() == [[first]], weights


def test_with_nothing_selected_the_largest_weight_goes_first(backend) -> None:
    features = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 0.0]]])
    empty = torch.empty(1, 0, dtype=torch.int64)
    weights = torch.tensor([[0.5, 1.0, 2.0, 2.0]])
    assert complete_tokens(features, empty, 2, weights=weights).tolist() == [[2, 3]]


def test_weight_zero_goes_last_by_index(backend) -> None:
    # Token 4 is a duplicate of what is kept, so its gain is 0 too; token 3 cannot be compared.
    features = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [NAN, 1.0], [1.0, 0.0]]])
    weights = torch.tensor([[1.0, 0.0, -3.0, 1e-9, 1e-9]])
    picks = complete_tokens(features, torch.tensor([[0]]), 5, weights=weights)
    assert picks.tolist() == [[4, 3, 1, 2, -1]]


def test_extreme_weights_neither_overflow_nor_vanish(backend) -> None:
    features = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [-0.6, 0.8]]])
    selected = torch.tensor([[0]])
    weights = torch.tensor([[1.0, INF, 3e38, 2.0**-149, 2.0**-50]])
    # 2 * 2**50, 2**50, then 1.6 * 2**-50; token 3 counts as 0.
    assert complete_tokens(features, selected, 4, weights=weights).tolist() == [[1, 2, 4, 3]]
