"""``clasp explore`` with a model of every family that ``clasp ask`` takes."""

import json
import re
from dataclasses import replace
from functools import cache

import pytest
from PIL import Image
from processors import PROCESSORS
from running import SCENE

from clasp_kernels.cli.explore import explore_page
from clasp_kernels.cli.loading import load_image, load_model
from clasp_kernels.cli.prompt import prepare
from clasp_kernels.explore import PromptTokens, explore, input_plan, progressive_plan
from clasp_kernels.models import apply_clasp
from clasp_kernels.models.decoder import refusal

QUESTION = "what is in the picture"


@pytest.fixture(scope="module")
def model_of(checkpoint):
    """Return a function that loads a family's tiny model, once."""
    return cache(lambda family: load_model(str(checkpoint(family)), "cpu"))


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "wide.png"
    with Image.open(SCENE) as scene:
        scene.convert("RGB").resize((300, 100)).save(path)
    return load_image(path)


def usual_alone(plan):
    return replace(plan, schedules=(plan.schedules[plan.usual],), tokens=(plan.tokens[plan.usual],))


@pytest.mark.parametrize("family", PROCESSORS)
def test_selections_are_those_of_the_patched_model(family, model_of, wide):
    loaded = model_of(family)
    with apply_clasp(loaded.model, processor=loaded.processor) as handle:
        prompt = prepare(loaded, handle.adapter, wide, QUESTION)
    tokens = PromptTokens(loaded.model, loaded.processor, prompt.inputs, prompt.counts)
    most = max(prompt.counts)
    plans = [input_plan(most)]
    if not refusal(loaded.model.config.get_text_config()):
        plans.append(
            progressive_plan(most, loaded.model.config.get_text_config().num_hidden_layers)
        )
    plans = [usual_alone(plan) for plan in plans]
    # Rules that use salience, the similarity to the prompt, and places.
    result = explore(tokens, plans, ("clasp", "cdpruner", "pool"))
    for plan in plans:
        for rule in result.rules:
            if (plan.name, rule) == ("progressive", "pool"):  # works only before the LLM
                continue
            with tokens.applied(plan.schedules[0], rule) as handle:
                loaded.model.generate(
                    **prompt.inputs, categories=["general"], do_sample=False, max_new_tokens=1
                )
                record = handle.last
            stages = result.of(plan.name, rule, "general", 0)
            for shown, stage in zip(stages, record.stages, strict=True):
                kept, pivots = [], []
                for start, row, is_pivot in zip(
                    tokens.starts, stage.indices.tolist(), stage.is_pivot.tolist(), strict=True
                ):
                    kept += [start + token for token in row if token >= 0]
                    pivots += [
                        start + token
                        for token, pivot in zip(row, is_pivot, strict=True)
                        if token >= 0 and pivot
                    ]
                assert (shown.layer, shown.kept, shown.pivots) == (stage.layer, kept, pivots)


@pytest.mark.parametrize("family", PROCESSORS)
def test_every_token_has_a_place_on_the_page(family, model_of, wide):
    loaded = model_of(family)
    html = explore_page(loaded, wide, "wide.png", QUESTION, rules=("uniform",), progressive=False)
    data = json.loads(
        re.search('<script type="application/json" id="data">(.*?)</script>', html)[1]
    )
    assert sorted(box[0] for box in data["boxes"]) == list(range(data["tokens"]))
    for _, left, top, right, bottom in data["boxes"]:
        assert 0 <= left < right <= data["width"] and 0 <= top < bottom <= data["height"]


def test_a_recurrent_decoder_has_a_page_without_stages(model_of, wide):
    html = explore_page(model_of("qwen3_5"), wide, "wide.png", QUESTION, rules=("uniform",))
    assert '"noProgressive":"Not with this model: ' in html
