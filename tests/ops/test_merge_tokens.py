import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from inputs import DTYPES, draw_mask, dtypes, exact_features, generator, masks, seeds
from torch import Tensor

from clasp_kernels import gather_tokens, merge_tokens

OP = "merge_tokens"
NAN = float("nan")

TOLERANCE = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-6},
    torch.bfloat16: {"rtol": 2**-8, "atol": 1e-6},
    torch.float16: {"rtol": 2**-11, "atol": 1e-6},
}


def random_indices(seed: int, batch: int, tokens: int, width: int) -> Tensor:
    order = torch.rand(batch, tokens + width, generator=generator(seed)).argsort(-1)[:, :width]
    return order.masked_fill(order >= tokens, -1)


@given(
    seed=seeds,
    dtype=dtypes,
    batch=st.integers(1, 3),
    tokens=st.integers(0, 10),
    kept=st.integers(0, 6),
    width=st.integers(0, 5),
    mask=masks,
)
def test_groups_by_similarity_and_takes_the_mean(
    backend, seed, dtype, batch, tokens, kept, width, mask
) -> None:
    features = exact_features(seed, batch, tokens)
    source = torch.randn(batch, tokens, width, generator=generator(seed)).to(dtype)
    indices = random_indices(seed, batch, tokens, kept)
    valid = draw_mask(mask, seed, batch, tokens)
    merged = merge_tokens(source, features, indices, valid=valid)
    assert merged.dtype == dtype
    expected = oracle.merge_tokens(source, features, indices, valid)
    torch.testing.assert_close(merged.double(), expected, **TOLERANCE[dtype])


def test_keeping_everything_changes_nothing(backend) -> None:
    tokens = torch.randn(2, 5, 3)
    indices = torch.arange(5).expand(2, 5)
    assert torch.equal(merge_tokens(tokens, tokens, indices), tokens)


def test_nothing_valid_to_merge_is_a_gather(backend) -> None:
    tokens = torch.randn(2, 5, 3)
    indices = torch.tensor([[4, 0], [2, -1]])
    valid = torch.zeros(2, 5, dtype=torch.bool)
    merged = merge_tokens(tokens, tokens, indices, valid=valid)
    assert torch.equal(merged, gather_tokens(tokens, indices))


def test_ties_go_to_the_kept_token_with_the_lower_index(backend) -> None:
    tokens = torch.tensor([[[8.0], [2.0], [4.0]]])
    features = torch.ones(1, 3, 2)
    assert merge_tokens(tokens, features, torch.tensor([[2, 1]])).flatten().tolist() == [4.0, 5.0]


def test_a_kept_token_stays_in_its_own_group(backend) -> None:
    tokens = torch.tensor([[[1.0], [3.0]]])
    features = torch.ones(1, 2, 2)  # token 1 is as similar to token 0 as to itself
    assert merge_tokens(tokens, features, torch.tensor([[0, 1]])).flatten().tolist() == [1.0, 3.0]


def test_all_dropped_tokens_count_towards_the_mean(backend) -> None:
    tokens = torch.arange(6.0).view(1, 6, 1)
    merged = merge_tokens(tokens, torch.ones(1, 6, 2), torch.tensor([[3]]))
    assert merged.item() == 2.5


def test_garbage_attracts_nothing_and_stays_where_it_is(backend) -> None:
    features = torch.tensor([[[NAN, 1.0], [1.0, 0.0], [1.0, 0.2], [0.0, NAN]]])
    tokens = torch.tensor([[[NAN], [1.0], [3.0], [5.0]]])
    merged = merge_tokens(tokens, features, torch.tensor([[0, 1]])).flatten()
    # 2 prefers the comparable token; 3 is comparable with none, so the lower index gets it.
    assert merged[0].isnan()
    assert merged[1] == 2


def test_accumulates_in_float32(backend) -> None:
    tokens = torch.ones(1, 1000, 1, dtype=torch.bfloat16)
    tokens[0, 0] = 256
    merged = merge_tokens(tokens, torch.ones(1, 1000, 1), torch.tensor([[0]]))
    assert merged.item() == torch.tensor(1255 / 1000).to(torch.bfloat16).item()


@pytest.mark.parametrize("tokens_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("features_dtype", DTYPES, ids=str)
def test_tokens_and_features_may_differ_in_dtype(backend, tokens_dtype, features_dtype) -> None:
    tokens = torch.tensor([[[1.0], [3.0], [9.0]]], dtype=tokens_dtype)
    features = torch.tensor([[[1.0, 0.0], [2.0, 1.0], [0.0, 1.0]]], dtype=features_dtype)
    merged = merge_tokens(tokens, features, torch.tensor([[0, 2]]))
    assert merged.flatten().tolist() == [2.0, 9.0]
    assert merged.dtype == tokens_dtype
