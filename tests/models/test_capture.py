"""Query and key are captured from the attention module's own forward, without side effects."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from tiny_llava import images, prompts, tiny_llava, tiny_profile
from transformers import LlavaForConditionalGeneration

from clasp_kernels.models import apply_clasp
from clasp_kernels.models.capture import AttentionListener
from clasp_kernels.models.patching import AttributePatches


@pytest.fixture(params=["sdpa", "eager"])
def tower(request: pytest.FixtureRequest) -> Any:
    return tiny_llava(attn_implementation=request.param).model.vision_tower


def attention_of(tower: Any, layer: int = 3) -> Any:
    return tower.encoder.layers[layer].self_attn


def test_what_is_captured_makes_the_attention(tower: Any) -> None:
    expected = tower(images(2)).last_hidden_state
    attention = attention_of(tower)
    listener = AttentionListener(attention)
    patches = AttributePatches([listener.patch(attention)])
    with listener.listen() as captured:
        out = tower(images(2)).last_hidden_state
    assert torch.equal(out, expected)
    patches.restore()
    tower.set_attn_implementation("eager")
    attention = tower(images(2), output_attentions=True).attentions[3]
    ours = (captured.query @ captured.key.transpose(-1, -2) * captured.scale).softmax(-1)
    torch.testing.assert_close(ours, attention, atol=1e-6, rtol=1e-5)


def test_nothing_is_seen_while_nobody_listens(tower: Any) -> None:
    expected = tower(images(2)).last_hidden_state
    attention = attention_of(tower)
    own = attention.config
    patches = AttributePatches([AttentionListener(attention).patch(attention)])
    assert attention.config is not own
    assert attention.config._attn_implementation == own._attn_implementation
    assert torch.equal(tower(images(2)).last_hidden_state, expected)
    patches.restore()
    assert attention.config is own


def test_a_later_change_of_attention_is_followed(tower: Any) -> None:
    attention = attention_of(tower)
    listener = AttentionListener(attention)
    patches = AttributePatches([listener.patch(attention)])
    for implementation in ("eager", "sdpa"):
        tower.set_attn_implementation(implementation)
        assert attention_of(tower).config._attn_implementation == implementation
        with listener.listen() as captured:
            tower(images(1))
        assert captured.query is not None
    attention_of(tower).config.something_else = 5
    patches.restore()
    assert attention_of(tower).config.something_else == 5


def test_other_layers_and_threads_are_not_listened_to(tower: Any) -> None:
    attention = attention_of(tower)
    listener = AttentionListener(attention)
    _patches = AttributePatches([listener.patch(attention)])
    with listener.listen() as captured:
        other = threading.Thread(target=tower, args=(images(2),))
        other.start()
        other.join()
        assert captured.query is None
        tower(images(3))
    assert captured.query is not None
    assert captured.query.shape == (3, 4, 37, 8)


def test_a_forward_that_did_not_run_is_an_error(tower: Any) -> None:
    attention = attention_of(tower)
    listener = AttentionListener(attention)
    _patches = AttributePatches([listener.patch(attention)])
    unheard = pytest.raises(RuntimeError, match="CLIPAttention ran without the attention function")
    with unheard, listener.listen():
        tower.encoder.layers[0](torch.ones(1, 5, 32), attention_mask=None)


def test_an_error_inside_is_not_replaced(tower: Any) -> None:
    attention = attention_of(tower)
    listener = AttentionListener(attention)
    with pytest.raises(ZeroDivisionError), listener.listen():
        1 / 0  # noqa: B018


def test_a_module_without_a_config() -> None:
    with pytest.raises(TypeError, match="Identity has no config that names its attention function"):
        AttentionListener(torch.nn.Identity())


def test_a_copied_model_is_listened_to_by_itself(model: LlavaForConditionalGeneration) -> None:
    inputs = {**prompts([1, "image", 7]), "pixel_values": images(1), "categories": "ocr"}
    with apply_clasp(model, budget=8, profile=tiny_profile()):
        expected = model(**inputs).logits
        twin = copy.deepcopy(model)
    assert torch.equal(twin(**inputs).logits, expected)
    own = attention_of(twin.model.vision_tower).config
    assert own._config is twin.model.vision_tower.config  # the copy's config, not the original's


def test_hooks_on_the_attention_module_still_run(model: LlavaForConditionalGeneration) -> None:
    """Device hooks load weights before the module's forward, so they must run during capture."""
    ran = []
    attention = attention_of(model.model.vision_tower)
    original = attention.forward
    attention.forward = lambda *args, **kwargs: ran.append(1) or original(*args, **kwargs)
    with apply_clasp(model, budget=8, profile=tiny_profile()):
        model(**prompts([1, "image", 7]), pixel_values=images(1), categories="ocr")
    assert ran == [1]


@pytest.mark.parametrize("compiled_first", [True, False])
def test_a_compiled_tower(compiled_first: bool) -> None:
    inputs = {**prompts([1, "image", 7]), "pixel_values": images(1), "categories": "ocr"}
    model = tiny_llava(vision_layers=2, decoder_layers=1)
    with apply_clasp(model, budget=8):
        expected = model(**inputs).logits
    tower = torch.compile(model.model.vision_tower, backend="eager")
    if compiled_first:
        model.model.vision_tower = tower
        model.model.get_image_features(images(1))
    with apply_clasp(model, budget=8):
        model.model.vision_tower = tower
        torch.testing.assert_close(model(**inputs).logits, expected)
        torch.testing.assert_close(model(**inputs).logits, expected)
