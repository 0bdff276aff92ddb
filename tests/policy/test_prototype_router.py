"""The router that learns from examples: routes, explanations, files and errors."""

import json
import math

import pytest
import torch

from clasp_kernels.policy import PrototypeRouter, Route, route_prompts

WORDS = ["many", "where", "read", "dog", "sign", "the"]
PROMPTS = {
    "counting": ["how many dogs", "how many", "many signs", "dog, how many"],
    "spatial": ["where is the dog", "where", "the sign is where"],
    "ocr": ["read the sign", "read it", "read"],
}
EXAMPLES = [(text, name) for name, texts in PROMPTS.items() for text in texts]
TEXTS, NAMES = (list(column) for column in zip(*EXAMPLES, strict=True))


def embed(texts):
    return torch.tensor([[float(text.count(word)) for word in WORDS] for text in texts])


def fitted(**options):
    return PrototypeRouter.fit(TEXTS, NAMES, embed, **options)


def test_prompts_get_the_category_of_the_nearest_prototype():
    router = fitted()
    assert router.route(TEXTS) == NAMES
    assert router.route(["how many cats?", "where is a cat?"]) == ["counting", "spatial"]
    assert router.categories == ("counting", "spatial", "ocr", "general")
    assert router.route([]) == []
    assert route_prompts(router, ["read this"], known=router.categories) == ["ocr"]


def test_only_the_last_user_turn_is_embedded():
    seen = []

    def spy(texts):
        seen.extend(texts)
        return embed(texts)

    router = PrototypeRouter.fit(TEXTS, NAMES, spy)
    seen.clear()
    prompt = "USER: <image>\nhow many? ASSISTANT: Two.</s>USER: where is it? ASSISTANT:"
    assert router.route([prompt]) == ["spatial"]
    assert seen == ["where is it?"]


def test_directions_in_which_a_category_varies_count_less():
    # Both categories vary a lot in the first number, and differ in the second one.
    points = {"a0": [-9.0, 0.0], "a1": [9.0, 0.0], "b0": [-7.0, 1.0], "b1": [11.0, 1.0]}
    points |= {"new": [1.2, 0.25]}  # in plain distance, it is nearer to the mean of b
    router = PrototypeRouter.fit(
        ["a0", "a1", "b0", "b1"], ["a", "a", "b", "b"], lambda texts: [points[t] for t in texts]
    )
    assert router.route(["new"]) == ["a"]


def test_an_unsure_prompt_gets_the_fallback_and_the_reason():
    router = fitted(threshold=0.9)
    sure, unsure = router.explain("how many dogs"), router.explain("zebra")
    assert sure == Route("counting", "nearest to 'counting' with probability 1.00")
    assert unsure.category == "general"
    assert unsure.reason.endswith(", below the threshold 0.9")
    assert fitted(threshold=0.9, fallback="other").route(["zebra"]) == ["other"]
    assert fitted().route(["zebra"]) != ["general"]


def test_examples_without_spread_can_be_learned():
    router = PrototypeRouter.fit(["a", "bb"], ["a", "b"], lambda texts: [[len(t)] for t in texts])
    assert router.route(["c", "ccc"]) == ["a", "b"]


def test_json_round_trip(tmp_path):
    router = fitted(threshold=0.4, fallback="other")
    router.save(tmp_path / "router.json")
    loaded = PrototypeRouter.load(tmp_path / "router.json", embed)
    assert loaded.to_dict() == router.to_dict()
    prompts = [*TEXTS, "zebra", "many signs where"]
    assert [loaded.explain(p) for p in prompts] == [router.explain(p) for p in prompts]


@pytest.mark.parametrize(
    ("prompts", "categories", "options", "error", "message"),
    [
        ("one", ["a"], {}, TypeError, r"prompts must be a list of strings, got one string"),
        ([1], ["a"], {}, TypeError, r"prompts\[0\] must be a string, got int"),
        ([], [], {}, ValueError, "prompts must hold at least one prompt"),
        (["x"], ["a", "b"], {}, ValueError, "categories must hold one name for each of the 1 prom"),
        (["x"], [""], {}, ValueError, r"categories\[0\] must be a category name, got ''"),
        (["x"], ["a"], {"threshold": 1.5}, ValueError, "threshold must be a number from 0 to 1"),
        (["x"], ["a"], {"threshold": "1"}, ValueError, "threshold must be a number from 0 to 1"),
        (["x"], ["a"], {"fallback": ""}, ValueError, "fallback must be a category name, got ''"),
    ],
)
def test_bad_examples_are_named(prompts, categories, options, error, message):
    with pytest.raises(error, match=message):
        PrototypeRouter.fit(prompts, categories, embed, **options)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ([1.0], ValueError, r"one row per prompt, shape \(1, D\), got shape \(1,\)"),
        ([[1.0], [2.0]], ValueError, r"shape \(1, D\), got shape \(2, 1\)"),
        ([[math.nan]], ValueError, "embed must give finite numbers, .* for prompt 0"),
        ("text", TypeError, r"embed must give numbers of shape \(1, D\), got str"),
        ([[1.0, 2.0]], ValueError, "embed must give 6 numbers per prompt, as in fit, got 2"),
    ],
)
def test_a_bad_embedding_is_named(given, error, message):
    router = PrototypeRouter(fitted().to_dict(), lambda texts: given)
    with pytest.raises(error, match=message):
        router.route(["x"])


def changed(**fields):
    return {**fitted().to_dict(), **fields}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "prototypes must be a JSON object, got list"),
        (changed(format=2), "format must be 1, the version this package reads, got 2"),
        (changed(extra=1), "prototypes has unknown field.*'extra'"),
        (changed(categories={}), "categories must hold at least one category"),
        (changed(categories={"a": 1}), "categories.a must be a JSON object, got int"),
        (
            changed(categories={"a": {"weights": [], "offset": 0}}),
            r"categories.a.weights must be a list of numbers, got \[\]",
        ),
        (
            changed(categories={"a": {"weights": [1, "x"], "offset": 0}}),
            "categories.a.weights must be numbers, got 'x'",
        ),
        (
            changed(categories={"a": {"weights": [1]}}),
            "categories.a.offset must be a number, got None",
        ),
        (
            changed(
                categories={
                    "a": {"weights": [1], "offset": 0},
                    "b": {"weights": [1, 2], "offset": 0},
                }
            ),
            "categories.b.weights must hold 1 numbers like those of the other categories, got 2",
        ),
    ],
)
def test_a_bad_file_is_named(data, message, tmp_path):
    path = tmp_path / "router.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=rf"router\.json: {message}"):
        PrototypeRouter.load(path, embed)
