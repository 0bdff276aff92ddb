import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from inputs import DTYPES, dtypes, generator, seeds

from clasp_kernels import gather_tokens

OP = "gather_tokens"


@given(
    seed=seeds,
    dtype=dtypes,
    batch=st.integers(1, 3),
    tokens=st.integers(1, 7),
    kept=st.integers(0, 9),
    width=st.integers(0, 6),
)
def test_copies_the_indexed_rows(backend, seed, dtype, batch, tokens, kept, width) -> None:
    random = generator(seed)
    source = torch.randn(batch, tokens, width, generator=random).to(dtype)
    indices = torch.randint(-1, tokens, (batch, kept), generator=random)
    gathered = gather_tokens(source, indices)
    assert gathered.dtype == dtype
    assert gathered.shape == (batch, kept, width)
    for b in range(batch):
        for slot, index in enumerate(indices[b].tolist()):
            row = source[b, index] if index >= 0 else torch.zeros(width, dtype=dtype)
            assert torch.equal(gathered[b, slot], row)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_come_over_bit_for_bit(backend, dtype) -> None:
    source = torch.tensor([[[float("nan"), float("inf"), -0.0], [1.0, 2.0, 3.0]]]).to(dtype)
    gathered = gather_tokens(source, torch.tensor([[0, 0]]))
    torch.testing.assert_close(gathered[0, 1], source[0, 0], rtol=0, atol=0, equal_nan=True)
    assert gathered[0, 0, 2].signbit()


def test_padding_is_zero_also_beside_garbage(backend) -> None:
    source = torch.full((1, 2, 3), float("nan"))
    assert torch.equal(gather_tokens(source, torch.tensor([[-1]])), torch.zeros(1, 1, 3))


def test_no_tokens_and_no_indices(backend) -> None:
    assert gather_tokens(torch.randn(2, 3, 4), torch.empty(2, 0, dtype=torch.int64)).numel() == 0
    gathered = gather_tokens(torch.randn(2, 0, 4), torch.full((2, 3), -1))
    assert torch.equal(gathered, torch.zeros(2, 3, 4))
