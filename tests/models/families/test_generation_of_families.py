"""``generate`` in its usual modes, on every family, pruned before and inside the decoder."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from every_family import (
    CATEGORIES,
    NEW_TOKENS,
    batch,
    build,
    every_family,
    every_schedule,
    greedy,
    last,
    negated,
    oracle_logits,
    patched,
    together,
)
from transformers import StaticCache
from transformers.cache_utils import StaticLayer

from clasp_kernels.models import oracle
from clasp_kernels.models.compat import output_cache
from clasp_kernels.models.specimens import SPECIMENS

pytestmark = pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated")

TOLERANCE: dict[str, float] = {"atol": 1e-4, "rtol": 0.0}
TELL_ALL = {"return_dict_in_generate": True, "output_logits": True}
ONE = ((2, 4),)
TWO = ((1, 2, 5),)


@every_family
@every_schedule
def test_samples_of_each_prompt(family: str, where: str) -> None:
    model, prompts = build(family), batch(family)
    with patched(model, where) as handle:
        torch.manual_seed(0)
        out = model.generate(
            **prompts,
            **CATEGORIES,
            **{**greedy(model), "do_sample": True},
            **TELL_ALL,
            num_return_sequences=3,
        )
        record = last(handle)
    assert len(out.sequences) == 3 * len(prompts["input_ids"])
    wanted = oracle_logits(model, prompts, out.sequences, record)
    torch.testing.assert_close(
        torch.stack(out.logits, 1), wanted[:, -NEW_TOKENS - 1 : -1], **TOLERANCE
    )


@every_family
@every_schedule
@pytest.mark.parametrize(
    "static",
    [pytest.param(False, id="dynamic"), pytest.param(True, id="static", marks=pytest.mark.deep)],
)
def test_beams(family: str, where: str, static: bool) -> None:
    """Each beam's score equals the score of its tokens in the masked model."""
    model, prompts = build(family), batch(family)
    settings = {"cache_implementation": "static"} if static else {}
    with patched(model, where) as handle:
        out = model.generate(
            **prompts,
            **CATEGORIES,
            **greedy(model),
            **settings,
            num_beams=3,
            num_return_sequences=2,
            length_penalty=0.0,
            return_dict_in_generate=True,
            output_scores=True,
        )
        record = last(handle)
    wanted = oracle_logits(model, prompts, out.sequences, record)[:, -NEW_TOKENS - 1 : -1]
    tokens = out.sequences[:, -NEW_TOKENS:, None]
    scores = wanted.log_softmax(-1).take_along_dim(tokens, dim=-1).sum((1, 2))
    torch.testing.assert_close(out.sequences_scores, scores, **TOLERANCE)


@every_family
@every_schedule
@pytest.mark.parametrize(
    "given",
    [pytest.param(False, id="made"), pytest.param(True, id="given", marks=pytest.mark.deep)],
)
def test_a_static_cache(family: str, where: str, given: bool) -> None:
    model, prompts = build(family), batch(family)
    settings: dict[str, Any] = {"cache_implementation": "static"}
    if given:
        length = prompts["input_ids"].shape[1] + NEW_TOKENS
        settings = {"past_key_values": StaticCache(config=model.config, max_cache_len=length)}
    with patched(model, where):
        dynamic = model.generate(**prompts, **CATEGORIES, **greedy(model), **TELL_ALL)
        static = model.generate(**prompts, **CATEGORIES, **greedy(model), **TELL_ALL, **settings)
    assert torch.equal(static.sequences, dynamic.sequences)
    torch.testing.assert_close(torch.stack(static.logits), torch.stack(dynamic.logits), **TOLERANCE)


@every_family
@every_schedule
def test_drafts_and_steps_without_a_cache(family: str, where: str) -> None:
    """The kept tokens depend on the prompt only, not on drafted or generated tokens after it."""
    model, prompts = build(family), batch(family, ONE)
    assistant = build(family, decoder_layers=2)
    shallow: dict[str, Any] = {"assistant_model": assistant}
    ways: list[dict[str, Any]] = [{"use_cache": False}]
    if not model._is_stateful:  # a recurrent state cannot be cropped, so there are no drafts
        ways += [{"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1}, shallow]
    if (
        StaticLayer.is_croppable and not model._is_stateful
    ):  # before transformers 5.24, a static cache could not be cropped
        length = prompts["input_ids"].shape[1] + NEW_TOKENS + 20
        static = StaticCache(config=model.config, max_cache_len=length)
        ways.append({"assistant_model": assistant, "past_key_values": static})
    with patched(model, where) as handle:
        wanted = model.generate(**prompts, categories="ocr", **greedy(model))
        stages = last(handle).stages
        for settings in ways:
            ids = model.generate(**prompts, categories="ocr", **greedy(model), **settings)
            assert torch.equal(ids, wanted), settings
            for stage, same in zip(stages, last(handle).stages, strict=True):
                assert torch.equal(stage.indices, same.indices), settings


@every_family
@every_schedule
def test_a_padded_batch_is_its_rows(family: str, where: str) -> None:
    model = build(family)
    first, second = batch(family, ONE), negated(batch(family, TWO))
    both = together(family, first, second)
    assert both["attention_mask"][0, 0] == 0
    with patched(model, where):
        names = ["ocr", "counting"]
        out = model.generate(**both, categories=names, **greedy(model), **TELL_ALL)
        for row, (prompt, category) in enumerate(zip((first, second), names, strict=True)):
            alone = model.generate(**prompt, categories=category, **greedy(model), **TELL_ALL)
            assert torch.equal(alone.sequences[0, -NEW_TOKENS:], out.sequences[row, -NEW_TOKENS:])
            torch.testing.assert_close(
                torch.cat(alone.logits), torch.stack(out.logits, 1)[row], **TOLERANCE
            )


def turn(model: Any, ids: torch.Tensor, more: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the arguments of a conversation extended by ``more`` [1, columns]."""
    ids = torch.cat([ids, more], dim=1)
    columns = SPECIMENS[model.config.model_type].columns(model, ids)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **columns}


WORDS = torch.tensor([[21, 22, 23]])


@every_family
@every_schedule
@pytest.mark.parametrize("by_hand", [False, True], ids=["generate", "by hand"])
def test_a_second_turn_of_text(family: str, where: str, by_hand: bool) -> None:
    model, prompts = build(family), batch(family, TWO)
    with patched(model, where) as handle:
        first = model.generate(**prompts, categories="ocr", **greedy(model), **TELL_ALL)
        record = last(handle)
        if by_hand:
            ids = torch.cat([first.sequences, WORDS], dim=1)
            # The last generated token has not been fed back yet.
            new, cache = ids[:, -1 - WORDS.shape[1] :], output_cache(first)
            logits = model(input_ids=new, past_key_values=cache).logits
            columns = slice(-new.shape[1], None)
        else:
            ids, logits = go_on(model, first)
            columns = slice(-NEW_TOKENS - 1, -1)
    wanted = oracle_logits(model, prompts, ids, record)[:, columns]
    torch.testing.assert_close(logits, wanted, **TOLERANCE)


def go_on(model: Any, first: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Generate a second turn; return its ids and logits."""
    whole, cache = turn(model, first.sequences, WORDS), output_cache(first)
    again = model.generate(**whole, past_key_values=cache, **greedy(model), **TELL_ALL)
    return again.sequences, torch.stack(again.logits, 1)


@every_family
@every_schedule
def test_a_turn_after_another_conversation(family: str, where: str) -> None:
    """The state of a conversation is in its cache, not in the model."""
    model, prompts, other = build(family), batch(family, TWO), negated(batch(family, ONE))

    def second_turn(interrupted: bool, **settings: Any) -> torch.Tensor:
        first = model.generate(**prompts, **settings, **greedy(model), **TELL_ALL)
        if interrupted:
            model.generate(**other, **settings, **greedy(model))
        return go_on(model, first)[1]

    if not torch.equal(second_turn(True), second_turn(False)):
        pytest.skip("the unpatched model, too, takes the positions of the other conversation")
    with patched(model, where):
        found, wanted = (second_turn(each, categories="ocr") for each in (True, False))
    assert torch.equal(found, wanted)


@every_family
@every_schedule
def test_a_second_turn_with_images(family: str, where: str) -> None:
    model, prompts, others = build(family), batch(family, ONE), negated(batch(family, TWO))
    images = oracle._images(others)
    with patched(model, where) as handle:
        first = model.generate(**prompts, categories="ocr", **greedy(model), **TELL_ALL)
        kept = [oracle._kept(last(handle), prompts)]
        whole = turn(model, first.sequences, others["input_ids"])
        arguments = {**whole, **images, "categories": "counting", **greedy(model), **TELL_ALL}
        cache = output_cache(first)
        if family in ("gemma3", "paligemma"):
            with pytest.raises(ValueError, match=f"later turn of {family} cannot have images"):
                model.generate(**arguments, past_key_values=cache)
            return
        both = {name: torch.cat([oracle._images(prompts)[name], images[name]]) for name in images}
        if SPECIMENS[family].positions is not None:
            with pytest.raises(ValueError, match="position_ids must be given if a later turn"):
                model.generate(**arguments, past_key_values=cache)
            mask = whole["attention_mask"]
            positions = oracle._positions(model, both, whole["input_ids"], mask)
            arguments["position_ids"] = positions
        again = model.generate(**arguments, past_key_values=cache)
        start = first.sequences.shape[1] - 1  # the last token has not been fed back yet
        new = {"input_ids": whole["input_ids"][:, start:]}
        kept.append(oracle._kept(last(handle), new))
    layers = sorted(kept[0])
    between = torch.ones(1, NEW_TOKENS - 1, dtype=torch.bool)
    joined = {
        layer: torch.cat([kept[0][layer], between, kept[1][layer]], dim=1) for layer in layers
    }
    wanted = oracle._oracle(model, {**whole, **both}, again.sequences, joined)
    torch.testing.assert_close(
        torch.stack(again.logits, 1), wanted[:, -NEW_TOKENS - 1 : -1], **TOLERANCE
    )


@every_family
@every_schedule
def test_steps_by_hand_count_columns_by_themselves(family: str, where: str) -> None:
    """Without padding, neither model needs mask and position ids from the caller."""
    model, prompts = build(family), batch(family, TWO)
    ids = prompts["input_ids"]

    def steps(**settings: Any) -> tuple[torch.Tensor, torch.Tensor]:
        out = model(**prompts, **settings, use_cache=True)
        logits = [out.logits[:, -1:]]
        for token in WORDS[0].tolist():
            token_ids = torch.tensor([[token]])
            out = model(input_ids=token_ids, past_key_values=output_cache(out))
            logits.append(out.logits)
        return torch.cat([ids, WORDS], dim=1), torch.cat(logits, dim=1)

    with patched(model, where) as handle:
        whole, found = steps(categories="ocr")
        record = last(handle)
    wanted = oracle_logits(model, prompts, whole, record)[:, -1 - WORDS.shape[1] :]
    torch.testing.assert_close(found, wanted, **TOLERANCE)


@every_family
@every_schedule
def test_prompts_as_embeddings(family: str, where: str) -> None:
    model, prompts = build(family), dict(batch(family))
    positions = oracle._prompt_positions(model, prompts)
    ids = prompts.pop("input_ids")
    prompts["inputs_embeds"] = model.get_input_embeddings()(ids)
    inputs = {**prompts, "position_ids": positions}
    unpruned = model(**batch(family), position_ids=positions).logits
    torch.testing.assert_close(model(**inputs).logits, unpruned, **TOLERANCE)
    with patched(model, where):
        wanted = model(**batch(family), position_ids=positions, **CATEGORIES).logits
        try:
            found = model(**inputs, **CATEGORIES).logits
        except ValueError as refusal:
            assert "must be given as input_ids" in str(refusal)
        else:
            torch.testing.assert_close(found, wanted, **TOLERANCE)
