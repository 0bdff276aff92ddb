"""Qwen2.5-VL: images of different sizes, videos, window attention, 3D position ids."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from masked_layers import kept_in_layers, layers_masked
from PIL import Image

from clasp_kernels.models import ClaspHandle, PrefillRecord, apply_clasp
from clasp_kernels.models.specimens import IMAGE_TOKEN, VIDEO_TOKEN, tiny_qwen2_5_vl
from clasp_kernels.policy import CategoryPolicy, Profile, Schedule

START, END = 62, 63
SIZES = {"image": [(1, 8, 8), (1, 12, 8), (1, 4, 4)], "video": [(3, 8, 4)]}  # in patches
GREEDY = {
    "max_new_tokens": 4,
    "suppress_tokens": [IMAGE_TOKEN, VIDEO_TOKEN, START, END],
    "do_sample": False,
}


@pytest.fixture
def model() -> Any:
    return tiny_qwen2_5_vl(decoder_layers=5)


def profile(pivot_ratio: float = 0.5) -> Profile:
    return Profile(
        name="tiny",
        model_type="qwen2_5_vl",
        layers=(0.5, 1.0),
        source="a test",
        fuse_into="selection",
        categories={"general": CategoryPolicy((0.4, 0.6), pivot_ratio)},
    )


def pruned(model: Any, schedule: Schedule, **settings: Any) -> ClaspHandle:
    return apply_clasp(model, schedule=schedule, profile=profile(**settings))


def last(handle: ClaspHandle) -> PrefillRecord:
    assert handle.last is not None
    return handle.last


def tokens(kind: str) -> list[int]:
    return [t * h * w // 4 for t, h, w in SIZES[kind]]


def batch(*rows: list[int | str], kinds: tuple[str, ...] = ("image",)) -> dict[str, torch.Tensor]:
    """Return prompts in which "image" and "video" are the next item of their kind in SIZES."""
    waiting = {"image": iter(tokens("image")), "video": iter(tokens("video"))}
    placeholder = {"image": IMAGE_TOKEN, "video": VIDEO_TOKEN}
    ids = []
    for row in rows:
        prompt: list[int] = []
        for item in row:
            if isinstance(item, str):
                prompt += [START, *[placeholder[item]] * next(waiting[item]), END]
            else:
                prompt.append(item)
        ids.append(prompt)
    width = max(map(len, ids))
    input_ids = torch.tensor([[0] * (width - len(row)) + row for row in ids])
    inputs = {
        "input_ids": input_ids,
        "attention_mask": (input_ids != 0).long(),
        "mm_token_type_ids": (input_ids == IMAGE_TOKEN).int()
        + 2 * (input_ids == VIDEO_TOKEN).int(),
    }
    generator = torch.Generator().manual_seed(3)
    for kind, pixels, grid in (
        ("image", "pixel_values", "image_grid_thw"),
        ("video", "pixel_values_videos", "video_grid_thw"),
    ):
        if kind in kinds:
            patches = sum(t * h * w for t, h, w in SIZES[kind])
            inputs[pixels] = torch.randn(patches, 3 * 2 * 4 * 4, generator=generator)
            inputs[grid] = torch.tensor(SIZES[kind])
    return inputs


THREE_IMAGES = batch([1, "image", 7, 8], [1, "image", 5, "image", 9, 3], [4, 5, 6])
WITH_VIDEO = batch(
    [1, "image", 7, "video", 8], [1, "image", 5, "image", 9], kinds=("image", "video")
)


def groups(inputs: dict[str, torch.Tensor]) -> list[tuple[int, list[int]]]:
    found = [(IMAGE_TOKEN, tokens("image"))]
    if "video_grid_thw" in inputs:
        found.append((VIDEO_TOKEN, tokens("video")))
    return found


def positions(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    names = ("image_grid_thw", "video_grid_thw", "mm_token_type_ids", "attention_mask")
    given = {name: inputs[name] for name in names if name in inputs}
    return model.model.get_rope_index(inputs["input_ids"], **given)[0]


def grown(inputs: dict[str, torch.Tensor], ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Extend the inputs by the generated ids."""
    new = ids.shape[1] - inputs["input_ids"].shape[1]
    pad = torch.nn.functional.pad
    return {
        **inputs,
        "input_ids": ids,
        "attention_mask": pad(inputs["attention_mask"], (0, new), value=1),
        "mm_token_type_ids": pad(inputs["mm_token_type_ids"], (0, new)),
    }


@pytest.mark.parametrize("inputs", [THREE_IMAGES, WITH_VIDEO], ids=["images", "and a video"])
@pytest.mark.parametrize(
    "schedule",
    [Schedule({0: 0.3}), Schedule({2: 5}), Schedule({0: 0.6, 1: 0.4, 3: 3})],
    ids=str,
)
@pytest.mark.parametrize("settings", [{}, {"cache_implementation": "static"}, {"num_beams": 2}])
def test_every_generated_step(
    model: Any, inputs: dict[str, torch.Tensor], schedule: Schedule, settings: dict[str, Any]
) -> None:
    """Kept tokens, text after the images and generated tokens keep their position ids."""
    asked = {
        **GREEDY,
        **settings,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    with pruned(model, schedule) as handle:
        ours = model.generate(**inputs, **asked, categories="general")
    asked.pop("cache_implementation", None)
    with layers_masked(model, kept_in_layers(model, inputs, last(handle), groups(inputs))):
        expected = model.generate(**inputs, **asked)
    assert torch.equal(ours.sequences, expected.sequences)
    for got, wanted in zip(ours.logits, expected.logits, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)


def test_salience_is_the_attention_received_within_an_image(model: Any) -> None:
    """The salience is in the order of the language model's tokens, not in window order."""
    inputs = WITH_VIDEO
    with pruned(model, Schedule({0: 3}), pivot_ratio=1.0) as handle:
        model(**inputs, categories="general")
    chosen = last(handle).stages[0].indices
    tower, scores = model.model.visual, []
    attention = tower.blocks[2].attn
    for pixels, grid in (
        ("pixel_values", "image_grid_thw"),
        ("pixel_values_videos", "video_grid_thw"),
    ):
        seen: dict[str, Any] = {}

        def look(_: Any, args: Any, kwargs: dict[str, Any], seen: dict[str, Any] = seen) -> None:
            seen.update(kwargs, hidden=args[0] if args else kwargs["hidden_states"])

        hook = attention.register_forward_pre_hook(look, with_kwargs=True)
        merged = tower(inputs[pixels], grid_thw=inputs[grid], return_dict=True).pooler_output
        hook.remove()
        in_windows = tower.merger(tower.blocks[2](**_of_block(seen, tower, inputs, pixels, grid)))
        back = torch.cdist(merged, in_windows).argmin(1)  # index of each token in window order
        hidden = seen["hidden"]
        query, key, _ = attention.qkv(hidden).reshape(len(hidden), 3, 4, 8).unbind(1)
        cos, sin = (part.unsqueeze(-2) for part in seen["position_embeddings"])
        query, key = (x * cos + _turned(x) * sin for x in (query, key))
        received = []
        bounds = seen["cu_seqlens"].tolist()
        for start, stop in pairwise(bounds):
            q, k = query[start:stop].transpose(0, 1), key[start:stop].transpose(0, 1)
            received.append((q @ k.mT * 8**-0.5).softmax(-1).mean((0, 1)))
        by_token = torch.cat(received).view(-1, 4).sum(1)[back]
        counts = [t * h * w // 4 for t, h, w in inputs[grid].tolist()]
        scores += by_token.split(counts)
    for indices, score in zip(chosen, scores, strict=True):
        best = score.topk(3).indices.sort().values
        assert indices.tolist() == best.tolist()


def _turned(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def _of_block(
    seen: dict[str, Any], tower: Any, inputs: dict[str, torch.Tensor], pixels: str, grid: str
) -> dict[str, Any]:
    """Run the tower once more and return the arguments of the last block."""
    found: dict[str, Any] = {}

    def look(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        found.update(kwargs)
        found.setdefault("hidden_states", args[0] if args else None)

    hook = tower.blocks[2].register_forward_pre_hook(look, with_kwargs=True)
    tower(inputs[pixels], grid_thw=inputs[grid])
    hook.remove()
    return found


def test_a_budget_of_everything_changes_nothing(model: Any) -> None:
    before = model(**THREE_IMAGES).logits
    with pruned(model, Schedule({0: 1.0})):
        assert torch.equal(model(**THREE_IMAGES, categories="general").logits, before)
    assert torch.equal(model(**THREE_IMAGES).logits, before)


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_second_turn_of_text(model: Any, by_hand: bool) -> None:
    inputs = batch([1, "image", 7, "image", "image", 8])
    with pruned(model, Schedule({0: 0.5, 2: 0.2})) as handle:
        out = model.generate(**inputs, **GREEDY, categories="general", return_dict_in_generate=True)
        cache = getattr(out, "cache", None) or out.past_key_values
        ids = torch.cat([out.sequences, torch.tensor([[5, 6, 7]])], 1)
        if by_hand:
            logits = model(input_ids=ids[:, -4:], past_key_values=cache).logits[:, -1]
        else:
            whole = grown(inputs, ids)
            again = model.generate(
                input_ids=ids,
                attention_mask=whole["attention_mask"],
                mm_token_type_ids=whole["mm_token_type_ids"],
                past_key_values=cache,
                **GREEDY,
                output_logits=True,
                return_dict_in_generate=True,
            )
            logits = again.logits[0]
    whole = grown(inputs, ids)
    with layers_masked(model, kept_in_layers(model, inputs, last(handle), groups(inputs))):
        expected = model(**whole, position_ids=positions(model, whole), use_cache=False).logits
    torch.testing.assert_close(logits, expected[:, -1], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_grid_thw": None}, "image_grid_thw must be a tensor .*, got NoneType"),
        (
            {"image_grid_thw": torch.tensor([[1, 8, 8], [1, 12, 8]])},
            "pixel_values holds 176 patches, but image_grid_thw says 160",
        ),
        (
            {"image_grid_thw": torch.tensor([[1, 12, 8], [1, 8, 8], [1, 4, 4]])},
            "prompt 0 has 16 image placeholders, which are not those of whole images",
        ),
    ],
)
def test_bad_images(model: Any, change: dict[str, Any], said: str) -> None:
    with pruned(model, Schedule({0: 3})), pytest.raises((ValueError, TypeError), match=said):
        model.generate(**{**THREE_IMAGES, **change}, **GREEDY, categories="general")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"fuse_into": "projector"}, "merges 2 x 2 patches into one; use fuse_into='selection'"),
        ({"positions": "compact"}, "places in two or three dimensions, got 'compact'"),
        ({"budget": 16, "schedule": Schedule({2: 9})}, "budget must be left out beside a schedule"),
    ],
)
def test_settings_that_do_not_fit(model: Any, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        apply_clasp(model, **settings)


def test_from_pictures_through_the_real_image_processor(model: Any) -> None:
    from transformers import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil(patch_size=4, min_pixels=64, max_pixels=1024)
    pictures = [Image.new("RGB", (33, 21), "red"), Image.new("RGB", (900, 500), "navy")]
    made = processor(images=pictures, return_tensors="pt")
    counts = (made["image_grid_thw"].prod(1) // 4).tolist()
    prompt = [
        1,
        START,
        *[IMAGE_TOKEN] * counts[0],
        END,
        5,
        START,
        *[IMAGE_TOKEN] * counts[1],
        END,
        8,
    ]
    ids = torch.tensor([prompt])
    with apply_clasp(model, budget=0.25) as handle:
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == IMAGE_TOKEN).int(),
            **made,
            **GREEDY,
            categories="general",
        )
    assert last(handle).stages[0].counts == tuple(max(1, int(n / 4 + 0.5)) for n in counts)
