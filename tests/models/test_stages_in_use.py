"""Pruning inside the decoder in use: later turns, drafts, training, copies, memory."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from masked_layers import kept_in_layers, layers_masked
from test_stages import LAYERS, check_generation, check_prefill, last, positions, pruned
from tiny_llava import IMAGE_TOKEN, images, prompts, saved_and_loaded, tiny_llava, tiny_profile
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from transformers import (
    CompileConfig,
    DynamicCache,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    StaticCache,
)
from transformers.cache_utils import StaticLayer

from clasp_kernels.models import apply_clasp, remove_clasp
from clasp_kernels.models.compat import output_cache
from clasp_kernels.policy import Schedule

THREE = Schedule({1: 20, 2: 9, 4: 4})
PADDED = prompts([1, 5, "image", 7, 8], [1, "image", 3, "image", 9])
GREEDY = {"max_new_tokens": 5, "suppress_tokens": [IMAGE_TOKEN], "do_sample": False}


@pytest.fixture
def model() -> Any:
    return tiny_llava(decoder_layers=LAYERS)


@pytest.fixture
def padded() -> dict[str, torch.Tensor]:
    return {**PADDED, "pixel_values": images(3)}


def cache_of(output: Any) -> Any:
    return getattr(output, "cache", None) or output.past_key_values


def lengths(cache: Any) -> list[int]:
    return [int(layer.get_seq_length()) for layer in cache.layers]


@pytest.mark.parametrize(
    "text",
    [
        partial(MistralConfig, sliding_window=None),
        partial(MistralConfig, sliding_window=200),
        Qwen2Config,
        partial(Qwen3Config, head_dim=8),
    ],
    ids=["mistral", "mistral with a window", "qwen2", "qwen3"],
)
def test_other_language_models(padded: dict[str, torch.Tensor], text: Any) -> None:
    model = tiny_llava(decoder_layers=LAYERS, text_config=text)
    assert check_prefill(model, padded, ["ocr", "counting"], THREE) > 1e-2
    check_generation(model, (padded, ["ocr", "counting"]), THREE, {})


def test_every_layer_holds_its_own_columns(model: Any, padded: dict[str, torch.Tensor]) -> None:
    with pruned(model, THREE) as handle:
        out = model.generate(**padded, **GREEDY, return_dict_in_generate=True)
    record = last(handle)
    assert [stage.layer for stage in record.stages] == [1, 2, 4]
    assert [stage.counts for stage in record.stages] == [(20,) * 3, (9,) * 3, (4,) * 3]
    assert [stage.tokens_before for stage in record.stages] == [36, 20, 9]
    assert [stage.tokens_after for stage in record.stages] == [20, 9, 4]
    text = int((padded["input_ids"][1] != IMAGE_TOKEN).sum())
    widths = [text + 2 * kept for kept in (36, 20, 9, 9, 4)]
    assert lengths(cache_of(out)) == [width + 4 for width in widths]
    column = 2 * 2 * 2 * 8 * 4  # keys and values, prompts, heads, width, bytes
    assert record.kv_cache_bytes_per_layer == tuple(column * width for width in widths)
    assert record.kv_cache_bytes == column * sum(widths)
    assert record.kv_cache_bytes_unpruned == column * 5 * widths[0]
    assert record.pruned_length == widths[-1]
    for before, after in pairwise(record.stages):
        for image in range(3):
            assert set(after.indices[image].tolist()) < set(before.indices[image].tolist())
    assert all(stage.seconds > 0 for stage in record.stages)
    assert torch.equal(record.columns, record.stages[-1].columns)


@pytest.mark.parametrize("schedule", [THREE, Schedule({0: 9})], ids=str)
def test_a_static_cache_is_as_long_as_what_is_kept(
    model: Any, padded: dict[str, torch.Tensor], schedule: Schedule
) -> None:
    static = {**GREEDY, "cache_implementation": "static", "return_dict_in_generate": True}
    with pruned(model, schedule):
        dynamic = model.generate(**padded, **GREEDY, return_dict_in_generate=True)
        out = model.generate(**padded, **static)
    assert torch.equal(out.sequences, dynamic.sequences)
    allocated = [layer.keys.shape[2] for layer in cache_of(out).layers]
    # The last generated token is never fed back, so transformers allocates no column for it.
    assert allocated == lengths(cache_of(dynamic))
    with pruned(model, schedule):
        own = StaticCache(config=model.config, max_cache_len=100)
        out = model.generate(**padded, **GREEDY, past_key_values=own, return_dict_in_generate=True)
    assert torch.equal(out.sequences, dynamic.sequences)
    assert [layer.keys.shape[2] for layer in own.layers] == [100] * LAYERS


def test_static_lengths_never_shrink(model: Any) -> None:
    """Lengths never shrink, so that compiled decoding is not recompiled."""
    static = {**GREEDY, "cache_implementation": "static", "return_dict_in_generate": True}
    one = {**prompts([1, "image", 7, 8]), "pixel_values": images(1)}
    allocated = []
    with pruned(model, THREE):
        for category in ("general", "spatial", "general"):
            out = model.generate(**one, **static, categories=category)
            allocated.append([layer.keys.shape[2] for layer in cache_of(out).layers])
    assert allocated[0] == allocated[1] == allocated[2]


def test_compiled_decoding_is_one_graph(model: Any, padded: dict[str, torch.Tensor]) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def count(graph: torch.fx.GraphModule, example: list[torch.Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    compile_config = CompileConfig(backend=count, fullgraph=True, mode=None, dynamic=False)
    compile_config._compile_all_devices = True
    static = {"cache_implementation": "static", "compile_config": compile_config}
    with pruned(model, THREE):
        expected = model.generate(**padded, **GREEDY, categories="ocr")
        for category in ("ocr", "ocr", "counting"):
            ids = model.generate(**padded, **GREEDY, **static, categories=category)
            if category == "ocr":
                assert torch.equal(ids, expected)
    assert len(graphs) == 1


@pytest.mark.parametrize("rows", ["last", "instruction"])
@pytest.mark.parametrize("completion", ["hidden", "fused"])
def test_drafted_and_uncached_tokens_do_not_score(model: Any, rows: str, completion: str) -> None:
    """The kept tokens depend on the prompt only, not on generated or drafted tokens after it."""
    one = {**prompts([1, 5, "image", 7, 8, 7, 8, 7]), "pixel_values": images(1)}
    with pruned(model, THREE, salience_rows=rows, completion_on=completion) as handle:
        expected = model.generate(**one, **GREEDY)
        stages = last(handle).stages
        for settings in (
            {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1},
            {"use_cache": False},
            {"assistant_model": tiny_llava(decoder_layers=1)},
            {
                "assistant_model": tiny_llava(decoder_layers=1),
                "past_key_values": StaticCache(config=model.config, max_cache_len=100),
            },
        ):
            if "past_key_values" in settings and not StaticLayer.is_croppable:
                continue  # before transformers 5.24, a static cache could not be cropped
            assert torch.equal(model.generate(**one, **GREEDY, **settings), expected)
            for stage, same in zip(stages, last(handle).stages, strict=True):
                assert torch.equal(stage.indices, same.indices), settings


def test_a_padded_batch_equals_single_runs(model: Any, padded: dict[str, torch.Tensor]) -> None:
    with pruned(model, THREE, salience_rows="instruction"):
        together = model.generate(**padded, **GREEDY, categories=["ocr", "counting"])
        at = 0
        for row, (category, number) in enumerate((("ocr", 1), ("counting", 2))):
            content = padded["attention_mask"][row].bool()
            alone = model.generate(
                input_ids=padded["input_ids"][row][content][None],
                attention_mask=torch.ones(1, int(content.sum()), dtype=torch.long),
                pixel_values=padded["pixel_values"][at : at + number],
                categories=category,
                **GREEDY,
            )
            assert torch.equal(alone[0, -5:], together[row, -5:])
            at += number


@pytest.mark.parametrize("rows", ["last", "instruction"])
def test_padding_on_the_right(model: Any, rows: str) -> None:
    """Rows end at different columns, and each is scored by its own last tokens."""
    content = ([1, 5, "image", 7, 8], [1, "image", 3, 2, 9, 4, 4])
    right = {**prompts(*content, padding_side="right"), "pixel_values": images(2)}
    left = {**prompts(*content), "pixel_values": images(2)}
    with pruned(model, THREE, salience_rows=rows) as handle:
        found = []
        for batch in (right, left):
            place = positions(batch["attention_mask"])
            logits = model(**batch, position_ids=place, categories=["ocr", "counting"]).logits
            record = last(handle)
            ends = [(record.columns[row] >= 0).nonzero().max() for row in range(2)]
            found.append((record.stages, torch.stack([logits[row, ends[row]] for row in range(2)])))
    for one, other in zip(found[0][0], found[1][0], strict=True):
        assert torch.equal(one.indices, other.indices)
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("new_image", [False, True])
@pytest.mark.parametrize("cache", [DynamicCache, None])
def test_a_second_turn(model: Any, new_image: bool, cache: Any) -> None:
    """The cache of one answer is used for the next question, with or without another image."""
    first = {**prompts([1, 5, "image", 7, 8]), "pixel_values": images(1)}
    given = {} if cache is None else {"past_key_values": cache()}
    with pruned(model, THREE) as handle:
        out = model.generate(**first, **GREEDY, **given, return_dict_in_generate=True)
        kept = [kept_in_layers(model, first, last(handle))]
        more = [9, *([IMAGE_TOKEN] * 36 if new_image else []), 4, 5]
        ids = torch.cat([out.sequences, torch.tensor([more])], 1)
        second = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if new_image:
            second["pixel_values"] = images(1, seed=5)
        again = model.generate(
            **second,
            **GREEDY,
            past_key_values=cache_of(out),
            return_dict_in_generate=True,
            output_logits=True,
        )
        if new_image:
            turn = {
                "input_ids": ids[:, first["input_ids"].shape[1] :],
                "attention_mask": torch.ones_like(ids[:, first["input_ids"].shape[1] :]),
            }
            kept.append(kept_in_layers(model, turn, last(handle)))
    whole = [torch.cat(parts, 1) for parts in zip(*kept, strict=True)]
    pixels = torch.cat([images(1), images(1, seed=5)]) if new_image else images(1)
    with layers_masked(model, whole):
        expected = model(
            input_ids=again.sequences[:, :-1], pixel_values=pixels, use_cache=False
        ).logits[:, ids.shape[1] - 1 :]
    torch.testing.assert_close(torch.stack(again.logits, 1), expected, atol=1e-4, rtol=0)


def test_decoding_by_hand(model: Any, padded: dict[str, torch.Tensor]) -> None:
    mask = padded["attention_mask"]
    with pruned(model, THREE) as handle:
        out = model(**padded, position_ids=positions(mask), use_cache=True)
        step = torch.tensor([[7, 8, 9], [4, 5, 6]])
        mask = torch.cat([mask, torch.ones(2, 3, dtype=torch.long)], 1)
        logits = model(
            input_ids=step,
            attention_mask=mask,
            position_ids=positions(mask)[:, -3:],
            past_key_values=output_cache(out),
        ).logits
    ids = torch.cat([padded["input_ids"], step], 1)
    with layers_masked(model, kept_in_layers(model, padded, last(handle))):
        expected = model(
            input_ids=ids,
            pixel_values=padded["pixel_values"],
            position_ids=positions(mask),
            use_cache=False,
        ).logits[:, -3:]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_rows_of_a_cache_follow(model: Any, padded: dict[str, torch.Tensor]) -> None:
    with pruned(model, THREE):
        out = model.generate(
            **padded, **GREEDY, categories=["ocr", "spatial"], return_dict_in_generate=True
        )
        swapped = torch.tensor([1, 0])
        mask = torch.cat([padded["attention_mask"], torch.ones(2, 5, dtype=torch.long)], 1)

        def go_on(cache: Any, rows: torch.Tensor) -> torch.Tensor:
            return model(
                input_ids=out.sequences[rows, -1:],
                attention_mask=mask[rows],
                position_ids=positions(mask)[rows, -1:],
                past_key_values=cache,
            ).logits

        kept = copy.deepcopy(cache_of(out))
        expected = go_on(copy.deepcopy(kept), torch.tensor([0, 1]))
        kept.batch_select_indices(swapped)
        torch.testing.assert_close(go_on(kept, swapped), expected[swapped], atol=1e-5, rtol=0)
        cropped = cache_of(out)
        with pytest.raises(ValueError, match="crop it by a negative number"):
            cropped.crop(3)


@pytest.mark.parametrize("keyword", ["labels", "shift_labels"])
def test_the_loss_is_that_of_the_labels_left(
    model: Any, padded: dict[str, torch.Tensor], keyword: str
) -> None:
    ids = padded["input_ids"]
    labels = ids.masked_fill((ids == IMAGE_TOKEN) | (padded["attention_mask"] == 0), -100)
    labels[padded["attention_mask"].cumsum(1) == 1] = -100  # only padding precedes first tokens
    given = {"labels": labels}
    if keyword == "shift_labels":
        given["shift_labels"] = torch.nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
    with torch.enable_grad(), pruned(model, THREE) as handle:
        out = model(**padded, position_ids=positions(padded["attention_mask"]), **given)
        out.loss.backward()
        columns = last(handle).columns
        as_tuple = model(**padded, **given, return_dict=False)
    assert as_tuple[0].ndim == 0
    found, wanted = [], []
    for row in range(2):
        here = [(at, c) for at, c in enumerate(columns[row].tolist()) if c >= 0]
        for (at, _), (_, following) in pairwise(here):
            label = labels[row, following]
            if label != -100:
                found.append(out.logits[row, at])
                wanted.append(label)
    expected = torch.nn.functional.cross_entropy(torch.stack(found), torch.stack(wanted))
    torch.testing.assert_close(out.loss, expected)
    gradient = model.model.language_model.layers[0].mlp.up_proj.weight.grad
    assert gradient is not None and gradient.abs().sum() > 0


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpoints(model: Any, padded: dict[str, torch.Tensor], reentrant: bool) -> None:
    """A layer that runs again in the backward pass gets the same columns."""
    ids = padded["input_ids"]
    labels = ids.masked_fill((ids == IMAGE_TOKEN) | (padded["attention_mask"] == 0), -100)
    weight = model.model.language_model.layers[0].mlp.up_proj.weight
    model.model.vision_tower.requires_grad_(False)
    gradients = []
    for checkpoints in (False, True):
        model.train()
        if checkpoints:
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": reentrant}
            )
        with torch.enable_grad(), pruned(model, THREE):
            model(**padded, labels=labels, use_cache=False).loss.backward()
        gradients.append(weight.grad.clone())
        weight.grad = None
    torch.testing.assert_close(gradients[1], gradients[0])


def test_remove_brings_everything_back(model: Any, padded: dict[str, torch.Tensor]) -> None:
    before = model(**padded).logits
    classes = [type(layer) for layer in model.modules()]
    states = [dict(vars(module)) for module in model.modules()]
    handle = pruned(model, THREE)
    assert not torch.equal(model(**padded).logits[:, -1], before[:, -1])
    handle.remove()
    assert torch.equal(model(**padded).logits, before)
    assert [type(layer) for layer in model.modules()] == classes
    assert [dict(vars(module)) for module in model.modules()] == states


def test_a_layer_that_cannot_be_patched_leaves_all_as_it_was(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    third = type("Fixed", (type(model.model.language_model.layers[3]),), {"__slots__": ("odd",)})
    model.model.language_model.layers[3].__class__ = type(
        "Final", (third.__base__,), {"__init_subclass__": lambda: (_ for _ in ()).throw(TypeError)}
    )
    states = [dict(vars(module)) for module in model.modules()]
    classes = [type(layer) for layer in model.modules()]
    with pytest.raises(TypeError):
        pruned(model, THREE)
    assert [dict(vars(module)) for module in model.modules()] == states
    assert [type(layer) for layer in model.modules()] == classes


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, saved_and_loaded, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_copies_prune_by_themselves(
    model: Any, padded: dict[str, torch.Tensor], copied: Any
) -> None:
    with pruned(model, THREE):
        twin = copied(model)
        expected = model.generate(**padded, **GREEDY)
    unpruned = model(**padded).logits
    assert torch.equal(twin.generate(**padded, **GREEDY), expected)
    remove_clasp(twin)
    assert torch.equal(twin(**padded).logits, unpruned)


def test_hidden_states_are_those_of_each_layers_columns(
    model: Any, padded: dict[str, torch.Tensor]
) -> None:
    with pruned(model, THREE) as handle:
        states = model(**padded, output_hidden_states=True).hidden_states
    whole, *later = [state.shape[1] for state in states]
    assert whole == PADDED["input_ids"].shape[1]
    first, second, third = (stage.columns.shape[1] for stage in last(handle).stages)
    assert later == [whole, first, second, second, third]


def test_a_budget_of_everything_changes_nothing(
    model: Any, padded: dict[str, torch.Tensor]
) -> None:
    before = model(**padded).logits
    with pruned(model, Schedule({2: 1.0})):
        assert torch.equal(model(**padded).logits, before)


def test_the_budget_beside_a_schedule_is_its_mean(model: Any) -> None:
    schedule = Schedule.progressive(16, layers=(1, 3), num_layers=LAYERS, num_tokens=36)
    apply_clasp(model, budget=16, schedule=schedule, profile=tiny_profile()).remove()
    with pytest.raises(ValueError, match="on average over 5 decoder layers, but budget is 17"):
        apply_clasp(model, budget=17, schedule=schedule, profile=tiny_profile())


def test_a_cache_of_stages_is_refused_by_a_model_without(
    model: Any, padded: dict[str, torch.Tensor]
) -> None:
    with pruned(model, THREE):
        out = model.generate(**padded, **GREEDY, return_dict_in_generate=True)
    ids = torch.cat([out.sequences, torch.tensor([[4], [5]])], 1)
    with (
        apply_clasp(model, budget=9, profile=tiny_profile()),
        pytest.raises(ValueError, match="was pruned inside the decoder, but the model"),
    ):
        model.generate(input_ids=ids, past_key_values=cache_of(out), **GREEDY)


def test_another_schedule_goes_on_from_a_cache(model: Any) -> None:
    """The layers have lost columns at different stages, and the logits still equal masking."""
    first = {**prompts([1, 5, "image", 7, 8]), "pixel_values": images(1)}
    with pruned(model, THREE) as handle:
        out = model.generate(**first, **GREEDY, return_dict_in_generate=True)
        kept = [kept_in_layers(model, first, last(handle))]
    more = torch.tensor([[9, *[IMAGE_TOKEN] * 36, 4, 5]])
    ids = torch.cat([out.sequences, more], 1)
    with pruned(model, Schedule({0: 30, 3: 6})) as handle:
        again = model.generate(
            input_ids=ids,
            pixel_values=images(1, seed=5),
            past_key_values=cache_of(out),
            **GREEDY,
            return_dict_in_generate=True,
            output_logits=True,
        )
        start = first["input_ids"].shape[1]
        turn = {"input_ids": ids[:, start:], "attention_mask": torch.ones_like(ids[:, start:])}
        kept.append(kept_in_layers(model, turn, last(handle)))
    whole = [torch.cat(parts, 1) for parts in zip(*kept, strict=True)]
    with layers_masked(model, whole):
        expected = model(
            input_ids=again.sequences[:, :-1],
            pixel_values=torch.cat([images(1), images(1, seed=5)]),
            use_cache=False,
        ).logits[:, ids.shape[1] - 1 :]
    torch.testing.assert_close(torch.stack(again.logits, 1), expected, atol=1e-4, rtol=0)


def test_a_mask_shifted_by_a_column_would_show(model: Any, padded: dict[str, torch.Tensor]) -> None:
    """Control of the oracle: its logits depend on the mask."""
    with pruned(model, THREE) as handle:
        logits = model(**padded, position_ids=positions(padded["attention_mask"])).logits
    kept = kept_in_layers(model, padded, last(handle))
    kept[2] = kept[2].roll(1, dims=1)
    with layers_masked(model, kept):
        other = model(**padded, position_ids=positions(padded["attention_mask"]), use_cache=False)
    assert float((logits[:, -1] - other.logits[:, -1]).abs().max()) > 1e-2


def test_what_layers_are_given_by_column_and_is_unknown_is_refused(
    model: Any, padded: dict[str, torch.Tensor]
) -> None:
    """The decoder of another family may pass such an argument; it is refused."""

    def add(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "kinds": torch.zeros(2, padded["input_ids"].shape[1])}

    for layer in model.model.language_model.layers:
        layer.register_forward_pre_hook(add, with_kwargs=True)
    with pruned(model, THREE), pytest.raises(RuntimeError, match="layers are given kinds, with an"):
        model(**padded)
    with pruned(model, Schedule({0: 9})):
        model(**padded)


def test_packed_samples_are_refused(model: Any) -> None:
    packed = prompts([1, "image", 7, 8, 1, "image", 9, 3])
    restarted = torch.cat([torch.arange(39), torch.arange(39)])[None]
    inputs = {"input_ids": packed["input_ids"], "pixel_values": images(2), "use_cache": False}
    with pruned(model, THREE), pytest.raises(ValueError, match="packed samples"):
        model(**inputs, position_ids=restarted, categories="general")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"attn_logit_softcapping": 30.0}, "caps its attention logits cannot be pruned inside"),
        ({"num_kv_shared_layers": 2}, "share keys and values cannot be pruned inside"),
        ({"layer_types": ["linear_attention"] * LAYERS}, "layers of linear_attention cannot be"),
    ],
)
def test_decoders_that_cannot_be_followed(model: Any, settings: dict[str, Any], said: str) -> None:
    states = [dict(vars(module)) for module in model.modules()]
    for name, value in settings.items():
        setattr(model.config.text_config, name, value)
    with pytest.raises(ValueError, match=said):
        pruned(model, THREE)
    assert [dict(vars(module)) for module in model.modules()] == states
    apply_clasp(model, budget=9, profile=tiny_profile()).remove()


def test_a_layer_that_is_not_ours_any_more_is_told(
    model: Any, padded: dict[str, torch.Tensor]
) -> None:
    """A layer replaced after apply_clasp would keep all tokens silently, so it is refused."""
    with pruned(model, THREE):
        theirs = tiny_llava(decoder_layers=LAYERS).model.language_model.layers[2]
        own = model.model.language_model.layers
        model.model.language_model.layers = torch.nn.ModuleList([*own[:2], theirs, *own[3:]])
        with pytest.raises(RuntimeError, match="5 decoder layers, of which 4 are among the 5"):
            model(**padded)
        model.model.language_model.layers = own[:3]
        with pytest.raises(RuntimeError, match="3 decoder layers, of which 3 are among the 5"):
            model(**padded)
        model.model.language_model.layers = own
        model(**padded)


def test_layers_on_several_devices(model: Any) -> None:
    """Masks are moved to the layer's device. The second device here is meta, which has no data."""
    layers = model.model.language_model.layers
    for layer in layers[3:]:
        layer.to("meta")
        add_hook_to_module(layer, AlignDevicesHook(execution_device="meta"))
    model.model.language_model.norm.to("meta")
    model.lm_head.to("meta")
    devices = []

    def look(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        devices.append((kwargs["hidden_states"].device.type, kwargs["attention_mask"].device.type))

    for layer in layers:
        layer.self_attn.register_forward_pre_hook(look, with_kwargs=True)
    two = {**PADDED, "pixel_values": images(3)}
    with pruned(model, Schedule({2: 9})):
        model(**two)
    assert devices == [("cpu", "cpu")] * 3 + [("meta", "meta")] * 2


@pytest.mark.parametrize("before", [False, True])
def test_layers_within_wrappers(model: Any, padded: dict[str, torch.Tensor], before: bool) -> None:
    """A wrapper that takes ``*args, **kwargs`` is supported."""
    with pruned(model, THREE):
        expected = model(**padded, use_cache=False).logits
    handle = None if before else pruned(model, THREE)
    layers = model.model.language_model.layers
    for number, layer in enumerate(layers):
        layers[number] = checkpoint_wrapper(layer)
    if before:
        handle = pruned(model, THREE)
    assert torch.equal(model(**padded, use_cache=False).logits, expected)
    assert handle is not None
    handle.remove()


@pytest.mark.parametrize("name", ["token_type_ids", "mm_token_type_ids"])
def test_kinds_of_tokens_follow(model: Any, padded: dict[str, torch.Tensor], name: str) -> None:
    kinds = (padded["input_ids"] == IMAGE_TOKEN).long()
    with pruned(model, THREE):
        expected = model(**padded).logits
        assert torch.equal(model(**padded, **{name: kinds}).logits, expected)


def test_a_static_cache_that_was_reset_has_its_room_again(model: Any) -> None:
    prompt = {**prompts([1, "image", 7, 8]), "pixel_values": images(1)}
    words = torch.arange(4, 43)[None]
    with pruned(model, THREE):
        out = model.generate(
            **prompt, **GREEDY, cache_implementation="static", return_dict_in_generate=True
        )
        cache = cache_of(out)
        cache.reset()
        again = model.generate(**prompt, **GREEDY, categories="counting", past_key_values=cache)
        assert torch.equal(again, model.generate(**prompt, **GREEDY, categories="counting"))
        cache.reset()
        of_words = model.generate(input_ids=words, **GREEDY, past_key_values=cache)
    cache.reset()
    assert torch.equal(model.generate(input_ids=words, **GREEDY, past_key_values=cache), of_words)


def test_models_that_share_a_decoder(model: Any, padded: dict[str, torch.Tensor]) -> None:
    """Each model prunes by its own schedule, whichever was patched last."""
    other = tiny_llava(decoder_layers=LAYERS)
    with pruned(model, THREE):
        expected = model(**padded).logits
    other.model.language_model = model.model.language_model
    schedules = (Schedule({1: 5}), Schedule({2: 5}))
    for schedule in schedules:
        with pruned(other, schedule):
            theirs = other(**padded).logits
        with pruned(model, THREE), pruned(other, schedule):
            assert torch.equal(model(**padded).logits, expected)
            assert torch.equal(other(**padded).logits, theirs)


def test_layers_compiled_one_by_one_share_their_code() -> None:
    model = tiny_llava(decoder_layers=12)
    graphs: list[torch.fx.GraphModule] = []

    def count(graph: torch.fx.GraphModule, example: list[torch.Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    with pruned(model, THREE):
        torch._dynamo.reset()
        for layer in model.model.language_model.layers:
            layer.compile(backend=count, fullgraph=True)
        model(input_ids=torch.tensor([[4, 5, 6, 7]]), use_cache=False)
    assert len(graphs) == 2  # one for layers with a captured attention, one for the others


def test_a_cache_that_a_failed_prefill_left_is_refused(
    model: Any, padded: dict[str, torch.Tensor]
) -> None:
    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    cache = DynamicCache()
    hook = model.model.language_model.layers[3].register_forward_pre_hook(fail)
    with pruned(model, THREE):
        with pytest.raises(KeyboardInterrupt):
            model(**padded, past_key_values=cache)
        hook.remove()
        for more in ({"input_ids": torch.tensor([[3], [4]])}, padded):
            with pytest.raises(ValueError, match=r"a forward failed while .* content is unknown"):
                model(**more, past_key_values=cache)
        cache.reset()
        fresh = model(**padded, past_key_values=DynamicCache()).logits
        assert torch.equal(model(**padded).logits, fresh)


def test_a_static_cache_forgets_longer_prompts(model: Any) -> None:
    """A longer earlier prompt does not make the cache of a later one longer than needed."""
    static = {**GREEDY, "cache_implementation": "static", "return_dict_in_generate": True}
    three = {**prompts([1, "image", "image", "image", 7, 8]), "pixel_values": images(3)}
    one = {**prompts([1, "image", 7, 8]), "pixel_values": images(1)}
    allocated = []
    with pruned(model, Schedule({0: 9, 2: 4})):
        for prompt in (three, one, three):
            out = model.generate(**prompt, **static)
            allocated.append([layer.keys.shape[2] for layer in cache_of(out).layers])
    assert allocated[0] == allocated[1] == allocated[2]  # so compiled code sees one shape


def test_a_hole_in_the_instruction_does_not_score(model: Any) -> None:
    with pruned(model, THREE, salience_rows="instruction") as handle:
        found = []
        for token in (7, 21, 40):
            prompt = prompts([1, 5, "image", 7, token, token, 8])
            prompt["attention_mask"][0, -3:-1] = 0
            model(**prompt, pixel_values=images(1), categories="general")
            found.append([stage.indices.tolist() for stage in last(handle).stages])
    assert found[0] == found[1] == found[2]


def test_a_layer_that_is_in_the_list_twice_is_refused(model: Any) -> None:
    layers = model.model.language_model.layers
    layers[3] = layers[1]
    with pytest.raises(RuntimeError, match="has the same layer more than once"):
        pruned(model, THREE)
    apply_clasp(model, budget=9, profile=tiny_profile()).remove()


def test_a_forward_that_is_replaced_is_told(model: Any, padded: dict[str, torch.Tensor]) -> None:
    with pruned(model, THREE):
        model.model.language_model.layers[3].forward = lambda hidden_states, **_: hidden_states
        with pytest.raises(
            RuntimeError, match="layer, or its forward, was replaced after apply_clasp"
        ):
            model(**padded)


def test_layers_copied_out_of_a_patched_model_can_be_unpatched(model: Any) -> None:
    with pruned(model, THREE):
        layers = copy.deepcopy(model.model.language_model.layers)
    alone = tiny_llava(decoder_layers=LAYERS).model.language_model.layers
    for layer, other in zip(layers, alone, strict=True):
        remove_clasp(layer)
        assert type(layer) is type(other)
        assert type(layer.self_attn.config) is type(other.self_attn.config)
        assert vars(layer).keys() - {"_clasp_layer"} == vars(other).keys()  # the number may stay
