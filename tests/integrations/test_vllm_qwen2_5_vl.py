"""vLLM's server with the plugin and a tiny random Qwen2.5-VL: `make test-engines`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from processors import save_checkpoint
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration
from vllm_server import BLOCK, NAME, pixels, served

from clasp_kernels.integrations.vllm import save_for_vllm
from clasp_kernels.models import apply_clasp
from clasp_kernels.models.specimens import tiny_qwen2_5_vl
from clasp_kernels.policy import CategoryPolicy, Profile

pytest.importorskip("vllm", reason="vLLM is not installed: make test-engines")

from openai import BadRequestError, OpenAI

from clasp_kernels.integrations.vllm import pruned_qwen2_5_vl
from clasp_kernels.integrations.vllm.pruned_processing import PrunedProcessor

BUDGET = 12
COUNTING = 9  # what the profile of these tests keeps for this category
NEW_TOKENS = 8
# Fewer than the tokens of a prompt with three pictures: their placeholders come in two steps.
STEP = 40
SIZES = [(64, 64), (40, 96), (120, 32), (24, 24), (64, 40)]  # width and height
WORKER = "clasp_kernels.integrations.vllm.cpu_worker.PruningCPUWorker"
PATCH = 8  # pixels of a visual token's side


@dataclass(frozen=True)
class Asked:
    images: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class Answer:
    tokens: list[int]
    logprobs: list[float]
    kept: tuple[int, ...]
    columns: int


# Wide, high and small pictures, one and several; the small one has fewer tokens than the budget.
ASKED = [
    Asked((0,), "what is on this sign"),
    Asked((1,), "where is the picture"),
    Asked((2,), "how many circles are there"),
    Asked((3,), "why"),
    Asked((1, 0, 4), "say what is there"),
    Asked((2, 3), "how many circles"),
    Asked((), "why is this"),
]


def picture(number: int) -> Image.Image:
    width, height = SIZES[number]
    noise = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: Any) -> str:
    """A random model whose decoder has heads that vLLM takes, and a profile that keeps fewer tokens
    for counting, and different ones for reading and for places."""
    folder: Path = tmp_path_factory.mktemp("model")
    model = tiny_qwen2_5_vl(head_dim=32)
    save_checkpoint("qwen2_5_vl", folder, model)
    save_for_vllm(model, AutoProcessor.from_pretrained(folder), folder)
    weights = (0.4, 0.6)
    Profile(
        name="tiny",
        model_type="qwen2_5_vl",
        layers=(0.5, 1.0),
        source="a test",
        fuse_into="selection",
        categories={
            "general": CategoryPolicy(weights, 0.5),
            "ocr": CategoryPolicy(weights, 1.0),
            "spatial": CategoryPolicy(weights, 0.0),
            "counting": CategoryPolicy(weights, 0.5, budget_scale=COUNTING / BUDGET),
        },
    ).save(folder / "clasp_profile.json")
    return str(folder)


@pytest.fixture(scope="module")
def client(checkpoint: str, tmp_path_factory: Any) -> Iterator[OpenAI]:
    log = tmp_path_factory.mktemp("server") / "log"
    options = (
        *("--max-model-len", "512", "--max-num-batched-tokens", str(STEP)),
        *("--video-pruning-rate", "0.5"),
        *("--worker-cls", WORKER),
    )
    with served(checkpoint, log, BUDGET, *options) as client:
        yield client


@pytest.fixture(scope="module")
def wanted(checkpoint: str) -> list[Answer]:
    """The answers of transformers."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint)
    processor = AutoProcessor.from_pretrained(checkpoint)
    answers = []
    with torch.no_grad(), apply_clasp(model, budget=BUDGET) as handle:
        for asked in ASKED:
            given = processor(
                images=[picture(number) for number in asked.images] or None,
                text=processor.apply_chat_template(message(asked), add_generation_prompt=True),
                return_tensors="pt",
            )
            output = model.generate(
                **given,
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=True,
            )
            columns = given["input_ids"].shape[1]
            new = output.sequences[0, columns:].tolist()
            each = [logits[0].log_softmax(-1) for logits in output.logits]
            kept: tuple[int, ...] = ()
            if asked.images:
                assert handle.last is not None
                kept = handle.last.stages[0].counts
            answers.append(
                Answer(
                    tokens=new,
                    logprobs=[row[token].item() for row, token in zip(each, new, strict=True)],
                    kept=kept,
                    columns=columns,
                )
            )
    return answers


def message(asked: Asked, images: Sequence[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    if images is None:
        images = [{"type": "image"}] * len(asked.images)
    return [{"role": "user", "content": [*images, {"type": "text", "text": asked.text}]}]


def ask(client: OpenAI, asked: Asked) -> Any:
    return client.chat.completions.create(
        model=NAME,
        messages=message(asked, [pixels(picture(number)) for number in asked.images]),  # type: ignore[arg-type]
        temperature=0,
        max_tokens=NEW_TOKENS,
        logprobs=True,
        extra_body={"return_token_ids": True, "ignore_eos": True},
    )


def assert_answer(response: Any, answer: Answer) -> None:
    [choice] = response.choices
    assert choice.token_ids == answer.tokens
    logprobs = [each.logprob for each in choice.logprobs.content]
    assert logprobs == pytest.approx(answer.logprobs, abs=1e-3)


def test_answers_are_those_of_transformers(client: OpenAI, wanted: list[Answer]) -> None:
    assert [answer.kept for answer in wanted] == [
        (BUDGET,),
        (BUDGET,),
        (COUNTING,),
        (9,),
        (BUDGET, BUDGET, BUDGET),
        (COUNTING, COUNTING),
        (),
    ]
    for asked, answer in zip(ASKED, wanted, strict=True):
        assert_answer(ask(client, asked), answer)


# In each round, vLLM takes up several prompts in a step, and some in several steps. In the second,
# pictures and prefixes come out of its caches.
def test_clients_that_ask_at_once_get_the_answers_of_transformers(
    client: OpenAI, wanted: list[Answer]
) -> None:
    for _ in range(2):
        with ThreadPoolExecutor(len(ASKED)) as pool:
            responses = list(pool.map(lambda asked: ask(client, asked), ASKED))
        for response, answer in zip(responses, wanted, strict=True):
            assert_answer(response, answer)
    longest = responses[4].usage
    assert longest.prompt_tokens > STEP
    assert longest.prompt_tokens_details.cached_tokens == BLOCK  # the cache is on


def test_a_prompt_is_shorter_by_the_dropped_tokens(client: OpenAI, wanted: list[Answer]) -> None:
    for asked, answer in zip(ASKED, wanted, strict=True):
        areas = [
            width // PATCH * (height // PATCH)
            for width, height in map(SIZES.__getitem__, asked.images)
        ]
        dropped = sum(areas) - sum(answer.kept)
        assert ask(client, asked).usage.prompt_tokens == answer.columns - dropped


def test_videos_are_refused(client: OpenAI) -> None:
    video = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}
    with pytest.raises(BadRequestError, match=r"prunes images of Qwen2.5-VL, but no videos"):
        client.chat.completions.create(
            model=NAME,
            messages=message(ASKED[0], [video]),  # type: ignore[arg-type]
        )


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"pruning": False}, "start the server with --video-pruning-rate"),
        ({"parts": 2}, "needs --pipeline-parallel-size 1 for Qwen2.5-VL, got 2"),
        ({"draft": object()}, "does not work with speculative decoding"),
        ({"embeds": True}, "does not work with --enable-prompt-embeds"),
        ({"compiled": True}, "needs compile_mm_encoder=False"),
        ({"worker": "vllm.v1.worker.cpu_worker.CPUWorker"}, f"start .* --worker-cls {WORKER}"),
    ],
    ids=str,
)
def test_a_server_that_would_place_tokens_wrongly_does_not_start(
    changed: dict[str, Any], said: str
) -> None:
    pruned_qwen2_5_vl.check_server(server_config())
    with pytest.raises(ValueError, match=said):
        pruned_qwen2_5_vl.check_server(server_config(**changed))


def server_config(
    pruning: bool = True,
    parts: int = 1,
    draft: Any = None,
    embeds: bool = False,
    compiled: bool = False,
    worker: str = WORKER,
) -> Any:
    """Stands for vLLM's config: what the plugin reads of it."""
    images = SimpleNamespace(is_multimodal_pruning_enabled=lambda: pruning)
    return SimpleNamespace(
        model_config=SimpleNamespace(
            get_multimodal_config=lambda: images, enable_prompt_embeds=embeds
        ),
        parallel_config=SimpleNamespace(pipeline_parallel_size=parts, worker_cls=worker),
        speculative_config=draft,
        compilation_config=SimpleNamespace(compile_mm_encoder=compiled),
    )


def test_prompts_that_the_plugin_cannot_place_are_refused(monkeypatch: Any) -> None:
    processor = object.__new__(pruned_qwen2_5_vl.PrunedQwen2_5_VLProcessor)
    processor.selector = SimpleNamespace(adapter=SimpleNamespace(token_ids=(60, 61)))
    embeddings = SimpleNamespace(mm_data_items={"image": object()})
    with pytest.raises(ValueError, match=r"images of Qwen2\.5-VL must be pictures"):
        processor.apply(embeddings, None)

    pictures = SimpleNamespace(mm_data_items={})
    for tokens in ([5, 60, 63], [5, 60]):
        processed = {"prompt_token_ids": tokens}
        monkeypatch.setattr(PrunedProcessor, "apply", lambda *_, made=processed: made)
        if tokens[-1] != 60:
            assert processor.apply(pictures, None) == processed
            continue
        with pytest.raises(ValueError, match="a prompt must not end with an image"):
            processor.apply(pictures, None)
