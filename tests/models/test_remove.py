"""Only the model instance is patched, and ``remove()`` restores it exactly."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_llava import images, prompts, saved_and_loaded, tiny_llava, tiny_profile
from transformers import LlavaForConditionalGeneration

from clasp_kernels.models import apply_clasp, remove_clasp


@pytest.fixture
def prompt() -> dict[str, torch.Tensor]:
    batch = prompts([1, 5, "image", 7, 8], [1, "image", 3, 2, 9, 4])
    return {**batch, "pixel_values": images(2)}


def everything_in(model: torch.nn.Module) -> dict[str, dict[str, Any]]:
    """Return the instance attributes and hooks of every module."""
    return {
        name: {
            key: dict(value) if key.endswith("hooks") else value
            for key, value in vars(module).items()
        }
        for name, module in model.named_modules()
    }


def test_remove_restores_bit_identical_behaviour(
    model: LlavaForConditionalGeneration, prompt: dict[str, torch.Tensor]
) -> None:
    logits = model(**prompt).logits
    ids = model.generate(**prompt, max_new_tokens=4)
    before = everything_in(model)

    handle = apply_clasp(model, budget=5, profile=tiny_profile())
    model.generate(**prompt, max_new_tokens=4, categories="ocr")
    handle.remove()

    assert everything_in(model) == before
    assert torch.equal(model(**prompt).logits, logits)
    assert torch.equal(model.generate(**prompt, max_new_tokens=4), ids)
    assert handle.last is not None  # can still be read


def test_every_token_through_selection_changes_nothing(
    model: LlavaForConditionalGeneration, prompt: dict[str, torch.Tensor]
) -> None:
    logits = model(**prompt).logits
    settings = {"max_new_tokens": 5, "output_logits": True, "return_dict_in_generate": True}
    generated = model.generate(**prompt, **settings)
    with apply_clasp(model, budget=36, profile=tiny_profile(), fuse_into="selection"):
        assert torch.equal(model(**prompt, categories="general").logits, logits)
        again = model.generate(**prompt, categories="general", **settings)
    assert torch.equal(again.sequences, generated.sequences)
    assert all(map(torch.equal, again.logits, generated.logits))


def test_handle_as_context_manager_removes_itself_after_an_error(
    model: LlavaForConditionalGeneration, prompt: dict[str, torch.Tensor]
) -> None:
    logits = model(**prompt).logits
    with (
        pytest.raises(ValueError, match="unknown category"),
        apply_clasp(model, budget=5, profile=tiny_profile()),
    ):
        model(**prompt, categories="poetry")
    assert torch.equal(model(**prompt).logits, logits)


def test_remove_twice_and_apply_again(
    model: LlavaForConditionalGeneration, prompt: dict[str, torch.Tensor]
) -> None:
    handle = apply_clasp(model, budget=5, profile=tiny_profile())
    handle.remove()
    handle.remove()
    with apply_clasp(model, budget=7, profile=tiny_profile()) as handle:
        model(**prompt, categories="ocr")
        assert handle.last is not None
        assert handle.last.stages[0].tokens_after == 7


def test_other_instances_are_not_touched(prompt: dict[str, torch.Tensor]) -> None:
    patched, other = tiny_llava(), tiny_llava()
    logits = other(**prompt).logits
    with apply_clasp(patched, budget=5, profile=tiny_profile()):
        assert torch.equal(other(**prompt).logits, logits)


def test_an_earlier_instance_patch_comes_back(
    model: LlavaForConditionalGeneration, prompt: dict[str, torch.Tensor]
) -> None:
    calls = []
    original = model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs)
        return original(*args, **kwargs)

    model.forward = counted  # as device hooks do
    with apply_clasp(model, budget=5, profile=tiny_profile()):
        model(**prompt, categories="ocr")
    assert len(calls) == 1
    assert model.forward is counted


def test_a_later_wrapper_stays_and_then_wraps_the_original(
    model: LlavaForConditionalGeneration, prompt: dict[str, torch.Tensor]
) -> None:
    logits = model(**prompt).logits
    handle = apply_clasp(model, budget=5, profile=tiny_profile())
    ours = model.forward
    calls = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs)
        return ours(*args, **kwargs)

    model.forward = counted
    assert model(**prompt, categories="ocr").logits.shape[1] < logits.shape[1]
    handle.remove()
    assert model.forward is counted
    assert torch.equal(model(**prompt).logits, logits)
    assert len(calls) == 2
    del model.forward
    assert torch.equal(model(**prompt).logits, logits)


def test_a_deep_copy_runs_on_its_own_weights(
    model: LlavaForConditionalGeneration, prompt: dict[str, torch.Tensor]
) -> None:
    with apply_clasp(model, budget=5, profile=tiny_profile()):
        logits = model(**prompt, categories="ocr").logits
        twin = copy.deepcopy(model)
        twin.lm_head.weight.mul_(2)
        assert torch.equal(twin(**prompt, categories="ocr").logits, 2 * logits)
        assert torch.equal(model(**prompt, categories="ocr").logits, logits)


@pytest.mark.parametrize("twin_of", [copy.deepcopy, saved_and_loaded])
def test_a_copy_can_be_unpatched_without_a_handle(
    model: LlavaForConditionalGeneration, prompt: dict[str, torch.Tensor], twin_of: Any
) -> None:
    # Another model: a model that ran has hooks that cannot be pickled.
    logits = tiny_llava()(**prompt).logits
    own = set(vars(model))
    with apply_clasp(model, budget=5, profile=tiny_profile()):
        twin = twin_of(model)
        pruned = model(**prompt, categories="ocr").logits
        remove_clasp(twin)
        assert set(vars(twin)) == own
        assert torch.equal(twin(**prompt).logits, logits)
        assert torch.equal(model(**prompt, categories="ocr").logits, pruned)  # stays patched
    with apply_clasp(twin, budget=5, profile=tiny_profile()):
        assert torch.equal(twin(**prompt, categories="ocr").logits, pruned)


def test_a_copy_gets_earlier_instance_patches_back(model: LlavaForConditionalGeneration) -> None:
    def earlier(*args: Any, **kwargs: Any) -> None: ...

    model.forward = earlier
    with apply_clasp(model, budget=5, profile=tiny_profile()):
        twin = copy.deepcopy(model)
    remove_clasp(twin)
    assert twin.forward is earlier


def test_what_others_set_on_a_part_stays(
    model: LlavaForConditionalGeneration, prompt: dict[str, torch.Tensor]
) -> None:
    logits = model(**prompt).logits
    attention = model.model.vision_tower.encoder.layers[3].self_attn
    handle = apply_clasp(model, budget=5, profile=tiny_profile())
    attention.config = copy.copy(model.config.vision_config)
    theirs = attention.config
    with pytest.raises(RuntimeError, match="CLIPAttention ran without the attention function"):
        model(**prompt, categories="ocr")
    handle.remove()
    assert attention.config is theirs
    assert torch.equal(model(**prompt).logits, logits)


def test_unpatching_without_the_handle(model: LlavaForConditionalGeneration) -> None:
    handle = apply_clasp(model, budget=5, profile=tiny_profile())
    remove_clasp(model)
    assert "forward" not in vars(model)
    handle.remove()  # does nothing
    remove_clasp(model)


@pytest.mark.parametrize("wrap", [torch.nn.DataParallel, partial(torch.compile, backend="eager")])
def test_unpatching_a_wrapper_names_the_model_inside(
    model: LlavaForConditionalGeneration, wrap: Callable[[Any], Any]
) -> None:
    apply_clasp(model, budget=5, profile=tiny_profile())
    wrapper = wrap(model)
    with pytest.raises(ValueError, match=r"wraps the patched model; .*get_submodule\('\w+'\)"):
        remove_clasp(wrapper)
    remove_clasp(model)
    remove_clasp(wrapper)  # nothing inside it is patched any more


def test_unpatching_what_is_no_model() -> None:
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, got dict"):
        remove_clasp({})


def test_saving_and_loading_weights(
    model: LlavaForConditionalGeneration, prompt: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    logits = model(**prompt).logits
    with apply_clasp(model, budget=5, profile=tiny_profile()):
        model.save_pretrained(tmp_path)
        patched_class = type(model)
    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.config.architectures == ["LlavaForConditionalGeneration"]
    assert torch.equal(loaded(**prompt).logits, logits)
    # Models created from a patched model's class are not patched.
    assert torch.equal(patched_class.from_pretrained(tmp_path)(**prompt).logits, logits)


@pytest.mark.usefixtures("no_collector")
def test_a_patched_model_is_freed_with_its_last_reference() -> None:
    """A reference cycle would keep the weights until the garbage collector runs."""
    model = tiny_llava()
    alive = weakref.ref(model)
    handle = apply_clasp(model, budget=5, profile=tiny_profile())
    del model, handle
    assert alive() is None


def test_removing_while_the_model_generates(
    model: LlavaForConditionalGeneration, prompt: dict[str, torch.Tensor]
) -> None:
    """``generate`` would continue unpatched on a pruned cache."""
    refused = []

    def stop(ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        with pytest.raises(RuntimeError, match=r"generate\(\) is running, in another thread or in"):
            handle.remove()
        refused.append(1)
        return torch.zeros(len(ids), dtype=torch.bool)

    handle = apply_clasp(model, budget=5, profile=tiny_profile())
    expected = model.generate(**prompt, max_new_tokens=4, categories="ocr")
    settings = {"max_new_tokens": 4, "categories": "ocr", "stopping_criteria": [stop]}
    assert torch.equal(model.generate(**prompt, **settings), expected)
    assert len(refused) == 4
    with pytest.raises(ValueError, match="unknown category"):
        model.generate(**prompt, categories="poetry")
    handle.remove()


def test_a_copy_made_while_generating_can_be_unpatched(
    model: LlavaForConditionalGeneration, prompt: dict[str, torch.Tensor]
) -> None:
    twins = []

    def stop(ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        twins.append(copy.deepcopy(model))
        with pytest.raises(RuntimeError, match=r"generate\(\) is running"):
            remove_clasp(model)
        return torch.ones(len(ids), dtype=torch.bool)

    handle = apply_clasp(model, budget=5, profile=tiny_profile())
    model.generate(**prompt, categories="ocr", stopping_criteria=[stop], use_cache=False)
    remove_clasp(twins[0])
    handle.remove()
    assert torch.equal(twins[0](**prompt).logits, model(**prompt).logits)


def test_an_error_in_the_block_is_not_hidden(model: LlavaForConditionalGeneration) -> None:
    handle = apply_clasp(model, budget=5, profile=tiny_profile())
    handle._runtime._generating.append(None)  # as if another thread were generating
    with (
        pytest.warns(UserWarning, match=r"the model stays patched: generate\(\) is running"),
        pytest.raises(ZeroDivisionError),
        handle,
    ):
        1 / 0  # noqa: B018
    handle._runtime._generating.pop()
    handle.remove()
