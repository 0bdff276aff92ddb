import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from inputs import (
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

from clasp_kernels import (
    Selection,
    complete_tokens,
    cover_tokens,
    select_pivots,
    select_tokens,
)
from clasp_kernels.backends.table import ops_of

OP = "select_tokens"
NAN, INF = float("nan"), float("inf")


@st.composite
def batches(draw: st.DrawFn) -> dict:
    batch, tokens = draw(st.integers(1, 3)), draw(st.integers(0, 12))
    seed = draw(seeds)
    # Few distinct values, so that ties are common.
    values = torch.tensor([NAN, INF, -INF, 0.0, 0.25, 0.25, 0.5])
    picked = torch.randint(len(values), (batch, tokens), generator=generator(seed))

    def per_image(counts: st.SearchStrategy[int]) -> st.SearchStrategy:
        return counts | st.lists(counts, min_size=batch, max_size=batch)

    return {
        "seed": seed,
        "shape": (batch, tokens),
        "salience": values[picked],
        "budget": draw(per_image(st.integers(0, tokens + 2))),
        "pivot_counts": draw(per_image(st.integers(-1, tokens + 3))),
        "weights": exact_weights(seed, batch, tokens) if draw(st.booleans()) else None,
        "valid": draw_mask(draw(masks), seed, batch, tokens),
    }


def skip_without_covering(backend: str) -> None:
    """Skips a test of completion="cover" if the backend does not serve its two stages."""
    if backend == "reference":
        return
    missing = {"select_pivots", "cover_tokens"}.difference(ops_of(backend))
    if missing:
        pytest.skip(f"the {backend} backend has no kernel for {', '.join(sorted(missing))}")


@pytest.mark.parametrize("completion", ["farthest", "cover"])
@given(batches())
def test_equals_the_oracle_where_similarities_are_exact(backend, completion, drawn) -> None:
    if completion == "cover":
        skip_without_covering(backend)
    exact = drawn["weights"] is None and completion == "farthest"
    features = (exact_features if exact else dyadic_features)(drawn["seed"], *drawn["shape"])
    choice = (drawn["salience"], drawn["budget"], drawn["pivot_counts"])
    options = {"weights": drawn["weights"], "completion": completion, "valid": drawn["valid"]}
    expected = oracle.select_tokens(features, *choice, **options)
    for dtype in dtypes_for(backend, drawn["seed"]):  # small integers are exact in all of them
        actual = select_tokens(features.to(dtype), *choice, **options)
        assert isinstance(actual, Selection)
        torch.testing.assert_close(tuple(actual), expected)


@given(batches(), dtypes, st.integers(1, 20))
def test_is_pivots_then_completion_then_a_sort(backend, drawn, dtype, width) -> None:
    """With the test of complete_tokens' picks, this certifies every selection."""
    batch, tokens = drawn["shape"]
    features = random_features(drawn["seed"], batch, tokens, width, dtype)
    selection = select_tokens(
        features,
        drawn["salience"],
        drawn["budget"],
        drawn["pivot_counts"],
        weights=drawn["weights"],
        valid=drawn["valid"],
    )
    for b in range(batch):
        one = slice(b, b + 1)
        weights, valid = (
            None if drawn[name] is None else drawn[name][one] for name in ("weights", "valid")
        )
        budget, share = (
            value if isinstance(value, int) else value[b]
            for value in (drawn["budget"], drawn["pivot_counts"])
        )
        share = min(max(share, 1), budget)
        pivots = oracle.select_pivots(drawn["salience"][one], share, valid)
        completion = complete_tokens(
            features[one], pivots, budget - share, weights=weights, valid=valid
        )
        oracle.certify_completion(features[one], pivots, completion, weights, valid)
        kept = sorted(n for n in [*pivots[0].tolist(), *completion[0].tolist()] if n >= 0)
        row = selection.indices[b].tolist()
        assert row == kept + [-1] * (len(row) - len(kept))
        assert selection.counts[b] == len(kept)
        assert selection.is_pivot[b].tolist() == [n >= 0 and n in pivots[0] for n in row]


def image(tokens: int = 9, width: int = 4, batch: int = 2) -> tuple[Tensor, Tensor]:
    random = generator(11)
    return torch.randn(batch, tokens, width, generator=random), torch.rand(
        batch, tokens, generator=random
    )


def test_budget_of_all_tokens_keeps_them_all_in_order(backend) -> None:
    features, salience = image()
    selection = select_tokens(features, salience, 9, 3)
    assert torch.equal(selection.indices, torch.arange(9).expand(2, 9))
    assert selection.is_pivot.sum(1).tolist() == [3, 3]


def test_budget_beyond_the_tokens_keeps_its_width(backend) -> None:
    features, salience = image()
    selection = select_tokens(features, salience, 12, 3)
    assert selection.indices.shape == (2, 12)
    assert (selection.indices[:, 9:] == -1).all()
    assert not selection.is_pivot[:, 9:].any()
    assert selection.counts.tolist() == [9, 9]


def test_budget_of_zero_keeps_nothing(backend) -> None:
    features, salience = image()
    selection = select_tokens(features, salience, 0, 3)
    assert selection.indices.shape == selection.is_pivot.shape == (2, 0)
    assert selection.counts.tolist() == [0, 0]
    selection = select_tokens(features, salience, [0, 2], 1)
    assert selection.indices[0].tolist() == [-1, -1]
    assert selection.counts.tolist() == [0, 2]


def test_one_token(backend) -> None:
    selection = select_tokens(torch.randn(3, 1, 4), torch.rand(3, 1), 1, 1)
    assert selection.indices.tolist() == [[0]] * 3
    assert selection.is_pivot.all()


def test_an_image_without_valid_tokens_keeps_none(backend) -> None:
    features, salience = image()
    valid = torch.tensor([[False] * 9, [True] * 9])
    selection = select_tokens(features, salience, 4, 2, valid=valid)
    assert selection.indices[0].tolist() == [-1] * 4
    assert not selection.is_pivot[0].any()
    assert selection.counts.tolist() == [0, 4]


@pytest.mark.parametrize("share", [-5, 0, 1])
def test_there_is_at_least_one_pivot(backend, share) -> None:
    features, salience = image()
    for shares in (share, [share, 2], torch.tensor([share, 2])):
        selection = select_tokens(features, salience, 4, shares)
        assert selection.is_pivot[0].sum() == 1


def test_pivots_are_at_most_the_budget(backend) -> None:
    features, salience = image()
    best = salience[0].topk(4).indices.sort().values
    for shares in (99, [99, 98], torch.tensor([99, 98])):
        selection = select_tokens(features, salience, [4, 2], shares)
        assert selection.is_pivot.sum(1).tolist() == [4, 2]
        assert torch.equal(selection.indices[0], best)


def test_per_image_counts_as_list_tuple_and_tensor_agree(backend) -> None:
    features, salience = image()
    expected = select_tokens(features, salience, [5, 3], [2, 3])
    for kind in (tuple, torch.tensor):
        actual = select_tokens(features, salience, kind([5, 3]), kind([2, 3]))
        torch.testing.assert_close(tuple(actual), tuple(expected))


def test_mixed_splits_equal_each_split_alone(backend) -> None:
    features, salience = image()
    mixed = select_tokens(features, salience, 6, [1, 5])
    for b, share in enumerate((1, 5)):
        alone = select_tokens(features, salience, 6, share)
        assert torch.equal(mixed.indices[b], alone.indices[b])
        assert torch.equal(mixed.is_pivot[b], alone.is_pivot[b])


def test_keeping_only_pivots_does_not_look_at_features(backend) -> None:
    features, salience = image()
    expected = select_tokens(features, salience, 4, 4)
    actual = select_tokens(torch.full_like(features, NAN), salience, 4, 4)
    torch.testing.assert_close(tuple(actual), tuple(expected))


@given(seed=seeds, dtype=dtypes)
def test_garbage_gives_a_proper_selection(backend, seed, dtype) -> None:
    random = generator(seed)
    features = random_features(seed, 2, 9, 3, dtype)
    garbage = torch.tensor([NAN, INF, -INF, 1.0])
    features[torch.rand(features.shape, generator=random) < 0.2] = NAN
    salience = garbage[torch.randint(4, (2, 9), generator=random)]
    valid = draw_mask("some", seed, 2, 9)
    selection = select_tokens(features, salience, 5, 2, valid=valid)
    for b in range(2):
        kept = [n for n in selection.indices[b].tolist() if n >= 0]
        assert len(kept) == min(5, int(valid[b].sum())) == selection.counts[b]
        assert kept == sorted(set(kept))
        assert all(valid[b, n] for n in kept)


def test_an_unknown_completion_is_refused() -> None:
    features, salience = image()
    with pytest.raises(ValueError, match="completion must be 'farthest' or 'cover', got 'near'"):
        select_tokens(features, salience, 4, 2, completion="near")


@pytest.mark.parametrize("pivot_counts", [2, [1, 3], torch.tensor([3, 9])])
def test_covering_is_pivots_then_cover_tokens(backend, pivot_counts) -> None:
    skip_without_covering(backend)
    features, salience = image()
    selection = select_tokens(features, salience, [5, 4], pivot_counts, completion="cover")
    shares = [pivot_counts] * 2 if isinstance(pivot_counts, int) else pivot_counts
    for b, (budget, share) in enumerate(zip([5, 4], shares, strict=True)):
        one = slice(b, b + 1)
        pivots = select_pivots(salience[one], min(int(share), budget))
        picks = cover_tokens(features[one], pivots, budget - pivots.shape[1])
        kept = torch.cat([pivots, picks], 1).sort(1).values
        assert torch.equal(selection.indices[one, :budget], kept)
        assert selection.counts[b] == budget
        is_pivot = selection.is_pivot[b, :budget]
        assert set(kept[0][is_pivot].tolist()) == set(pivots[0].tolist())
