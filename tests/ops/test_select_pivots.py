import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from inputs import DTYPES, draw_mask, dtypes, generator, masks, seeds

from clasp_kernels import select_pivots

OP = "select_pivots"
NAN, INF = float("nan"), float("inf")


@given(
    seed=seeds,
    dtype=dtypes,
    batch=st.integers(1, 3),
    tokens=st.integers(0, 12),
    mask=masks,
    ragged=st.booleans(),
    data=st.data(),
)
def test_ranks_by_value_then_index(backend, seed, dtype, batch, tokens, mask, ragged, data) -> None:
    values = torch.tensor([NAN, INF, -INF, -1.0, -0.0, 0.0, 0.5, 0.5, 3.0])
    picked = torch.randint(len(values), (batch, tokens), generator=generator(seed))
    salience = values[picked].to(dtype)
    valid = draw_mask(mask, seed, batch, tokens)
    count = st.integers(0, tokens + 2)
    k = data.draw(st.lists(count, min_size=batch, max_size=batch) if ragged else count)
    expected = oracle.select_pivots(salience, k, valid)
    assert torch.equal(select_pivots(salience, k, valid=valid), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_equal_gives_the_first(backend, dtype) -> None:
    pivots = select_pivots(torch.full((2, 300), 0.25, dtype=dtype), 100)
    assert torch.equal(pivots, torch.arange(100).expand(2, 100))


def test_zero_and_minus_zero_tie(backend) -> None:
    assert select_pivots(torch.tensor([[-0.0, 0.0, -0.0]]), 3).tolist() == [[0, 1, 2]]


def test_nan_ranks_below_minus_infinity(backend) -> None:
    salience = torch.tensor([[NAN, -INF, NAN, 1.0, INF]])
    assert select_pivots(salience, 5).tolist() == [[4, 3, 1, 0, 2]]
    assert select_pivots(torch.full((1, 3), NAN), 2).tolist() == [[0, 1]]


def test_invalid_tokens_are_never_chosen_even_over_nan(backend) -> None:
    salience = torch.tensor([[INF, NAN, 1.0]])
    valid = torch.tensor([[False, True, False]])
    assert select_pivots(salience, 3, valid=valid).tolist() == [[1, -1, -1]]


def test_fewer_valid_than_k_pads_with_minus_one(backend) -> None:
    salience = torch.tensor([[1.0, 2.0, 3.0, 4.0]] * 2)
    valid = torch.tensor([[True, False, False, True], [False, False, True, True]])
    expected = [[3, 0, -1], [3, 2, -1]]
    assert select_pivots(salience, 3, valid=valid).tolist() == expected
    assert select_pivots(salience, [3, 1], valid=valid).tolist() == [[3, 0, -1], [3, -1, -1]]


def test_k_per_image_pads_with_minus_one(backend) -> None:
    salience = torch.tensor([[1.0, 2.0, 3.0]] * 3)
    expected = [[2, -1, -1], [2, 1, 0], [-1, -1, -1]]
    assert select_pivots(salience, [1, 3, 0]).tolist() == expected
    assert select_pivots(salience, (1, 3, 0)).tolist() == expected
    assert select_pivots(salience, torch.tensor([1, 3, 0])).tolist() == expected


def test_more_than_there_are_keeps_the_width(backend) -> None:
    assert select_pivots(torch.tensor([[1.0, 2.0]]), 4).tolist() == [[1, 0, -1, -1]]


def test_none_and_one(backend) -> None:
    assert select_pivots(torch.rand(3, 5), 0).shape == (3, 0)
    assert select_pivots(torch.rand(3, 0), 2).tolist() == [[-1, -1]] * 3
    assert select_pivots(torch.rand(3, 1), 1).tolist() == [[0]] * 3
