import pytest
import torch

from clasp_kernels import gather_tokens, merge_tokens, prune_tokens, select_tokens


@pytest.mark.parametrize("merge", [False, True])
def test_is_selection_and_its_application(merge: bool) -> None:
    random = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 9, 5, generator=random)
    features = torch.randn(2, 9, 3, generator=random)
    salience = torch.rand(2, 9, generator=random)
    valid = torch.rand(2, 9, generator=random) < 0.6
    kept, selection = prune_tokens(
        tokens, features, salience, [4, 7], [2, 1], valid=valid, merge=merge
    )
    expected = select_tokens(features, salience, [4, 7], [2, 1], valid=valid)
    torch.testing.assert_close(tuple(selection), tuple(expected))
    if merge:
        assert torch.equal(kept, merge_tokens(tokens, features, expected.indices, valid=valid))
    else:
        assert torch.equal(kept, gather_tokens(tokens, expected.indices))


def test_tokens_must_match_features() -> None:
    with pytest.raises(ValueError, match=r"prune_tokens: features must be \[B, N, F\] with N = 9"):
        prune_tokens(torch.randn(2, 9, 5), torch.randn(2, 8, 3), torch.rand(2, 8), 4, 2)
