"""Images pruned for vLLM, without vLLM: ``test_vllm_embeddings.py`` has the engine."""

from __future__ import annotations

import base64
import importlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from tiny_llava import tiny_llava
from transformers import AutoProcessor, LlavaForConditionalGeneration

from clasp_kernels.bundled import tiny_vlm_path
from clasp_kernels.integrations.vllm import PrunedEncoder, save_for_vllm
from clasp_kernels.models import apply_clasp
from clasp_kernels.models.specimens import SPECIMENS
from clasp_kernels.policy import Profile

TINY = str(tiny_vlm_path())
COUNT = "USER: <image>\nHow many circles are there? ASSISTANT:"
READ = "USER: <image>\nWhat is written on the left sign? ASSISTANT:"
BOTH = "USER: <image> <image>\nWhat color is the ring? ASSISTANT:"


def scene(number: int) -> Any:
    return Image.open(tiny_vlm_path().parent / "demo" / f"scene_{number}.png")


def whole_model() -> Any:
    return LlavaForConditionalGeneration.from_pretrained(TINY)


def processor() -> Any:
    return AutoProcessor.from_pretrained(TINY)


def with_scale(scale: float) -> Profile:
    """The profile of the bundled model, with a budget scale for counting."""
    data = Profile.load(Path(TINY) / "clasp_profile.json").to_dict()
    data["categories"]["counting"]["budget_scale"] = scale
    return Profile.from_dict(data)


@pytest.mark.parametrize(
    "settings",
    [
        {"budget": 16},
        {"budget": 0.25, "rule": "divprune"},
        {"budget": 16, "rule": "cdpruner"},
        {"budget": 16, "merge": True},
        {"budget": 16, "fuse_into": "selection"},
    ],
)
def test_an_encoder_keeps_what_the_whole_model_keeps(settings: dict[str, Any]) -> None:
    images, prompts = [scene(1), [scene(2), scene(3)], scene(5)], [COUNT, BOTH, READ]
    encoded = PrunedEncoder(TINY, **settings).encode(images, prompts)
    with apply_clasp(whole_model(), **settings) as handle:
        given = processor()(
            images=[scene(1), scene(2), scene(3), scene(5)],
            text=prompts,
            padding=True,
            return_tensors="pt",
        )
        wanted = handle.encode(**given)
    assert [each.prompt for each in encoded] == prompts
    found = [image for each in encoded for image in each.images]
    assert [image.category for image in found] == ["counting", "attribute", "attribute", "ocr"]
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.equal(ours.indices, theirs.indices)
        torch.testing.assert_close(ours.features, theirs.features, atol=1e-5, rtol=0)


def test_no_decoder_layer_is_loaded(capfd: Any, caplog: Any) -> None:
    encoder = PrunedEncoder(TINY, budget=16)
    assert len(encoder.handle.model.get_decoder().layers) == 0
    written = caplog.text + capfd.readouterr().err
    assert "UNEXPECTED" not in written and "MISSING" not in written


def test_requests_have_the_form_that_vllm_takes() -> None:
    encoder = PrunedEncoder(TINY, budget=16)
    one, two = encoder.encode([scene(1), [scene(2), scene(3)]], [COUNT, BOTH])
    assert one.request["prompt"] == COUNT
    assert one.request["multi_modal_data"]["image"].shape == (1, 16, 96)
    assert [each.shape for each in two.request["multi_modal_data"]["image"]] == [(16, 96)] * 2
    [part] = one.content
    assert part["type"] == "image_embeds"
    sent = torch.load(io.BytesIO(base64.b64decode(part["image_embeds"])), weights_only=True)
    assert torch.equal(sent, one.images[0].features)
    assert encoder.encode([], []) == []


def test_categories_may_be_given() -> None:
    [encoded] = PrunedEncoder(TINY, budget=16).encode([scene(1)], [COUNT], categories="ocr")
    assert encoded.images[0].category == "ocr"


def test_a_profile_of_different_lengths_needs_a_server_that_takes_them() -> None:
    model = whole_model()
    with pytest.raises(ValueError, match=r"profile must keep equally many .*'counting': 8"):
        PrunedEncoder(model, processor(), budget=16, profile=with_scale(0.5))
    encoder = PrunedEncoder(model, processor(), budget=16, profile=with_scale(0.5), ragged=True)
    encoded = encoder.encode([scene(1), scene(1)], [COUNT, READ])
    assert [each.request["multi_modal_data"]["image"].shape[1] for each in encoded] == [8, 16]


def test_a_loaded_model_is_patched_until_remove() -> None:
    model = whole_model()
    kind = type(model)
    with PrunedEncoder(model, processor(), budget=16):
        assert type(model) is not kind
    assert type(model) is kind


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (SPECIMENS["llava_next"].build, "model must be a 'llava' model .* got 'llava_next'"),
        (tiny_llava, "processor must be given with a loaded model"),
        (lambda: None, "got None"),
    ],
)
def test_another_model_is_refused(model: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrunedEncoder(model(), budget=16)


def test_another_family_is_refused_before_its_weights_are_loaded(tmp_path: Path) -> None:
    SPECIMENS["llava_next"].build().config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="of model_type 'llava_next'"):
        PrunedEncoder(tmp_path, processor(), budget=16)


@pytest.mark.parametrize(
    ("images", "prompts", "message"),
    [
        ([1], COUNT, "got a list of 1 and a text"),
        ([1, 2], [COUNT], "got a list of 2 and a list of 1"),
        (1, [COUNT], "must be lists of equal length, got .*Image.* and a list of 1"),
        ([1, [1, 2]], [BOTH, COUNT], "prompt 0 has 2 image tokens, and 1 images were given"),
        ([[1, 2]], [COUNT], "prompt 0 has 1 image tokens, and 2 images were given"),
        ([[]], [COUNT], "prompt 0 has 1 image tokens, and 0 images were given"),
        ([1], ["USER: Hi"], "prompt 0 has 0 image tokens, and 1 images were given"),
    ],
)
def test_images_and_prompts_must_match(images: Any, prompts: Any, message: str) -> None:
    def drawn(each: Any) -> Any:
        return [drawn(one) for one in each] if isinstance(each, list) else scene(each)

    with pytest.raises(ValueError, match=message):
        PrunedEncoder(TINY, budget=16).encode(drawn(images), prompts)


@pytest.mark.parametrize("image", [None, 3, "picture.png"])
def test_what_is_no_image_is_named(image: Any) -> None:
    with pytest.raises(TypeError, match=rf"must hold images of PIL.* got {image!r} for prompt 0"):
        PrunedEncoder(TINY, budget=16).encode([image], [COUNT])


def test_a_prompt_may_have_no_image() -> None:
    encoder = PrunedEncoder(TINY, budget=16)
    [alone] = encoder.encode([[]], ["USER: Hi ASSISTANT:"])
    assert alone.request == {"prompt": "USER: Hi ASSISTANT:"}
    assert alone.content == []
    beside, other = encoder.encode([[], scene(1)], ["USER: Hi ASSISTANT:", COUNT])
    assert beside.request == alone.request
    assert other.embeds.shape == (1, 16, 96)


def test_a_budget_must_be_given() -> None:
    with pytest.raises(TypeError, match=r"budget must be .* got None"):
        PrunedEncoder(TINY, budget=None)  # type: ignore[arg-type]


def test_an_encoder_that_was_removed_says_so() -> None:
    encoder = PrunedEncoder(TINY, budget=16)
    encoder.remove()
    with pytest.raises(RuntimeError, match="the handle was removed, so it cannot encode"):
        encoder.encode([scene(1)], [COUNT])


@pytest.mark.parametrize("shard", ["5GB", "40KB"])
def test_saved_weights_have_the_names_of_published_checkpoints(tmp_path: Path, shard: str) -> None:
    model = tiny_llava()  # built from a config
    save_for_vllm(model, processor(), tmp_path, max_shard_size=shard)
    files = list(tmp_path.glob("*.safetensors"))
    assert (len(files) > 1) == (shard == "40KB")
    names = {}
    for file in files:
        with safe_open(file, "pt") as content:
            names |= dict.fromkeys(content.keys(), file.name)
    tower = [name for name in names if "vision_tower" in name]
    assert tower
    assert all(name.startswith("vision_tower.vision_model.") for name in tower)
    if len(files) > 1:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert index["weight_map"] == names
    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    assert AutoProcessor.from_pretrained(tmp_path).image_token == "<image>"


def test_an_index_of_shards_that_were_there_before_is_removed(tmp_path: Path) -> None:
    for shard in ("40KB", "5GB"):
        save_for_vllm(tiny_llava(), processor(), tmp_path, max_shard_size=shard)
    assert [file.name for file in tmp_path.glob("model*")] == ["model.safetensors"]
    with pytest.raises(ValueError, match=r"variant must be left out, .* got 'fp16'"):
        save_for_vllm(tiny_llava(), processor(), tmp_path, variant="fp16")


def test_a_patched_model_is_saved_as_it_is(tmp_path: Path) -> None:
    with PrunedEncoder(model := whole_model(), processor(), budget=16):
        save_for_vllm(model, processor(), tmp_path)
    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.config.architectures == ["LlavaForConditionalGeneration"]
    assert loaded.state_dict().keys() == model.state_dict().keys()


def test_another_family_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="model must be a 'llava' or 'qwen2_5_vl' model, got"):
        save_for_vllm(SPECIMENS["llava_next"].build(), processor(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_encoder_needs_no_vllm(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    for name in [name for name in sys.modules if name.startswith("clasp_kernels.integrations.v")]:
        monkeypatch.delitem(sys.modules, name)
    assert importlib.import_module("clasp_kernels.integrations.vllm").PrunedEncoder
