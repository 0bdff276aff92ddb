"""The prompt's text is passed to the router, and the router's category is used."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_llava import images, prompts, tiny_llava, tiny_profile
from transformers import LlavaForConditionalGeneration

from clasp_kernels.models import apply_clasp
from clasp_kernels.policy import CategoryPolicy, Profile

WORDS = {0: "<pad>", 1: "<s>", 5: "how", 6: "many", 7: "read", 8: "sign", 9: "hello", 60: "<image>"}


class WordTokenizer:
    """A minimal tokenizer with one word per token."""

    def decode(self, ids: list[int]) -> str:
        return " ".join(WORDS.get(token, f"w{token}") for token in ids)


def test_prompts_are_read_without_images_and_padding(
    model: LlavaForConditionalGeneration,
) -> None:
    asked: list[str] = []

    def router(texts: list[str]) -> list[str]:
        asked.extend(texts)
        return ["counting" if "many" in text else "ocr" for text in texts]

    batch = prompts([1, "image", 5, 6], [1, "image", 7, 8, 9, 9])
    processor = SimpleNamespace(tokenizer=WordTokenizer())
    with apply_clasp(
        model, budget=4, profile=tiny_profile(), router=router, processor=processor
    ) as handle:
        model.generate(**batch, pixel_values=images(2), max_new_tokens=3, num_beams=2)
        assert asked == ["<s> how many", "<s> read sign hello hello"]  # not once per beam
        assert handle.last is not None
        assert handle.last.categories == ("counting", "ocr")

        model(**batch, pixel_values=images(2))
        assert asked[2:] == asked[:2]
        assert handle.last.categories == ("counting", "ocr")


def test_the_category_stays_while_an_uncached_generation_grows(
    model: LlavaForConditionalGeneration,
) -> None:
    asked: list[str] = []

    def router(texts: list[str]) -> list[str]:
        asked.extend(texts)
        return ["ocr"] * len(texts)

    with apply_clasp(
        model, budget=4, profile=tiny_profile(), router=router, processor=WordTokenizer()
    ):
        model.generate(
            **prompts([1, "image", 7]), pixel_values=images(1), max_new_tokens=3, use_cache=False
        )
    assert asked == ["<s> read"]


def test_callers_categories_go_before_the_router(model: LlavaForConditionalGeneration) -> None:
    def router(texts: list[str]) -> list[str]:
        raise AssertionError("not asked")

    with apply_clasp(
        model, budget=4, profile=tiny_profile(), router=router, processor=WordTokenizer()
    ) as handle:
        batch = prompts([1, "image", 5, 6], [1, "image", 7, 8])
        model(**batch, pixel_values=images(2), categories=("ocr", "counting"))
        assert handle.last is not None
        assert handle.last.categories == ("ocr", "counting")
        model.generate(**batch, pixel_values=images(2), categories="spatial", max_new_tokens=1)
        assert handle.last.categories == ("spatial", "spatial")


def test_default_router_reads_the_question(model: LlavaForConditionalGeneration) -> None:
    with apply_clasp(model, budget=4, profile=tiny_profile(), processor=WordTokenizer()) as handle:
        batch = prompts([1, "image", 5, 6], [1, "image", 9])
        model(**batch, pixel_values=images(2))
        assert handle.last is not None
        assert handle.last.categories == ("counting", "general")


def test_a_profile_need_not_know_all_that_the_router_knows(
    model: LlavaForConditionalGeneration,
) -> None:
    profile = tiny_profile(categories={"general": CategoryPolicy((0.0, 0.5, 0.5), 0.5)})
    with apply_clasp(model, budget=4, profile=profile, processor=WordTokenizer()) as handle:
        model(**prompts([1, "image", 5, 6]), pixel_values=images(1))
        assert handle.last is not None
        assert handle.last.categories == ("general",)


def test_a_router_that_makes_up_categories_is_told(model: LlavaForConditionalGeneration) -> None:
    def router(texts: list[str]) -> list[str]:
        return ["poetry"] * len(texts)

    with (
        apply_clasp(
            model, budget=4, profile=tiny_profile(), router=router, processor=WordTokenizer()
        ),
        pytest.raises(ValueError, match=r"router must give one of .*, got 'poetry'"),
    ):
        model(**prompts([1, "image", 5]), pixel_values=images(1))


def kept(handle: Any) -> torch.Tensor:
    return handle.last.stages[0].indices[0]


def test_categories_change_what_is_kept(model: LlavaForConditionalGeneration) -> None:
    inputs = {**prompts([1, "image", 5]), "pixel_values": images(1)}
    with apply_clasp(model, budget=8, profile=tiny_profile()) as handle:
        model(**inputs, categories="ocr")
        ocr, ocr_pivots = kept(handle), int(handle.last.stages[0].is_pivot.sum())
        model(**inputs, categories="counting")
        assert not torch.equal(kept(handle), ocr)
        assert (ocr_pivots, int(handle.last.stages[0].is_pivot.sum())) == (6, 2)
        model(**inputs, categories="spatial")
        assert handle.last.stages[0].counts == (4,)


def test_budget_scale_stops_at_every_token(model: LlavaForConditionalGeneration) -> None:
    profile = tiny_profile(
        categories={"general": CategoryPolicy((0.0, 0.5, 0.5), 0.5, budget_scale=3.0)}
    )
    with apply_clasp(model, budget=30, profile=profile) as handle:
        model(**prompts([1, "image", 5]), pixel_values=images(1), categories="general")
        assert handle.last is not None
        assert kept(handle).tolist() == list(range(36))


def test_profile_beside_the_weights_is_the_default(tmp_path: Path) -> None:
    tiny_llava().save_pretrained(tmp_path)
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    beside = tiny_profile(name="beside the weights")
    beside.save(tmp_path / "clasp_profile.json")
    assert apply_clasp(model, budget=4).profile == beside
    assert json.loads((tmp_path / "clasp_profile.json").read_text())["name"] == beside.name


def test_bundled_profile_is_the_default_otherwise() -> None:
    model = tiny_llava(vision_layers=8)
    assert apply_clasp(model, budget=4).profile == Profile.for_model_type("llava")
