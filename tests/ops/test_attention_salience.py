import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from inputs import DTYPES, draw_mask, dtypes, generator, masks, seeds

from clasp_kernels import attention_salience
from clasp_kernels.triton import INTERPRETED

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


@pytest.mark.parametrize(("rows", "keys"), [(8, 6), (8, 257), (40, 1500)])
def test_key_range_only_restricts_the_report(backend, rows, keys) -> None:
    if INTERPRETED and backend == "triton":
        rows, keys = min(rows, 10), min(keys, 600)  # the interpreter is slow
    query, key = random_attention(rows, keys)
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


def in_float64(
    query: torch.Tensor,
    key: torch.Tensor,
    causal: bool = False,
    key_valid: torch.Tensor | None = None,
    query_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """The formula once more, vectorised: the loops of the oracle would take minutes."""
    rows, keys = query.shape[2], key.shape[2]
    key = key.double().repeat_interleave(query.shape[1] // key.shape[1], 1)
    logits = query.double() @ key.transpose(2, 3) / query.shape[3] ** 0.5
    allowed = torch.ones(rows, keys, dtype=torch.bool)
    if causal:
        allowed = allowed.tril(keys - rows)
    if key_valid is not None:
        allowed = allowed & key_valid[:, None, None]
    probability = logits.masked_fill(~allowed, -torch.inf).softmax(-1).where(allowed, 0.0)
    weights = torch.ones(rows) if query_weights is None else query_weights
    shares = (weights / weights.sum(-1, keepdim=True)).double()
    return (probability.mean(1) * shares[..., None]).sum(1)


LARGE = {
    "one row": (2, 16, 16, 1, 577, 64),
    "one row, few heads": (1, 2, 1, 1, 4000, 33),
    "few rows": (1, 8, 2, 3, 1111, 40),
    "rows of one block": (1, 6, 3, 9, 700, 64),
    "rows of several blocks": (2, 4, 2, 45, 333, 24),
    "more rows than keys": (1, 3, 1, 150, 90, 17),
    "square": (1, 2, 2, 257, 257, 20),
    "many keys": (1, 2, 2, 37, 2503, 12),
    "many heads": (1, 40, 40, 2, 130, 9),
}
# For the interpreter, which is slow: as many tiles as make a difference. 1024 keys are one tile.
INTERPRETED_LARGE = LARGE | {
    "one row": (2, 4, 4, 1, 577, 64),
    "one row, few heads": (1, 2, 1, 1, 1100, 33),
    "square": (1, 1, 1, 130, 130, 20),
    "many keys": (1, 1, 1, 37, 1030, 12),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LARGE)
def test_large_shapes_match_float64(backend, name, dtype) -> None:
    shapes = INTERPRETED_LARGE if INTERPRETED and backend == "triton" else LARGE
    batch, query_heads, key_heads, rows, keys, width = shapes[name]
    random = generator(11)
    query = torch.randn(batch, query_heads, rows, width, generator=random).to(dtype)
    key = torch.randn(batch, key_heads, keys, width, generator=random).to(dtype)
    close = {"rtol": 2e-5, "atol": 1e-7}
    torch.testing.assert_close(
        attention_salience(query, key).double(), in_float64(query, key), **close
    )
    options = {
        "causal": True,
        "key_valid": torch.rand(batch, keys, generator=random) < 0.8,
        "query_weights": torch.rand(batch, rows, generator=random),
    }
    options["query_weights"][:, 1::3] = 0
    start, stop = keys // 5, keys - keys // 7
    torch.testing.assert_close(
        attention_salience(query, key, key_range=(start, stop), **options).double(),
        in_float64(query, key, **options)[:, start:stop],
        **close,
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rows", [1, 40])
def test_low_precision_is_no_worse_than_that_of_torch(backend, dtype, rows) -> None:
    """At most twice the error of the same formula in torch's own low precision."""
    random = generator(12)
    query = 3 * torch.randn(1, 8, rows, 64, generator=random)
    key = torch.randn(1, 2, 600, 64, generator=random)
    exact = in_float64(query, key)
    query, key = query.to(dtype), key.to(dtype)
    of_torch = (query @ key.repeat_interleave(4, 1).transpose(2, 3) / 8).softmax(-1).mean((1, 2))
    error = (attention_salience(query, key) - exact).abs().amax()
    assert error <= 2 * (of_torch - exact).abs().amax()


@pytest.mark.parametrize("rows", [1, 30])
def test_numbers_that_are_none_spread_to_what_their_row_may_see(backend, rows) -> None:
    random = generator(13)
    query = torch.randn(1, 2, rows, 8, generator=random)
    key = torch.randn(1, 2, 200, 8, generator=random)
    valid = torch.rand(1, 200, generator=random) < 0.7
    valid[0, 3] = True
    clean = attention_salience(query, key, causal=True, key_valid=valid)
    row = rows // 2
    query[0, 1, row] = torch.inf
    seen = valid & (torch.arange(200) <= 200 - rows + row)
    salience = attention_salience(query, key, causal=True, key_valid=valid)
    assert salience[seen].isnan().all()
    assert torch.equal(salience[~seen], clean[~seen])

    query[0, 1, row] = 1.0
    key[0, 1, 3, 0] = torch.nan  # which every row sees
    salience = attention_salience(query, key, causal=True, key_valid=valid)
    assert salience[valid].isnan().all()
    assert (salience[~valid] == 0).all()


def test_the_same_bits_twenty_times(backend) -> None:
    random = generator(14)
    query = torch.randn(2, 4, 33, 20, generator=random)
    key = torch.randn(2, 2, 300, 20, generator=random)
    first = attention_salience(query, key, causal=True)
    # The interpreter has one thread, and is slow.
    for _ in range(1 if INTERPRETED and backend == "triton" else 20):
        assert torch.equal(attention_salience(query, key, causal=True), first)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 20])
def test_views_give_what_their_copies_give(backend, dtype, rows) -> None:
    random = generator(15)
    query = torch.randn(3, rows, 4, 24, generator=random).to(dtype)  # as a model's projections
    key = torch.randn(3, 130, 2, 24, generator=random).to(dtype)
    views = {
        "heads inside": (query.transpose(1, 2), key.transpose(1, 2)),
        "features apart": (query.transpose(1, 2)[..., ::3], key.transpose(1, 2)[..., ::3]),
        "features first": (query.permute(0, 2, 3, 1).contiguous().mT, key.transpose(1, 2)),
        "every other key": (query.transpose(1, 2), key[:, ::2].transpose(1, 2)),
        "one image, expanded": (
            query[:1].transpose(1, 2).expand(3, -1, -1, -1),
            key[1:2].transpose(1, 2).expand(3, -1, -1, -1),
        ),
        "one feature": (query.transpose(1, 2)[..., 7:8], key.transpose(1, 2)[..., 7:8]),
    }
    for name, (some_query, some_key) in views.items():
        expected = attention_salience(
            *(x.clone(memory_format=torch.contiguous_format) for x in (some_query, some_key))
        )
        assert torch.equal(attention_salience(some_query, some_key), expected), name
    mask = torch.rand(130, 3, generator=random) < 0.5
    weights = torch.rand(rows, 3, generator=random).to(dtype)
    views = {"key_valid": mask.T, "query_weights": weights.T}
    copies = {"key_valid": mask.T.contiguous(), "query_weights": weights.T.contiguous()}
    query, key = query.transpose(1, 2), key.transpose(1, 2)
    assert torch.equal(
        attention_salience(query, key, **views), attention_salience(query, key, **copies)
    )
