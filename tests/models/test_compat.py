"""Changes between transformers releases are supported, or raise an explanatory error."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from tiny_llava import tiny_llava
from transformers import DynamicCache, GenerationMixin, LlavaForConditionalGeneration, StaticCache
from transformers.utils import ModelOutput

from clasp_kernels.models import apply_clasp, compat, verify


@pytest.fixture(autouse=True)
def warned_about_nothing() -> Iterator[None]:
    compat._warn_untested.cache_clear()
    yield
    compat._warn_untested.cache_clear()


def test_a_newer_release_is_told_once(
    model: LlavaForConditionalGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = compat.TESTED_RELEASES[-1]
    monkeypatch.setattr(transformers, "__version__", "99.1.0.dev0")
    said = rf"99.1.0.dev0 is newer .* 5.17.0 to {newest}; `clasp doctor --verify` tells"
    with pytest.warns(UserWarning, match=said) as caught, apply_clasp(model):
        pass
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with apply_clasp(model):
            pass


@pytest.mark.parametrize("version", compat.TESTED_RELEASES)
def test_tested_releases_are_not_warned_about(
    model: LlavaForConditionalGeneration, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setattr(transformers, "__version__", version)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with apply_clasp(model):
            pass


@pytest.mark.parametrize("call", [apply_clasp, lambda model: verify()])
def test_an_old_release_is_refused_in_one_sentence(
    model: LlavaForConditionalGeneration, monkeypatch: pytest.MonkeyPatch, call: Any
) -> None:
    monkeypatch.setattr(transformers, "__version__", "4.57.6")
    with pytest.raises(
        ImportError, match=r"^transformers 4.57.6 is too old, 5.17.0 or later is needed; pip inst"
    ):
        call(model)


def test_no_transformers_at_all(
    model: LlavaForConditionalGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r'^transformers is not installed; pip .*kernels\[hf\]"$'):
        apply_clasp(model)


def test_a_transformers_that_cannot_be_imported(
    model: LlavaForConditionalGeneration, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """transformers raises ImportError for incompatible dependencies, such as huggingface_hub."""
    (tmp_path / "transformers.py").write_text('raise ImportError("hub>=9 is\\nrequired")')
    monkeypatch.delitem(sys.modules, "transformers")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ImportError, match=r"cannot be imported \(hub>=9 is required\); pip install"
    ):
        apply_clasp(model)


@pytest.mark.parametrize(
    ("version", "numbers"),
    [("5.24.0", (5, 24, 0)), ("5.25.0.dev0", (5, 25, 0)), ("6.0rc1", (6, 0)), ("main", ())],
)
def test_a_version_as_numbers(version: str, numbers: tuple[int, ...]) -> None:
    assert compat._release(version) == numbers


def test_tested_releases_are_listed_oldest_first() -> None:
    numbers = [compat._release(version) for version in compat.TESTED_RELEASES]
    assert numbers == sorted(numbers)
    assert compat.is_tested(transformers.__version__)


class Renamed(LlavaForConditionalGeneration):
    """A model of a release in which the cache argument has a third name."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, memory: Any = None) -> Any:
        raise AssertionError("not run")


def test_a_cache_of_an_unknown_name_is_refused_before_anything_is_patched(
    model: LlavaForConditionalGeneration,
) -> None:
    model.__class__ = Renamed
    before = dict(vars(model))
    with pytest.raises(
        RuntimeError, match=r"Renamed.forward of transformers .* neither cache nor past_key_values"
    ):
        apply_clasp(model)
    assert vars(model) == before


def test_a_generate_that_does_not_mark_the_prefill(
    model: LlavaForConditionalGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(self: Any, input_ids: Any, cache: Any = None, **kwargs: Any) -> None: ...

    monkeypatch.setattr(GenerationMixin, "prepare_inputs_for_generation", prepare)
    with pytest.raises(RuntimeError, match="does not pass is_first_iteration and next_sequence_"):
        apply_clasp(model)


@pytest.mark.parametrize("part", ["get_encoder", "multi_modal_projector", "attention"])
def test_a_part_that_is_gone_is_named(
    model: LlavaForConditionalGeneration, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    if part == "get_encoder":
        monkeypatch.setattr(type(model), "get_encoder", lambda self, modality: self)
        said = "names no image encoder"
    elif part == "multi_modal_projector":
        model.model.projector = model.model.multi_modal_projector
        del model.model.multi_modal_projector
        said = "has no multi_modal_projector"
    else:
        model.model.vision_tower.encoder.layers[0].self_attn = torch.nn.Identity()
        said = "has 4 attention modules in 5 layers"
    with pytest.raises(RuntimeError, match=rf"{said}.*clasp doctor --verify"):
        apply_clasp(model)


def test_two_caches_at_once(model: LlavaForConditionalGeneration) -> None:
    one, other = DynamicCache(), DynamicCache()
    ids = torch.tensor([[1, 2]])
    with apply_clasp(model):
        with pytest.raises(ValueError, match="cache and past_key_values are names of one argument"):
            model(input_ids=ids, cache=one, past_key_values=other)
        model(input_ids=ids, cache=one, past_key_values=one)
        model(input_ids=ids, cache=None, past_key_values=other)
    assert one.get_seq_length() == other.get_seq_length() == 2


def test_outputs_without_a_known_field() -> None:
    @dataclass
    class Outputs(ModelOutput):
        logits: torch.Tensor | None = None

    with pytest.raises(
        RuntimeError,
        match=r"Outputs, which the model returned, has no field cache or past_key_values",
    ):
        compat.output_cache(Outputs(logits=torch.ones(1)))


@pytest.mark.parametrize("make", [DynamicCache, lambda config: StaticCache(config, 64)])
def test_bytes_are_counted_by_the_column(make: Any) -> None:
    config = tiny_llava(decoder_layers=3).config.get_text_config()
    cache = make(config=config)
    for layer in range(3):
        cache.update(torch.ones(2, 2, 5, 8), torch.ones(2, 2, 5, 8), layer)
    one_column = 3 * 2 * (2 * 2 * 8 * 4)  # layers, keys and values, rows x heads x width x bytes
    assert sum(compat.cache_bytes(cache, lambda _: 5)) == 5 * one_column
    assert sum(compat.cache_bytes(cache, lambda _: 50)) == 50 * one_column
    by_layer = compat.cache_bytes(cache, lambda layer: 10 - layer)
    assert by_layer == tuple(columns * one_column // 3 for columns in (10, 9, 8))
    assert compat.cache_bytes(None, lambda _: 5) == ()


def test_bytes_of_layers_that_differ() -> None:
    """The layers differ in heads; one has a sliding window; one has a state instead of columns."""
    layers = [
        SimpleNamespace(keys=torch.ones(1, 4, 7, 8), values=torch.ones(1, 4, 7, 16)),
        SimpleNamespace(
            keys=torch.ones(1, 1, 3, 8), values=torch.ones(1, 1, 3, 8), sliding_window=3
        ),
        SimpleNamespace(),
        SimpleNamespace(keys=None, values=None),
    ]
    cache = SimpleNamespace(layers=layers)
    sizes = compat.cache_bytes(cache, lambda _: 10)
    assert sizes == (4 * 10 * 4 * (8 + 16), 4 * 3 * (8 + 8), 0, 0)
    sizes = compat.cache_bytes(cache, lambda _: 2)
    assert sizes == (4 * 2 * 4 * (8 + 16), 4 * 2 * (8 + 8), 0, 0)
