"""Tokens are scored by the CLS attention of the right layer of the vision tower."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_llava import images, tiny_llava, tiny_profile

from clasp_kernels import fuse_layers
from clasp_kernels.models.adapter import VisionOutput
from clasp_kernels.models.families.llava import LlavaAdapter
from clasp_kernels.models.patching import AttributePatches
from clasp_kernels.policy import Profile


def encode_with(model: Any, profile: Profile) -> VisionOutput:
    """Return the adapter's output for two images."""
    adapter = LlavaAdapter(model, profile, "selection")
    patches = AttributePatches(adapter.patches())
    try:
        return adapter.encode(model, {"pixel_values": images(2)})
    finally:
        patches.restore()


def encode(profile: Profile, **config: object) -> tuple[VisionOutput, torch.Tensor]:
    """Return the adapter's output, and eager attentions [layer, image, head, query, key]."""
    model = tiny_llava(**config)
    vision = encode_with(model, profile)
    model.set_attn_implementation("eager")
    attentions = model.model.vision_tower(images(2), output_attentions=True).attentions
    return vision, torch.stack(attentions)


@pytest.mark.parametrize(
    ("feature_layer", "salience_layer", "expected"),
    [
        (-2, None, 3),  # the layer whose output is hidden_states[-2]
        (-1, None, 4),
        (4, None, 3),  # counted from the front; hidden_states[0] is the embedding
        (-2, -1, 4),
        (-2, -5, 0),
        ([-4, -2], None, 3),
    ],
)
def test_salience_is_the_cls_attention_averaged_over_heads(
    feature_layer: int | list[int], salience_layer: int | None, expected: int
) -> None:
    profile = tiny_profile(salience_layer=salience_layer)
    vision, attentions = encode(profile, vision_feature_layer=feature_layer)
    cls_attention = attentions[expected].mean(1)[:, 0, 1:]
    torch.testing.assert_close(vision.salience(), cls_attention, atol=1e-6, rtol=1e-5)
    assert cls_attention.std() > 1e-4  # if attention were flat, the comparison would prove nothing


def test_with_the_cls_token_as_a_visual_token() -> None:
    vision, attentions = encode(tiny_profile(), vision_feature_select_strategy="full")
    assert vision.features.shape[1] == 37
    cls_attention = attentions[3].mean(1)[:, 0]
    torch.testing.assert_close(vision.salience(), cls_attention, atol=1e-6, rtol=1e-5)


def test_features_are_what_the_unpruned_model_projects() -> None:
    for layer in (-2, 3, [-4, -2]):
        model = tiny_llava(vision_feature_layer=layer)
        vision = encode_with(model, tiny_profile())
        expected = torch.stack(model.get_image_features(images(2)).pooler_output)
        torch.testing.assert_close(model.model.multi_modal_projector(vision.features), expected)


def test_fused_layers_are_the_profiles_layers() -> None:
    model = tiny_llava()
    profile = tiny_profile(layers=(-5, -3, -1))
    vision = encode_with(model, profile)
    states = model.model.vision_tower(images(2), output_hidden_states=True).hidden_states
    fused = fuse_layers(vision.fused_layers, torch.tensor([0.5, 0.25, 2.0]))
    expected = 0.5 * states[1][:, 1:] + 0.25 * states[3][:, 1:] + 2.0 * states[5][:, 1:]
    torch.testing.assert_close(fused, expected)
