import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from inputs import DTYPES, draw_mask, dtypes, generator, masks, seeds

from clasp_kernels import attention_salience

OP = "attention_salience"
EXACT = {"rtol": 1e-5, "atol": 1e-6}


@given(
    seed=seeds,
    dtype=dtypes,
    batch=st.integers(1, 2),
    key_heads=st.integers(1, 2),
    group=st.integers(1, 3),
    rows=st.integers(1, 4),
    keys=st.integers(1, 7),
    width=st.integers(1, 5),
    causal=st.booleans(),
    mask=masks,
    weighted=st.booleans(),
    scale=st.sampled_from([None, 0.5, 3.0, -1.0, 0.0]),
    data=st.data(),
)
def test_matches_the_formula(
    backend, seed, dtype, batch, key_heads, group, rows, keys, width, causal, mask, weighted, scale,
    data,
) -> None:  # fmt: skip
    random = generator(seed)
    query = torch.randn(batch, key_heads * group, rows, width, generator=random).to(dtype)
    key = torch.randn(batch, key_heads, keys, width, generator=random).to(dtype)
    start = data.draw(st.integers(0, keys - 1))
    options = {
        "scale": scale,
        "causal": causal,
        "key_valid": draw_mask(mask, seed, batch, keys),
        "query_weights": torch.rand(batch, rows, generator=random) if weighted else None,
        "key_range": (start, data.draw(st.integers(start + 1, keys))),
    }
    actual = attention_salience(query, key, **options)
    assert actual.dtype == torch.float32
    expected = oracle.attention_salience(query, key, **options)
    torch.testing.assert_close(actual.double(), expected, **EXACT)


def random_attention(rows: int = 3, keys: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    random = generator(3)
    query = torch.randn(2, 4, rows, 5, generator=random)
    return query, torch.randn(2, 2, keys, 5, generator=random)


def test_all_the_attention_is_reported_by_default(backend) -> None:
    salience = attention_salience(*random_attention())
    assert salience.shape == (2, 6)
    torch.testing.assert_close(salience.sum(1), torch.ones(2))


@pytest.mark.parametrize("keys", [6, 257])
def test_key_range_only_restricts_the_report(backend, keys) -> None:
    query, key = random_attention(rows=8, keys=keys)
    whole = attention_salience(query, key)
    for start, stop in [(2, 5), (5, 6), (1, keys), (keys // 2, keys), (0, keys - 3)]:
        reported = attention_salience(query, key, key_range=(start, stop))
        assert torch.equal(reported, whole[:, start:stop])
    assert torch.equal(attention_salience(query, key, key_range=[5, 6]), whole[:, 5:6])


def test_the_scale_may_be_any_real_number(backend) -> None:
    numpy = pytest.importorskip("numpy")
    query, key = random_attention()
    expected = attention_salience(query, key, scale=2.0)
    for scale in (2, numpy.float32(2), numpy.float64(2), numpy.int64(2)):
        assert torch.equal(attention_salience(query, key, scale=scale), expected)


def test_causal_rows_are_the_last_positions(backend) -> None:
    query, key = random_attention(rows=2, keys=5)
    salience = attention_salience(query[:, :, :1], key, causal=True)
    assert (salience > 0).all(), "a single causal row is the last position and sees every key"
    first_of_two = torch.tensor([[1.0, 0.0]]).expand(2, 2)
    salience = attention_salience(query, key, causal=True, query_weights=first_of_two)
    assert (salience[:, :4] > 0).all()
    assert (salience[:, 4] == 0).all()


def test_a_row_without_an_allowed_key_adds_nothing(backend) -> None:
    query, key = random_attention(rows=3, keys=1)
    # Rows 0 and 1 come before the only key.
    salience = attention_salience(query, key, causal=True)
    torch.testing.assert_close(salience, torch.full((2, 1), 1 / 3))


def test_masked_keys_get_nothing_and_may_hold_garbage(backend) -> None:
    query, key = random_attention()
    valid = torch.tensor([[True, False, True, True, False, True]] * 2)
    clean = attention_salience(query, key, key_valid=valid)
    key[:, :, ~valid[0]] = float("nan")
    salience = attention_salience(query, key, key_valid=valid)
    assert torch.equal(salience, clean)
    assert (salience[:, ~valid[0]] == 0).all()


def test_an_image_with_no_valid_key_gets_zeros(backend) -> None:
    query, key = random_attention()
    valid = torch.tensor([[False] * 6, [True] * 6])
    salience = attention_salience(query, key, key_valid=valid)
    assert torch.equal(salience[0], torch.zeros(6))
    assert salience[1].sum() > 0.99


def test_a_row_of_weight_zero_does_not_count_and_may_hold_garbage(backend) -> None:
    query, key = random_attention()
    weights = torch.tensor([[1.0, 0.0, 3.0]] * 2)
    clean = attention_salience(query[:, :, [0, 2]], key, query_weights=weights[:, [0, 2]])
    query[:, :, 1] = float("nan")
    salience = attention_salience(query, key, query_weights=weights)
    torch.testing.assert_close(salience, clean)


def test_only_the_ratio_of_query_weights_matters(backend) -> None:
    query, key = random_attention()
    weights = torch.tensor([[1.0, 2.0, 4.0]] * 2)
    salience = attention_salience(query, key, query_weights=weights)
    for factor in (0.25, 8.0):
        scaled = attention_salience(query, key, query_weights=factor * weights)
        torch.testing.assert_close(scaled, salience)


@pytest.mark.parametrize("weight", [2e38, 1e-45])
def test_query_weights_may_take_the_whole_range(backend, weight) -> None:
    query, key = random_attention()
    salience = attention_salience(query, key, query_weights=torch.full((2, 3), weight))
    torch.testing.assert_close(salience, attention_salience(query, key))


def test_query_weights_that_are_all_zero_give_zeros(backend) -> None:
    query, key = random_attention()
    salience = attention_salience(query, key, query_weights=torch.zeros(2, 3))
    assert torch.equal(salience, torch.zeros(2, 6))


def test_grouped_heads_read_consecutive_key_heads(backend) -> None:
    query, key = random_attention()
    repeated = torch.stack([key[:, 0], key[:, 0], key[:, 1], key[:, 1]], 1)
    expected = attention_salience(query, repeated)
    torch.testing.assert_close(attention_salience(query, key), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_logits_do_not_overflow(backend, dtype) -> None:
    query = torch.full((1, 1, 1, 4), 100.0).to(dtype)
    key = torch.tensor([1.0, 2.0, -3.0])[:, None].expand(3, 4).reshape(1, 1, 3, 4).to(dtype)
    assert torch.equal(attention_salience(query, key), torch.tensor([[0.0, 1.0, 0.0]]))


@pytest.mark.parametrize("garbage", [float("nan"), float("inf")])
def test_garbage_in_an_image_stays_in_that_image(backend, garbage) -> None:
    query, key = random_attention()
    clean = attention_salience(query, key)
    key[0, 0, 3] = garbage
    salience = attention_salience(query, key)
    assert torch.equal(salience[1], clean[1])


def test_agrees_with_the_attention_that_torch_computes(backend) -> None:
    """The values of an attention are its keys' indicator vectors: the output is the attention."""
    query, key = random_attention()
    key = key.repeat_interleave(2, 1)
    identity = torch.eye(6).expand(2, 4, 6, 6)
    attention = torch.nn.functional.scaled_dot_product_attention(query, key, identity)
    torch.testing.assert_close(attention_salience(query, key), attention.mean((1, 2)))
