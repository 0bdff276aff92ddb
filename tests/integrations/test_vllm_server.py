"""vLLM's OpenAI-compatible server with the plugin, asked by a real client: `make test-engines`."""

from __future__ import annotations

import math
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import AutoProcessor
from vllm_questions import NEW_TOKENS, Asked, answers_of_transformers, questions, save_bundled
from vllm_server import BLOCK, NAME, START_SECONDS, VLLM, pixels, served

from clasp_kernels.bundled import tiny_vlm_path
from clasp_kernels.integrations.vllm import PrunedEncoder
from clasp_kernels.models.specimens import SPECIMENS

pytest.importorskip("vllm", reason="vLLM is not installed: make test-engines")

from openai import BadRequestError, OpenAI

BUDGET = 48  # more than a block, so that a block holds nothing but the picture
COUNTING = 36  # what the profile of these tests keeps for this category
ASKED = questions(4)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: Any) -> str:
    """The bundled model, with a profile that keeps fewer tokens for counting, and different ones
    for reading and for places."""
    folder: Path = tmp_path_factory.mktemp("model")
    save_bundled(
        folder,
        counting={"budget_scale": COUNTING / BUDGET},
        ocr={"pivot_ratio": 1.0},
        spatial={"pivot_ratio": 0.0},
    )
    return str(folder)


@pytest.fixture(scope="module")
def client(checkpoint: str, tmp_path_factory: Any) -> Iterator[OpenAI]:
    options = ("--max-model-len", "1024", "--max-num-batched-tokens", "2048")
    log = tmp_path_factory.mktemp("server") / "log"
    with served(
        checkpoint, log, BUDGET, *options, "--enable-mm-embeds", "--trust-request-mm-kwargs"
    ) as client:
        yield client


def metric(client: OpenAI, name: str) -> float:
    """Return a counter of the server, summed over its engines."""
    url = str(client.base_url).replace("/v1/", "/metrics")
    with urllib.request.urlopen(url, timeout=60) as response:
        lines = response.read().decode().splitlines()
    found = [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name)]
    assert found, f"the server has no metric {name}"
    return sum(found)


def text_of(prompt: str) -> str:
    """Return the question alone: the server puts it into the chat template."""
    return prompt.removeprefix("USER: <image>\n").removesuffix(" ASSISTANT:")


def ask(client: OpenAI, prompt: str, images: list[dict[str, Any]], **extra: Any) -> Any:
    content: Any = [*images, {"type": "text", "text": text_of(prompt)}]
    return client.chat.completions.create(
        model=NAME,
        messages=[{"role": "user", "content": content}],
        temperature=0,
        max_tokens=NEW_TOKENS,
        logprobs=True,
        extra_body=extra,
    )


def assert_answer(response: Any, text: str, logprob: float) -> None:
    [choice] = response.choices
    assert choice.message.content == text
    assert math.isclose(choice.logprobs.content[0].logprob, logprob, abs_tol=1e-3)


def test_answers_are_those_of_transformers_with_the_same_tokens(
    client: OpenAI, checkpoint: str
) -> None:
    wanted = answers_of_transformers(checkpoint, ASKED, positions="compact", budget=BUDGET)
    assert {len(answer.indices) for answer in wanted} == {BUDGET, COUNTING}
    for asked, answer in zip(ASKED, wanted, strict=True):
        assert_answer(ask(client, asked.prompt, [pixels(asked.image)]), answer.text, answer.logprob)


def test_a_prompt_is_shorter_by_the_dropped_tokens(client: OpenAI, checkpoint: str) -> None:
    processor = AutoProcessor.from_pretrained(checkpoint)
    for asked in ASKED[:8]:
        whole = processor(images=asked.image, text=asked.prompt)["input_ids"][0]
        response = ask(client, asked.prompt, [pixels(asked.image)])
        kept = COUNTING if "How many" in asked.prompt else BUDGET
        assert response.usage.prompt_tokens == len(whole) - 144 + kept


# Two orders, each with a picture that no test has sent before: the second question finds the
# picture in every cache of the server.
@pytest.mark.parametrize(
    ("order", "number"), [(["ocr", "spatial"], 1), (["spatial", "ocr"], 2)], ids=str
)
def test_a_picture_in_the_caches_is_pruned_for_each_category(
    client: OpenAI, checkpoint: str, order: list[str], number: int
) -> None:
    picture = Image.open(tiny_vlm_path().parent / "demo" / f"scene_{number}.png")
    texts = {
        "ocr": "USER: <image>\nWhat is written on the sign? ASSISTANT:",
        "spatial": "USER: <image>\nWhere is the circle? ASSISTANT:",
    }
    asked = [Asked(texts[category], picture) for category in order]
    wanted = answers_of_transformers(checkpoint, asked, positions="compact", budget=BUDGET)
    assert wanted[0].indices != wanted[1].indices
    for each, answer in zip(asked, wanted, strict=True):
        response = ask(client, each.prompt, [pixels(picture)])
        assert_answer(response, answer.text, answer.logprob)
    again = ask(client, asked[0].prompt, [pixels(picture)])
    assert_answer(again, wanted[0].text, wanted[0].logprob)
    assert again.usage.prompt_tokens_details.cached_tokens == BLOCK  # the cache is on


# In each round, every client asks one question of a picture: vLLM encodes pictures of several
# categories in one step. In the second round, they come out of its caches.
def test_clients_that_ask_at_once_get_the_answers_of_transformers(
    client: OpenAI, checkpoint: str
) -> None:
    pictures = [Image.open(tiny_vlm_path().parent / "demo" / f"scene_{n}.png") for n in (3, 4)]
    texts = ["What is written on the sign?", "Where is the circle?", "How many circles are there?"]
    asked = ASKED[4:] + [
        Asked(f"USER: <image>\n{text} ASSISTANT:", picture)
        for text in texts
        for picture in pictures
    ]
    wanted = answers_of_transformers(checkpoint, asked, positions="compact", budget=BUDGET)
    assert {len(answer.indices) for answer in wanted} == {BUDGET, COUNTING}
    for _ in range(2):
        with ThreadPoolExecutor(16) as pool:
            responses = list(
                pool.map(lambda each: ask(client, each.prompt, [pixels(each.image)]), asked)
            )
        for response, answer in zip(responses, wanted, strict=True):
            assert_answer(response, answer.text, answer.logprob)


def test_pictures_and_embeddings_at_once(client: OpenAI, checkpoint: str) -> None:
    encoders = [PrunedEncoder(checkpoint, budget=budget, ragged=True) for budget in (8, 24)]
    asked = ASKED[:6]
    parts, wanted = [], []
    for number, each in enumerate(asked):
        if number % 3 < 2:
            budget = (8, 24)[number % 3]
            [encoded] = encoders[number % 3].encode([each.image], [each.prompt])
            parts.append(encoded.content)
        else:
            budget = BUDGET
            parts.append([pixels(each.image)])
        wanted += answers_of_transformers(checkpoint, [each], positions="compact", budget=budget)
    with ThreadPoolExecutor(len(asked)) as pool:
        responses = list(pool.map(lambda each, part: ask(client, each.prompt, part), asked, parts))
    for response, answer in zip(responses, wanted, strict=True):
        assert_answer(response, answer.text, answer.logprob)


def test_a_prompt_may_have_several_pictures(client: OpenAI, checkpoint: str) -> None:
    one = ask(client, ASKED[0].prompt, [pixels(ASKED[0].image)])
    both = ask(client, ASKED[0].prompt, [pixels(ASKED[0].image), pixels(ASKED[1].image)])
    more = both.usage.prompt_tokens - one.usage.prompt_tokens
    assert BUDGET <= more <= BUDGET + 2  # the template may set something between them


def test_a_picture_is_processed_once(client: OpenAI) -> None:
    picture = Image.new("RGB", (96, 96), (7, 8, 9))
    ask(client, ASKED[0].prompt, [pixels(picture)])
    before = metric(client, "vllm:mm_cache_hits_total")
    ask(client, ASKED[0].prompt, [pixels(picture)])
    assert metric(client, "vllm:mm_cache_hits_total") == before + 1


@pytest.mark.parametrize("given", [7, ["ocr"]])
def test_a_category_that_is_no_name_is_a_bad_request(client: OpenAI, given: Any) -> None:
    with pytest.raises(BadRequestError, match="clasp_category must be the name of a category"):
        ask(
            client,
            ASKED[0].prompt,
            [pixels(ASKED[0].image)],
            mm_processor_kwargs={"clasp_category": given},
        )


def test_another_family_is_refused_before_its_weights_are_loaded(tmp_path: Path) -> None:
    SPECIMENS["llava_next"].build().config.save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(tiny_vlm_path()).save_pretrained(tmp_path)
    done = subprocess.run(
        [VLLM, "serve", str(tmp_path), "--port", "0"],
        env={**os.environ, "CLASP_KERNELS_VLLM_BUDGET": "48"},
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )
    assert done.returncode != 0
    assert "CLASP_KERNELS_VLLM_BUDGET is set, but this model's images would be served" in (
        done.stdout + done.stderr
    )


def test_a_request_may_name_its_category(client: OpenAI, checkpoint: str) -> None:
    asked = ASKED[0]
    named = ask(
        client,
        asked.prompt,
        [pixels(asked.image)],
        mm_processor_kwargs={"clasp_category": "counting"},
    )
    usual = ask(client, asked.prompt, [pixels(asked.image)])
    assert usual.usage.prompt_tokens - named.usage.prompt_tokens == BUDGET - COUNTING


def test_an_unknown_category_is_a_bad_request(client: OpenAI) -> None:
    asked = ASKED[0]
    with pytest.raises(BadRequestError, match="nonsense"):
        ask(
            client,
            asked.prompt,
            [pixels(asked.image)],
            mm_processor_kwargs={"clasp_category": "nonsense"},
        )


def test_embeddings_of_any_length_are_taken_as_they_are(client: OpenAI, checkpoint: str) -> None:
    for budget in (8, 24):
        encoder = PrunedEncoder(checkpoint, budget=budget, ragged=True)
        [encoded] = encoder.encode([ASKED[0].image], [ASKED[0].prompt])
        [answer] = answers_of_transformers(
            checkpoint, ASKED[:1], positions="compact", budget=budget
        )
        response = ask(client, ASKED[0].prompt, encoded.content)
        assert_answer(response, answer.text, answer.logprob)


def test_embeddings_of_different_lengths_may_share_a_batch(client: OpenAI, checkpoint: str) -> None:
    parts: list[dict[str, Any]] = []
    for budget, asked in zip((8, 24), ASKED, strict=False):
        encoder = PrunedEncoder(checkpoint, budget=budget, ragged=True)
        parts += encoder.encode([asked.image], [asked.prompt])[0].content
    response = ask(client, ASKED[0].prompt, parts)
    assert response.usage.prompt_tokens > 8 + 24
