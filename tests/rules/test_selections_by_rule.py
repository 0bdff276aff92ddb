"""Each rule against a description of its algorithm, token by token, and what holds of all rules."""

from __future__ import annotations

import pytest
import torch
from interpreter import python
from torch import Tensor

from clasp_kernels import Selection, rules, select_tokens

BUILT_IN = rules.rule_names()


def images(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Features of small integers, whose similarities tie here and there; salience; valid."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randint(-3, 4, (3, 40, 6), generator=generator).to(dtype)
    salience = torch.randint(0, 12, (3, 40), generator=generator) / 12
    valid = torch.rand(3, 40, generator=generator) < 0.7
    valid[0] = True
    return features, salience, valid


def places(features: Tensor) -> Tensor:
    """Places of the tokens in rows of 8."""
    token = torch.arange(features.shape[1])
    row = torch.stack([0 * token, (token // 8 + 0.5) / 8, (token % 8 + 0.5) / 8], -1)
    return row.expand(len(features), -1, -1)


def cosine(features: Tensor) -> Tensor:
    rows = features.double()
    norms = rows.norm(dim=-1, keepdim=True)
    unit = torch.where(norms > 0, rows / norms, 0.0)
    return (unit @ unit.T).round(decimals=5)


def kept(selection: Selection, image: int) -> list[int]:
    return selection.indices[image, : selection.counts[image]].tolist()


@pytest.mark.parametrize("name", BUILT_IN)
def test_keeps_the_budget_of_valid_tokens_in_order(name: str) -> None:
    features, salience, valid = images()
    selection = rules.find_rule(name)(
        features, salience, [12, 7, 1], places=places(features), valid=valid
    )
    assert selection.indices.shape == selection.is_pivot.shape == (3, 12)
    assert selection.indices.dtype == torch.int64 and selection.is_pivot.dtype == torch.bool
    assert selection.counts.tolist() == [12, 7, 1]
    for image in range(3):
        tokens = kept(selection, image)
        assert tokens == sorted(set(tokens))
        assert valid[image, tokens].all()
        assert (selection.indices[image, len(tokens) :] == -1).all()
        assert not selection.is_pivot[image, len(tokens) :].any()


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_budget_of_more_than_there_is_keeps_all(name: str) -> None:
    features, salience, valid = images()
    selection = rules.find_rule(name)(
        features, salience, [50, 50, 50], places=places(features), valid=valid
    )
    for image in range(3):
        assert kept(selection, image) == valid[image].nonzero().flatten().tolist()


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 5, 3)])
def test_nothing_to_select(name: str, shape: tuple[int, int, int]) -> None:
    features = torch.ones(shape)
    selection = rules.find_rule(name)(
        features, torch.zeros(shape[:2]), [0] * shape[0], places=places(features)
    )
    assert selection.indices.shape == (shape[0], 0)
    assert selection.counts.tolist() == [0] * shape[0]


@pytest.mark.parametrize("name", BUILT_IN)
def test_an_image_does_not_depend_on_its_batch(name: str) -> None:
    features, salience, valid = images()
    rule = rules.find_rule(name)
    together = rule(features, salience, [12, 7, 5], places=places(features), valid=valid)
    for image, budget in enumerate([12, 7, 5]):
        part = slice(image, image + 1)
        alone = rule(
            *(features[part], salience[part], [budget]),
            places=places(features[part]),
            valid=valid[part],
        )
        if name != "random":  # whose tokens depend on the shape of the batch
            assert kept(alone, 0) == kept(together, image)


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_that_is_exact_gives_the_same(name: str, dtype: torch.dtype) -> None:
    features, salience, valid = images()
    rule = rules.find_rule(name)
    full = rule(features, salience, [9, 9, 9], places=places(features), valid=valid)
    half = rule(features.to(dtype), salience, [9, 9, 9], places=places(features), valid=valid)
    assert torch.equal(full.indices, half.indices)


@pytest.mark.parametrize("name", BUILT_IN)
def test_global_generators_are_left_alone(name: str) -> None:
    features, salience, valid = images()
    before = torch.get_rng_state()
    rule, given = rules.find_rule(name), {"places": places(features), "valid": valid}
    first = rule(features, salience, [9, 9, 9], **given)
    assert torch.equal(torch.get_rng_state(), before)
    again = rule(features, salience, [9, 9, 9], **given)
    assert torch.equal(first.indices, again.indices)


def test_clasp_is_half_pivots() -> None:
    features, salience, valid = images()
    selection = rules.clasp(features, salience, [12, 7, 1], valid=valid)
    expected = select_tokens(features, salience, [12, 7, 1], [6, 4, 1], valid=valid)
    assert all(map(torch.equal, selection, expected))


def test_attention_keeps_the_most_salient() -> None:
    features, salience, valid = images()
    selection = rules.attention(features, salience, [9, 9, 9], valid=valid)
    for image in range(3):
        tokens = valid[image].nonzero().flatten().tolist()
        best = sorted(tokens, key=lambda n: (-float(salience[image, n]), n))[:9]
        assert kept(selection, image) == sorted(best)
    assert selection.is_pivot.all()


@pytest.mark.parametrize("seed", range(5))
def test_divprune_is_greedy_max_min(seed: int) -> None:
    features, salience, valid = images(seed)
    selection = rules.divprune(features, salience, [9, 5, 2], valid=valid)
    for image, budget in enumerate([9, 5, 2]):
        similarity = cosine(features[image])
        tokens = valid[image].nonzero().flatten().tolist()
        nearest = {n: max(float(similarity[n, m]) for m in tokens if m != n) for n in tokens}
        picks = [min(tokens, key=lambda n: (nearest[n], n))]
        while len(picks) < budget:
            rest = [n for n in tokens if n not in picks]
            picks.append(min(rest, key=lambda n: (max(float(similarity[n, m]) for m in picks), n)))
        assert kept(selection, image) == sorted(picks)
    assert not selection.is_pivot.any()


def test_divprune_finds_its_first_token_in_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    features, salience, valid = images()
    expected = rules.divprune(features, salience, [9, 5, 2], valid=valid)
    monkeypatch.setattr("clasp_kernels.rules._divprune._ROWS", 7)
    assert torch.equal(
        rules.divprune(features, salience, [9, 5, 2], valid=valid).indices, expected.indices
    )


@pytest.mark.parametrize("budgets", [[21, 9, 3], [2, 1, 12]])
def test_dart_adds_what_is_least_like_each_pivot_in_turn(budgets: list[int]) -> None:
    features, salience, valid = images()
    selection = rules.dart(features, salience, budgets, valid=valid)
    for image, budget in enumerate(budgets):
        similarity = cosine(features[image])
        tokens = valid[image].nonzero().flatten().tolist()
        number = min(8, max(1, budget // 2))
        pivots = sorted(tokens, key=lambda n: (-float(salience[image, n]), n))[:number]
        picks = list(pivots)
        for turn, pivot in enumerate(pivots):
            share, left = divmod(budget - number, number)
            rest = [n for n in tokens if n not in picks]
            least = sorted(rest, key=lambda n: (float(similarity[n, pivot]), n))
            picks += least[: share + (turn < left)]
        assert kept(selection, image) == sorted(picks)
        row = selection.is_pivot[image, : len(picks)]
        assert selection.indices[image, : len(picks)][row].tolist() == sorted(pivots)


def test_every_rule_is_exported_and_tested() -> None:
    assert set(BUILT_IN) <= set(rules.__all__)
    assert len(BUILT_IN) == 12


def relevance_of(seed: int) -> Tensor:
    return torch.randn(3, 40, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(4))
def test_cenprune_is_weighted_max_min_of_what_differs_from_the_mean(seed: int) -> None:
    # Not of integers: the means would round, and there would be ties.
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(3, 40, 6, generator=generator) + 3
    _, salience, valid = images(seed)
    selection = rules.cenprune(features, salience, [9, 5, 2], valid=valid)
    for image, budget in enumerate([9, 5, 2]):
        tokens = valid[image].nonzero().flatten().tolist()
        rows = features[image].double()
        rows = rows - rows[tokens].mean(0)
        weight = rows.norm(dim=-1)
        similarity = cosine(rows)
        picks = [max(tokens, key=lambda n: float(weight[n]))]
        while len(picks) < budget:
            rest = [n for n in tokens if n not in picks]
            gains = {
                n: float(weight[n]) * (1 - max(float(similarity[n, m]) for m in picks))
                for n in rest
            }
            picks.append(max(rest, key=lambda n: gains[n]))
        assert kept(selection, image) == sorted(picks)


def test_cenprune_ignores_what_all_tokens_share() -> None:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(3, 40, 6, generator=generator)
    expected = rules.cenprune(features, torch.zeros(3, 40), [9, 9, 9])
    moved = rules.cenprune(features + 2, torch.zeros(3, 40), [9, 9, 9])
    assert torch.equal(moved.indices, expected.indices)
    # Unlike a rule that compares the tokens as they are.
    expected = rules.divprune(features, torch.zeros(3, 40), [9, 9, 9])
    moved = rules.divprune(features + 2, torch.zeros(3, 40), [9, 9, 9])
    assert not torch.equal(moved.indices, expected.indices)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("with_prompt", [False, True])
def test_cdpruner_maximizes_the_determinant_greedily(seed: int, with_prompt: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(3, 40, 16, generator=generator)
    _, salience, valid = images(seed)
    relevance = relevance_of(seed) if with_prompt else None
    selection = rules.cdpruner(features, salience, [9, 5, 2], relevance=relevance, valid=valid)
    for image, budget in enumerate([9, 5, 2]):
        tokens = valid[image].nonzero().flatten().tolist()
        unit = torch.nn.functional.normalize(features[image].double(), dim=-1)
        quality = torch.ones(40, dtype=torch.float64)
        if relevance is not None:
            values = relevance[image].double()
            low, high = values[tokens].min(), values[tokens].max()
            quality = ((values - low) / (high - low)).clamp(0, 1)
        kernel = quality[:, None] * (unit @ unit.T) * quality
        picks: list[int] = []
        while len(picks) < budget:
            rest = [n for n in tokens if n not in picks]
            volumes = {
                n: float(torch.linalg.det(kernel[[*picks, n]][:, [*picks, n]])) for n in rest
            }
            # Without a prompt, all single tokens have the volume 1.
            picks.append(min(rest, key=lambda n: (-round(volumes[n], 12), n)))
        assert kept(selection, image) == sorted(picks)


def test_cdpruner_orders_what_is_explained_by_index() -> None:
    features = torch.eye(2).repeat_interleave(5, 0)[None]
    selection = rules.cdpruner(features, torch.zeros(1, 10), [4])
    assert kept(selection, 0) == [0, 1, 2, 5]


def test_cdpruner_keeps_what_is_not_finite_last() -> None:
    features = torch.randn(1, 12, 4, generator=torch.Generator().manual_seed(0))
    features[0, 3, 1] = float("nan")
    assert 3 not in kept(rules.cdpruner(features, torch.zeros(1, 12), [11]), 0)
    assert len(kept(rules.cdpruner(features, torch.zeros(1, 12), [12]), 0)) == 12


@pytest.mark.parametrize("seed", range(4))
def test_scope_is_coverage_times_salience(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(3, 40, 6, generator=generator)
    salience = torch.rand(3, 40, generator=generator) * 1e-3
    _, _, valid = images(seed)
    selection = rules.scope(features, salience, [9, 5, 2], valid=valid)
    for image, budget in enumerate([9, 5, 2]):
        tokens = valid[image].nonzero().flatten().tolist()
        similarity = cosine(features[image]).clamp(min=0)
        covered = dict.fromkeys(tokens, 0.0)
        picks: list[int] = []
        while len(picks) < budget:
            rest = [n for n in tokens if n not in picks]
            gains = {
                n: float(salience[image, n])
                * sum(max(0.0, float(similarity[n, m]) - covered[m]) for m in tokens)
                for n in rest
            }
            picks.append(max(rest, key=lambda n: gains[n]))
            covered = {m: max(seen, float(similarity[picks[-1], m])) for m, seen in covered.items()}
        assert kept(selection, image) == sorted(picks)


@pytest.mark.parametrize("budgets", [[21, 9, 3], [2, 1, 12]])
def test_visionzip_is_dominant_tokens_and_a_sample_of_the_rest(budgets: list[int]) -> None:
    features, salience, valid = images()
    selection = rules.visionzip(features, salience, budgets, valid=valid)
    for image, budget in enumerate(budgets):
        tokens = valid[image].nonzero().flatten().tolist()
        number = round(budget * 5 / 32 + 1e-9)
        dominant = sorted(tokens, key=lambda n: (-float(salience[image, n]), n))[: budget - number]
        rest = [n for n in tokens if n not in dominant]
        sample = rest[:: max(1, len(rest) // max(1, number))][:number]
        assert kept(selection, image) == sorted(dominant + sample)
        row = selection.is_pivot[image, :budget]
        assert selection.indices[image, :budget][row].tolist() == sorted(dominant)


@pytest.mark.parametrize("seed", range(4))
def test_clasp_clusters_keeps_one_token_of_each_cluster(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(3, 40, 5, generator=generator)
    _, salience, valid = images(seed)
    budgets = [12, 7, 3]
    selection = rules.clasp_clusters(features, salience, budgets, valid=valid)
    for image, budget in enumerate(budgets):
        tokens = valid[image].nonzero().flatten().tolist()
        share = max(1, round(budget / 2))
        pivots = sorted(tokens, key=lambda n: (-float(salience[image, n]), n))[:share]
        unit = torch.nn.functional.normalize(features[image].double(), dim=-1)
        similarity = cosine(features[image])
        rest = [n for n in tokens if n not in pivots]
        seeds: list[int] = []
        while len(seeds) < budget - share:
            left = [n for n in rest if n not in seeds]
            known = pivots + seeds
            seeds.append(min(left, key=lambda n: (max(float(similarity[n, m]) for m in known), n)))
        centres = [unit[n] for n in seeds]

        def cluster(n: int, centres: list[Tensor], unit: Tensor = unit) -> int:
            return int(torch.stack([unit[n] @ centre for centre in centres]).argmax())

        for _ in range(5):
            groups = [[n for n in rest if cluster(n, centres) == k] for k in range(len(centres))]
            assert all(groups), "the seed of this test makes no empty cluster"
            means = [unit[group].mean(0) for group in groups]
            centres = [mean / mean.norm() for mean in means]
        groups = [[n for n in rest if cluster(n, centres) == k] for k in range(len(centres))]
        best = [
            max(group, key=lambda n: float(unit[n] @ centre))
            for group, centre in zip(groups, centres, strict=True)
        ]
        assert kept(selection, image) == sorted(pivots + best)
        row = selection.is_pivot[image, :budget]
        assert selection.indices[image, :budget][row].tolist() == sorted(pivots)


def test_clasp_clusters_fills_the_place_of_an_empty_cluster() -> None:
    # Four different tokens and six duplicates: there are fewer clusters than wanted.
    features = torch.eye(4)[[0, 1, 2, 3, 1, 1, 1, 1, 2, 3]][None]
    salience = torch.tensor([[1.0, *[0.1] * 9]])
    selection = rules.clasp_clusters(features, salience, [8])
    assert selection.counts.tolist() == [8]
    assert len(set(kept(selection, 0))) == 8


@pytest.mark.parametrize("name", BUILT_IN)
def test_no_tokens_with_a_budget_keep_none(name: str) -> None:
    selection = rules.find_rule(name)(
        torch.zeros(1, 0, 4), torch.zeros(1, 0), [2], places=torch.zeros(1, 0, 3)
    )
    assert selection.indices.tolist() == [[-1, -1]] and selection.counts.tolist() == [0]


@pytest.mark.parametrize("name", BUILT_IN)
def test_what_is_not_finite_still_fills_the_budget(name: str) -> None:
    features, salience, valid = images()
    for value in (float("nan"), float("inf")):
        bad = torch.full_like(features, value)
        selection = rules.find_rule(name)(
            bad, salience, [12, 7, 1], places=places(bad), valid=valid
        )
        assert selection.counts.tolist() == [12, 7, 1]


def test_cenprune_keeps_what_is_not_finite_last() -> None:
    nan = float("nan")
    features = torch.tensor([[[nan, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]])
    assert kept(rules.cenprune(features, torch.zeros(1, 4), [3]), 0) == [1, 2, 3]
    features = torch.tensor([[[nan, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]])
    assert kept(rules.cenprune(features, torch.zeros(1, 4), [1]), 0) == [1]


@pytest.mark.parametrize("seed", range(6))
def test_cdpruner_beyond_the_rank_does_not_depend_on_the_batch(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2, 144, 64, generator=generator)
    relevance = torch.randn(2, 144, generator=generator)
    together = rules.cdpruner(features, torch.zeros(2, 144), [72, 72], relevance=relevance)
    alone = rules.cdpruner(features[:1], torch.zeros(1, 144), [72], relevance=relevance[:1])
    assert kept(alone, 0) == kept(together, 0)


def test_a_relevance_that_is_no_number_counts_as_0() -> None:
    relevance = torch.tensor([[float("nan"), 0.5, 0.5, 0.5]])
    selection = rules.cdpruner(torch.eye(4)[None], torch.zeros(1, 4), [1], relevance=relevance)
    assert kept(selection, 0) == [1]


def test_relevance_is_the_mean_cosine_with_the_text() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens, text = torch.randn(2, 9, 6, generator=generator), torch.randn(2, 5, 6)
    is_text = torch.tensor([[True, False, True, True, False], [False] * 5])
    tokens[0, 4] = 0
    relevance = rules.prompt_relevance(tokens, text, is_text)
    assert relevance.shape == (2, 9) and relevance.dtype == torch.float32
    for n in range(9):
        if n == 4:
            assert relevance[0, n] == 0
            continue
        cosines = torch.cosine_similarity(tokens[0, n][None], text[0][is_text[0]], dim=-1)
        torch.testing.assert_close(relevance[0, n], cosines.mean())
    assert not relevance[1].any()
    whole = rules.prompt_relevance(tokens.half(), text.half())
    torch.testing.assert_close(
        whole[0, 2],
        torch.cosine_similarity(tokens[0, 2][None], text[0], dim=-1).mean(),
        rtol=1e-2,
        atol=1e-3,
    )


@pytest.mark.usefixtures("own_rules")
def test_only_a_rule_that_uses_relevance_is_given_it() -> None:
    features, salience, _ = images()
    given = []

    @rules.register_rule("relevant", uses_relevance=True)
    def relevant(features, salience, budget, *, relevance=None, valid=None) -> Selection:
        given.append(relevance)
        return rules.attention(features, salience, budget, valid=valid)

    relevance = relevance_of(0)
    for name in ("relevant", "attention"):
        rules.find_rule(name)(features, salience, [9, 9, 9], relevance=relevance)
    assert given == [relevance] or (torch.equal(given[0], relevance) and len(given) == 1)


def test_uniform_takes_equal_steps() -> None:
    features = torch.ones(2, 40, 2)
    valid = torch.ones(2, 40, dtype=torch.bool)
    valid[1, :10] = False
    selection = rules.uniform(features, torch.zeros(2, 40), [10, 7], valid=valid)
    assert kept(selection, 0) == list(range(3, 40, 4))
    steps = torch.tensor(kept(selection, 1)).diff()
    assert set(steps.tolist()) <= {4, 5}  # of 30 tokens, seven


@pytest.mark.usefixtures("own_rules")
def test_a_name_is_registered_once() -> None:
    rules.register_rule("mine")(rules.uniform)
    assert rules.find_rule("mine").uses_salience
    with pytest.raises(ValueError, match="name must be one that no rule has yet, got 'mine'"):
        rules.register_rule("mine")(rules.uniform)


def test_a_name_that_no_rule_has_lists_those_there_are() -> None:
    with pytest.raises(
        ValueError, match=r"rule must be 'clasp', 'clasp_clusters', .*; got 'fastv'"
    ):
        rules.find_rule("fastv")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_divprune_keeps_what_is_not_finite_last(value: float) -> None:
    features, salience, _ = images()
    expected = rules.divprune(features[:, 1:], salience[:, 1:], [9, 5, 39])
    features[:, 0, 2] = value
    selection = rules.divprune(features, salience, [9, 5, 39])
    for image in range(3):
        assert kept(selection, image) == [token + 1 for token in kept(expected, image)]
    assert kept(rules.divprune(features, salience, [9, 5, 40]), 2) == list(range(40))


def test_divprune_takes_a_zero_vector_for_similar_to_nothing() -> None:
    features = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.0, 0.0], [0.1, 1.0]]])
    assert kept(rules.divprune(features, torch.zeros(1, 4), [2]), 0) == [0, 2]


def test_the_package_has_them() -> None:
    done = python("import clasp_kernels; assert clasp_kernels.rules.find_rule('clasp')")
    assert done.returncode == 0, done.stderr
