"""A model pruned by a rule keeps what the rule selects, before the decoder and inside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from masked_model import compare_surviving, masked_inputs, reference_fusion
from tiny_llava import images, prompts, tiny_llava, tiny_profile
from torch import Tensor

from clasp_kernels import Selection, rules
from clasp_kernels.models import apply_clasp
from clasp_kernels.models.selection_checks import check_selection
from clasp_kernels.policy import Profile, Schedule

BATCH = {**prompts([1, 5, "image", 7, 8], [1, "image", 3, 2, 9, 4]), "pixel_values": images(2)}


@pytest.fixture
def seen(own_rules: None) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Register "spy", which keeps the last tokens, and record what it is given."""
    calls: list[tuple[Tensor, Tensor]] = []

    @rules.register_rule("spy")
    def spy(
        features: Tensor, salience: Tensor, budget: Sequence[int], *, valid: Tensor | None = None
    ) -> Selection:
        calls.append((features, salience))
        last = torch.arange(features.shape[1], dtype=torch.float32).expand(len(budget), -1)
        return rules.attention(features, last, budget, valid=valid)

    yield calls


@pytest.mark.parametrize(
    "name", [name for name in rules.rule_names() if not rules.find_rule(name).pools]
)
def test_dropping_by_a_rule_is_masking(name: str) -> None:
    model = tiny_llava()
    with apply_clasp(model, budget=9, profile=tiny_profile(), rule=name) as handle:
        positions = (BATCH["attention_mask"].cumsum(1) - 1).clamp_min(0)
        pruned = model(**BATCH, position_ids=positions, categories="general").logits
    record = handle.last
    assert record.stages[0].counts == (9, 9)
    fused = reference_fusion(model, BATCH["pixel_values"], handle)
    expected = model(**masked_inputs(model, BATCH, record, fused)).logits
    compare_surviving(pruned, expected, handle, BATCH)


def test_the_rule_gets_fused_features_and_the_towers_salience(
    seen: list[tuple[Tensor, Tensor]],
) -> None:
    model = tiny_llava()
    with apply_clasp(model, budget=9, profile=tiny_profile(), rule="spy") as handle:
        model(**BATCH, categories="general")
        kept = handle.last.stages[0].indices
    assert kept.tolist() == [list(range(27, 36))] * 2
    (features, salience), *more = seen
    assert not more
    assert features.shape == (2, 36, 32) and salience.shape == (2, 36)
    assert salience.std() > 1e-4


def test_a_rule_without_salience_costs_no_scoring(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **more: object) -> None:
        raise AssertionError("salience was computed")

    monkeypatch.setattr("clasp_kernels.models.families._projected.attention_salience", fail)
    model = tiny_llava()
    with apply_clasp(model, budget=9, profile=tiny_profile(), rule="divprune"):
        model(**BATCH, categories="general")
    with (
        apply_clasp(model, budget=9, profile=tiny_profile(), rule="attention"),
        pytest.raises(AssertionError, match="salience was computed"),
    ):
        model(**BATCH, categories="general")


def test_stages_inside_the_decoder_use_the_rule(seen: list[tuple[Tensor, Tensor]]) -> None:
    model = tiny_llava()
    schedule = Schedule({0: 20, 2: 6})
    with apply_clasp(model, schedule=schedule, profile=tiny_profile(), rule="spy") as handle:
        model.generate(**BATCH, categories="general", max_new_tokens=3, do_sample=False)
        first, second = handle.last.stages
    assert first.indices.tolist() == [list(range(16, 36))] * 2
    assert second.indices.tolist() == [list(range(30, 36))] * 2
    assert [features.shape[1] for features, _ in seen] == [36, 20]


def test_inside_the_decoder_too_a_rule_without_salience_gets_zeros(
    seen: list[tuple[Tensor, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = rules.find_rule("spy").function
    rules.register_rule("blind spy", uses_salience=False)(spy)

    def fail(*arguments: object, **more: object) -> None:
        raise AssertionError("salience was computed")

    monkeypatch.setattr("clasp_kernels.models.staged.instruction_salience", fail)
    model = tiny_llava()
    schedule = Schedule({0: 20, 2: 6})
    with apply_clasp(model, schedule=schedule, profile=tiny_profile(), rule="blind spy"):
        model(**BATCH, categories="general")
    assert [float(salience.abs().sum()) for _, salience in seen] == [0, 0]


@pytest.fixture
def relevant(own_rules: None) -> Iterator[list[Tensor]]:
    """Register "relevant", which keeps the most relevant tokens, and record the relevance."""
    given: list[Tensor] = []

    @rules.register_rule("relevant", uses_salience=False, uses_relevance=True)
    def relevant(
        features: Tensor,
        salience: Tensor,
        budget: Sequence[int],
        *,
        relevance: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> Selection:
        assert relevance is not None
        given.append(relevance)
        return rules.attention(features, relevance, budget, valid=valid)

    yield given


def words_after_the_image(row: int) -> list[int]:
    """Columns of BATCH: what follows the last placeholder, without padding."""
    ids, mask = BATCH["input_ids"][row], BATCH["attention_mask"][row]
    image = (ids == tiny_llava().config.image_token_id).nonzero().max()
    return [c for c in range(len(ids)) if c > image and mask[c]]


@pytest.mark.parametrize("embeds", [False, True])
def test_relevance_is_that_of_projected_tokens_to_the_text_after_the_image(
    relevant: list[Tensor], embeds: bool
) -> None:
    model = tiny_llava()
    inputs = dict(BATCH)
    embed = model.get_input_embeddings()
    states = embed(inputs["input_ids"])
    if embeds:
        inputs["inputs_embeds"] = states.clone()
        del inputs["input_ids"]
    with torch.no_grad():
        tokens = model.get_image_features(pixel_values=BATCH["pixel_values"])
        tokens = getattr(tokens, "pooler_output", tokens)
    with apply_clasp(model, budget=9, profile=tiny_profile(), rule="relevant") as handle:
        model(**inputs, categories="general")
        kept = handle.last.stages[0].indices
    for row, relevance in enumerate(relevant[0]):
        text = states[row, words_after_the_image(row)]
        expected = torch.cosine_similarity(tokens[row][:, None], text[None], dim=-1).mean(1)
        torch.testing.assert_close(relevance, expected, rtol=1e-4, atol=1e-5)
        assert kept[row].tolist() == sorted(expected.topk(9).indices.tolist())


def test_relevance_does_not_depend_on_beams_or_padding(relevant: list[Tensor]) -> None:
    model = tiny_llava()
    with apply_clasp(model, budget=9, profile=tiny_profile(), rule="relevant"):
        model(**BATCH, categories="general")
        settings = {"max_new_tokens": 2, "do_sample": False, "categories": "general"}
        model.generate(**BATCH, **settings, num_beams=3)
        alone = {"pixel_values": BATCH["pixel_values"][:1]}
        is_token = BATCH["attention_mask"][0].bool()
        for name in ("input_ids", "attention_mask"):
            alone[name] = BATCH[name][:1, is_token]
        model(**alone, categories="general")
    first, beams, single = relevant
    torch.testing.assert_close(beams, first)
    torch.testing.assert_close(single, first[:1])


def test_inside_the_decoder_relevance_is_that_of_hidden_states(relevant: list[Tensor]) -> None:
    model = tiny_llava()
    hidden: list[Tensor] = []
    layers = model.get_decoder().layers
    hook = layers[1].register_forward_hook(
        lambda module, given, output: hidden.append(
            output[0] if isinstance(output, tuple) else output
        )
    )
    schedule = Schedule({2: 6})
    with apply_clasp(model, schedule=schedule, profile=tiny_profile(), rule="relevant"):
        model(**BATCH, categories="general")
    hook.remove()
    image_token = model.config.image_token_id
    for row, relevance in enumerate(relevant[0]):
        tokens = hidden[0][row, BATCH["input_ids"][row] == image_token]
        text = hidden[0][row, words_after_the_image(row)]
        expected = torch.cosine_similarity(tokens[:, None], text[None], dim=-1).mean(1)
        torch.testing.assert_close(relevance, expected, rtol=1e-4, atol=1e-5)


def test_a_prompt_that_ends_with_its_image_is_compared_with_all_of_its_text(
    relevant: list[Tensor],
) -> None:
    model = tiny_llava()
    inputs = {**prompts([1, 5, 7, "image"]), "pixel_values": images(1)}
    with apply_clasp(model, budget=9, profile=tiny_profile(), rule="relevant"):
        model(**inputs, categories="general")
    with torch.no_grad():
        tokens = model.get_image_features(pixel_values=inputs["pixel_values"])
        tokens = getattr(tokens, "pooler_output", tokens)[0]
        text = model.get_input_embeddings()(torch.tensor([1, 5, 7]))
    expected = torch.cosine_similarity(tokens[:, None], text[None], dim=-1).mean(1)
    torch.testing.assert_close(relevant[0][0], expected, rtol=1e-4, atol=1e-5)


def test_clasp_by_name_is_the_default() -> None:
    model = tiny_llava()
    kept = []
    for rule in (None, "clasp"):
        with apply_clasp(model, budget=9, profile=tiny_profile(), rule=rule) as handle:
            model(**BATCH, categories=["ocr", "counting"])
            kept.append(handle.last.stages[0])
    assert torch.equal(kept[0].indices, kept[1].indices)
    assert kept[1].is_pivot.sum(1).tolist() == [7, 2]  # the profile's, by category


def test_a_name_that_no_rule_has_is_refused_before_anything_changes() -> None:
    model = tiny_llava()
    with pytest.raises(
        ValueError, match=r"rule must be 'clasp' or 'clasp_clusters' or .* got 'fastv'"
    ):
        apply_clasp(model, profile=tiny_profile(), rule="fastv")
    apply_clasp(model, profile=tiny_profile()).remove()


def too_few(selection: Selection) -> object:
    indices = selection.indices.clone()
    indices[0, -1] = -1
    return selection._replace(indices=indices)


def test_a_rule_may_not_keep_the_padding_of_a_smaller_image() -> None:
    indices = torch.tensor([[1, 3], [0, 2]])
    selection = Selection(indices, torch.ones(2, 2, dtype=torch.bool), torch.tensor([2, 2]))
    valid = torch.tensor([[True] * 4, [True, True, False, False]])
    message = r"rule 'r' must keep valid tokens of an image, of which it has 2, got \[2\]"
    with pytest.raises(ValueError, match=message):
        check_selection(rules.Rule("r", rules.uniform), selection, [2, 2], 4, valid)


def test_images_may_keep_different_numbers_of_tokens() -> None:
    rule = rules.Rule("r", rules.uniform)
    pivots, counts = torch.ones(3, 3, dtype=torch.bool), torch.tensor([3, 1, 0])
    rows = [[0, 2, 3], [1, -1, -1], [-1, -1, -1]]
    check_selection(rule, Selection(torch.tensor(rows), pivots, counts), [3, 1, 0], 4, None)
    rows[1] = [-1, 1, -1]
    message = r"padded with -1 at the end, got \[-1, 1, -1\]"
    with pytest.raises(ValueError, match=message):
        check_selection(rule, Selection(torch.tensor(rows), pivots, counts), [3, 1, 0], 4, None)


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda it: it.indices, TypeError, "must return a Selection, got Tensor"),
        (
            lambda it: it._replace(indices=it.indices[:, 1:]),
            ValueError,
            r"must return indices of shape \[2, 9\] and torch.int64, got \[2, 8\]",
        ),
        (
            lambda it: it._replace(is_pivot=it.is_pivot.int()),
            ValueError,
            "must return is_pivot of shape .* got .* torch.int32",
        ),
        (too_few, ValueError, r"must keep \[9, 9\] tokens of the images, got \[8, 9\]"),
        (
            lambda it: it._replace(indices=it.indices.flip(1)),
            ValueError,
            "must return ascending indices",
        ),
        (
            lambda it: it._replace(indices=it.indices + 30),
            ValueError,
            r"must keep valid tokens of an image, of which it has 36, got \[\d+",
        ),
    ],
)
def test_what_a_rule_returns_is_checked(
    seen: list[tuple[Tensor, Tensor]], spoil: Any, error: type[Exception], message: str
) -> None:
    @rules.register_rule("spoiled")
    def spoiled(
        features: Tensor, salience: Tensor, budget: Sequence[int], *, valid: Tensor | None = None
    ) -> Any:
        return spoil(rules.attention(features, salience, budget, valid=valid))

    model = tiny_llava()
    with (
        apply_clasp(model, budget=9, profile=tiny_profile(), rule="spoiled"),
        pytest.raises(error, match=f"rule 'spoiled' {message}"),
    ):
        model(**BATCH, categories="general")


def ruled_profile(**rules: str) -> Profile:
    """Return ``tiny_profile`` with the rules of some of its categories."""
    profile = tiny_profile()
    return replace(
        profile,
        categories={
            name: replace(policy, rule=rules.get(name))
            for name, policy in profile.categories.items()
        },
    )


@pytest.mark.parametrize("schedule", [Schedule({0: 9}), Schedule({0: 20, 2: 9})])
def test_each_prompt_of_a_batch_is_pruned_by_the_rule_of_its_category(schedule: Schedule) -> None:
    model = tiny_llava()
    # "spatial" has half the budget, so the selections of the batch differ in width too.
    profile = ruled_profile(ocr="attention", spatial="cdpruner", counting="divprune")
    names = ["ocr", "spatial", "general", "counting", "ocr"]
    batch = {
        **prompts(*[[1, 5 + n, "image", 7, 8] for n in range(5)]),
        "pixel_values": images(5),
    }

    def kept(names: list[str], rule: str | None, profile: Profile) -> list[list[list[int]]]:
        with apply_clasp(model, schedule=schedule, profile=profile, rule=rule) as handle:
            model.generate(**batch, categories=names, max_new_tokens=1)
            return [stage.indices.tolist() for stage in handle.last.stages]

    together = kept(names, None, profile)
    each = {name: kept([name] * 5, None, profile) for name in set(names)}
    for stage, rows in enumerate(together):
        for row, name in enumerate(names):
            alone = each[name][stage][row]
            assert rows[row] == alone + [-1] * (len(rows[row]) - len(alone)), (stage, name)
    # Each category's rule is the one that apply_clasp would take by name.
    plain = tiny_profile()
    assert each["ocr"] == kept(["ocr"] * 5, "attention", plain)
    assert each["spatial"] == kept(["spatial"] * 5, "cdpruner", plain)
    assert each["general"] == kept(["general"] * 5, None, plain)
    assert each["ocr"] != kept(["ocr"] * 5, None, plain)
    # A rule by name goes before those of the profile.
    assert kept(names, "clasp", profile) == kept(names, None, plain)


def test_a_rule_that_averages_tokens_leaves_the_other_prompts_of_a_batch_alone() -> None:
    model = tiny_llava()
    profile = ruled_profile(ocr="pool", counting="divprune")
    names = ["general", "ocr", "counting"]
    batch = {**prompts(*[[1, 5 + n, "image", 7, 8] for n in range(3)]), "pixel_values": images(3)}
    given: list[Tensor] = []
    watching = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: given.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with apply_clasp(model, budget=9, profile=profile):
        model(**batch, categories=names)
        for name in names:
            model(**batch, categories=name)
    watching.remove()
    together, *each = given
    for row, alone in enumerate(each):
        assert together[row].equal(alone[row]), names[row]
    assert not each[0][1].equal(each[1][1])  # averaging the second image is not keeping its tokens


def test_a_rule_of_the_profile_that_is_not_there_is_an_error_before_anything_runs() -> None:
    model = tiny_llava()
    with pytest.raises(ValueError, match=r"profile 'tiny': rule must be .*'nothing'"):
        apply_clasp(model, budget=9, profile=ruled_profile(ocr="nothing"))
    apply_clasp(model, budget=9, profile=tiny_profile()).remove()  # the model is not patched
