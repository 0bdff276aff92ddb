"""Embeddings that were pruned outside, in vLLM without any plugin: `make test-engines`."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vllm_questions import NEW_TOKENS, Asked, answers_of_transformers, questions, save_bundled

from clasp_kernels.integrations.vllm import EncodedPrompt, PrunedEncoder

pytest.importorskip("vllm", reason="vLLM is not installed: make test-engines")

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB

from vllm import LLM, SamplingParams
from vllm.v1.engine.exceptions import EngineDeadError

GREEDY = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, logprobs=0)
ASKED = questions(4)
BOTH = "USER: <image> <image>\nWhat color is the ring? ASSISTANT:"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: Any) -> str:
    folder: Path = tmp_path_factory.mktemp("model")
    save_bundled(folder)
    return str(folder)


@pytest.fixture(scope="module")
def engine(checkpoint: str) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("CLASP_KERNELS_VLLM_")]:
            patch.delenv(name)
        yield LLM(
            checkpoint,
            dtype="float32",
            enforce_eager=True,
            enable_mm_embeds=True,
            max_model_len=1024,
            max_num_batched_tokens=2048,
            max_num_seqs=8,
        )


def encoded_by(checkpoint: str, asked: list[Asked], **settings: Any) -> list[EncodedPrompt]:
    encoder = PrunedEncoder(checkpoint, **settings)
    return encoder.encode([each.image for each in asked], [each.prompt for each in asked])


@pytest.mark.parametrize(
    "settings", [{"budget": 16}, {"budget": 36}, {"budget": 16, "rule": "cdpruner"}], ids=str
)
def test_answers_are_those_of_transformers_with_the_same_tokens(
    engine: Any, checkpoint: str, settings: dict[str, Any]
) -> None:
    wanted = answers_of_transformers(checkpoint, ASKED, positions="compact", **settings)
    encoded = encoded_by(checkpoint, ASKED, **settings)
    outputs = engine.generate([each.request for each in encoded], GREEDY)
    for ours, theirs, output in zip(wanted, encoded, outputs, strict=True):
        assert theirs.images[0].indices.tolist() == ours.indices
        [answer] = output.outputs
        assert answer.text == ours.text
        [first] = answer.logprobs[0].values()
        assert math.isclose(first.logprob, ours.logprob, abs_tol=1e-3)
    # The test would see answers that do not depend on the picture.
    assert len({answer.text for answer in wanted}) > len(ASKED) / 4


def test_a_prompt_is_shorter_by_the_dropped_tokens(engine: Any, checkpoint: str) -> None:
    [encoded] = encoded_by(checkpoint, ASKED[:1], budget=16)
    pixels = {"prompt": ASKED[0].prompt, "multi_modal_data": {"image": ASKED[0].image}}
    whole, pruned = engine.generate([pixels, encoded.request], GREEDY)
    assert len(whole.prompt_token_ids) - len(pruned.prompt_token_ids) == 144 - 16


def test_a_prompt_may_have_several_images(engine: Any, checkpoint: str) -> None:
    encoder = PrunedEncoder(checkpoint, budget=16)
    pictures = [ASKED[0].image, ASKED[1].image]
    [encoded] = encoder.encode([pictures], [BOTH])
    pixels = {"prompt": BOTH, "multi_modal_data": {"image": pictures}}
    whole, pruned = engine.generate([pixels, encoded.request], GREEDY)
    assert len(whole.prompt_token_ids) - len(pruned.prompt_token_ids) == 2 * (144 - 16)


def test_prompts_with_and_without_an_image_share_a_batch(engine: Any, checkpoint: str) -> None:
    encoder = PrunedEncoder(checkpoint, budget=16)
    text = "USER: Hi ASSISTANT:"
    alone, shown = encoder.encode([[], ASKED[0].image], [text, ASKED[0].prompt])
    first, second = engine.generate([alone.request, shown.request], GREEDY)
    again = engine.generate([{"prompt": text}, shown.request], GREEDY)
    assert [each.outputs[0].text for each in (first, second)] == [
        each.outputs[0].text for each in again
    ]


# The last test of this file: after it, the engine is dead. When it fails, upstream has learnt to
# take embeddings of different lengths, and `ragged` of PrunedEncoder is no longer needed.
def test_the_engine_still_dies_of_embeddings_of_different_lengths(
    engine: Any, checkpoint: str
) -> None:
    # A picture that no test has asked about: what the encoder cache has is in no batch.
    lengths = [
        encoded_by(checkpoint, ASKED[-1:], budget=budget)[0].images[0].features
        for budget in (17, 24)
    ]
    with pytest.raises(EngineDeadError):
        engine.generate([{"prompt": BOTH, "multi_modal_data": {"image": lengths}}], GREEDY)
