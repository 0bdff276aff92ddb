"""``clasp explore``: the page shows what a patched model keeps, and is safe to open anywhere."""

import base64
import hashlib
import json
import os
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from running import QUESTION, SCENE, clasp, message

from clasp_kernels import fuse_layers
from clasp_kernels.bundled import tiny_vlm_path
from clasp_kernels.cli import explore as command
from clasp_kernels.cli import loading, picture
from clasp_kernels.cli.explore import ANY_QUESTION, explore_page
from clasp_kernels.cli.loading import load_image, load_model
from clasp_kernels.explore import PromptTokens, explore, input_plan, progressive_plan
from clasp_kernels.models import apply_clasp
from clasp_kernels.policy import CategoryPolicy, Profile, Router, Schedule
from clasp_kernels.rules import rule_names

NUM_TOKENS = 144
RULES = ("clasp", "attention", "divprune", "random", "pool")
# Categories that differ in everything: layers, pivots and budget.
PROFILE = Profile(
    "three categories",
    "llava",
    (-4, -1),
    "test",
    {
        "general": CategoryPolicy((0.2, 0.8), 0.25),
        "ocr": CategoryPolicy((1.0, 0.0), 0.75),
        "scene": CategoryPolicy((0.2, 0.8), 0.25, budget_scale=0.5),
        "counting": CategoryPolicy((0.2, 0.8), 0.25),
    },
    salience_layer=-2,
)


@pytest.fixture(scope="module")
def loaded():
    return load_model(None, "cpu")


def inputs_of(loaded, images=1):
    marks = "<image>\n" * images
    return loaded.processor(
        images=[load_image(SCENE), load_image(SCENE).rotate(90)][:images],
        text=f"USER: {marks}{QUESTION} ASSISTANT:",
        return_tensors="pt",
    )


class Page(HTMLParser):
    """The page as a browser reads it: the text of each element, and what elements refer to."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.tags, self.texts, self.attributes, self._open = [], {}, [], []
        self.feed(html)
        self.data = json.loads(self.texts["script"][0])

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        self.texts.setdefault(tag, []).append("")
        self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if self._open:
            self.texts[self._open[-1]][-1] += data

    def frames(self, plan, rule, category, budget):
        """Return the stages of a combination as the script of the page decodes them."""
        [plan] = [each for each in self.data["plans"] if each["name"] == plan]
        rule = [each["name"] for each in self.data["rules"]].index(rule)
        [group] = [each["group"] for each in self.data["categories"] if each["name"] == category]
        return [
            {
                "states": self._states(states),
                "salience": base64.b64decode(self.data["maps"][salience]),
                "coverage": base64.b64decode(self.data["maps"][coverage]),
            }
            for states, salience, coverage in plan["frames"][rule][group][budget]
        ]

    def _states(self, number):
        packed = base64.b64decode(self.data["states"][number])
        return [packed[token // 4] >> 2 * (token % 4) & 3 for token in range(self.data["tokens"])]


@pytest.fixture(scope="module")
def html(loaded):
    return explore_page(loaded, load_image(SCENE), SCENE, QUESTION, rules=RULES, profile=PROFILE)


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def kept_by_the_model(loaded, schedule, rule, category, images=1, profile=PROFILE):
    """Return (kept, pivots) of each stage of a patched model, by tokens of the whole prompt."""
    with apply_clasp(loaded.model, schedule=schedule, rule=rule, profile=profile) as handle:
        loaded.model.generate(
            **inputs_of(loaded, images), do_sample=False, max_new_tokens=1, categories=[category]
        )
        record = handle.last
    stages = []
    for stage in record.stages:
        kept, pivots = [], []
        for image, count in enumerate(stage.counts):
            tokens = [image * NUM_TOKENS + t for t in stage.indices[image, :count].tolist()]
            kept += tokens
            pivots += [t for t, p in zip(tokens, stage.is_pivot[image].tolist(), strict=False) if p]
        stages.append((kept, pivots))
    return stages


def shown(frames):
    return [
        (
            [token for token, state in enumerate(frame["states"]) if state >= 2],
            [token for token, state in enumerate(frame["states"]) if state == 3],
        )
        for frame in frames
    ]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("category", ["general", "ocr", "scene", "counting"])
@pytest.mark.parametrize("budget", [0, 3, 7, 10])
def test_before_the_llm_the_page_shows_what_a_patched_model_keeps(
    loaded, page, rule, category, budget
):
    schedule = input_plan(NUM_TOKENS).schedules[budget]
    expected = kept_by_the_model(loaded, schedule, rule, category)
    assert shown(page.frames("input", rule, category, budget)) == expected


@pytest.mark.parametrize(
    ("rule", "category", "budget"),
    [
        ("clasp", "general", 1),
        ("clasp", "ocr", 1),
        ("clasp", "scene", 3),
        ("attention", "counting", 2),
        ("divprune", "ocr", 0),
        ("random", "general", 4),
    ],
)
def test_inside_the_llm_the_page_shows_what_a_patched_model_keeps(
    loaded, page, rule, category, budget
):
    schedule = progressive_plan(NUM_TOKENS, 6).schedules[budget]
    frames = page.frames("progressive", rule, category, budget)
    expected = kept_by_the_model(loaded, schedule, rule, category)
    assert shown(frames) == expected
    left = set(range(NUM_TOKENS))
    for frame, (kept, _) in zip(frames, expected, strict=True):
        gone = {token for token, state in enumerate(frame["states"]) if state == 0}
        assert gone == set(range(NUM_TOKENS)) - left
        left = set(kept)


def test_budgets_and_layers_are_those_of_the_schedules(page):
    plans = {plan["name"]: plan for plan in page.data["plans"]}
    assert plans["input"]["layers"] == [None]
    assert plans["input"]["budgets"] == [2, 4, 9, 12, 16, 24, 32, 36, 48, 72, 108, 144]
    assert plans["progressive"]["layers"] == [1, 3]
    for budget, schedule in zip(
        plans["progressive"]["budgets"], progressive_plan(NUM_TOKENS, 6).schedules, strict=True
    ):
        assert schedule.average(NUM_TOKENS, 6) == pytest.approx(budget, abs=0.06)
    assert page.data["largest"] == page.data["tokens"] == NUM_TOKENS


def test_categories_with_equal_settings_share_their_selections(page):
    groups = {each["name"]: each["group"] for each in page.data["categories"]}
    assert groups == {"general": 0, "ocr": 1, "scene": 2, "counting": 0}


def test_salience_before_the_llm_is_that_of_the_vision_tower(loaded, page):
    with apply_clasp(loaded.model, profile=PROFILE) as handle, torch.inference_mode():
        scores = handle.adapter.encode(loaded.model, inputs_of(loaded)).salience()[0]
    expected = (255 * (scores / scores.max()).sqrt()).round().to(torch.uint8).tolist()
    for rule in RULES:  # also for those that do not look at it
        [frame] = page.frames("input", rule, "general", 4)
        assert list(frame["salience"]) == expected


def test_coverage_before_the_llm_is_by_the_fused_features_of_the_category(loaded, page):
    with apply_clasp(loaded.model, profile=PROFILE) as handle, torch.inference_mode():
        vision = handle.adapter.encode(loaded.model, inputs_of(loaded))
    for category, weights in (("general", [0.2, 0.8]), ("ocr", [1.0, 0.0])):
        features = fuse_layers(vision.fused_layers, torch.tensor(weights))[0]
        [frame] = page.frames("input", "clasp", category, 4)
        assert_covers(frame, features)


def assert_covers(frame, features):
    """Check the coverage of a frame. ``features`` [tokens, D] are those of tokens still there."""
    states = torch.tensor(frame["states"])
    there = states > 0
    unit = torch.nn.functional.normalize(features.double(), dim=-1)
    expected = 255 * (unit @ unit[states[there] >= 2].T).amax(1).clamp(0, 1)
    difference = (torch.tensor(list(frame["coverage"]))[there] - expected).abs()
    assert float(difference.max()) < 0.6
    assert float(expected.min()) < 240  # the map has something to show


def test_coverage_by_means_is_that_of_the_means(loaded, page):
    """Of 144 tokens, 36 means are those of 2 x 2."""
    with apply_clasp(loaded.model, profile=PROFILE) as handle, torch.inference_mode():
        vision = handle.adapter.encode(loaded.model, inputs_of(loaded))
    features = fuse_layers(vision.fused_layers, torch.tensor([0.2, 0.8]))[0].double()
    means = torch.nn.functional.avg_pool2d(features.T.unflatten(1, (12, 12)), 2).flatten(1).T
    unit, of_means = (torch.nn.functional.normalize(each, dim=-1) for each in (features, means))
    expected = 255 * (unit @ of_means.T).amax(1).clamp(0, 1)
    [frame] = page.frames("input", "pool", "general", 7)
    assert float((torch.tensor(list(frame["coverage"])) - expected).abs().max()) < 0.6
    assert sum(state >= 2 for state in frame["states"]) == 36
    assert min(frame["coverage"]) < 250


def test_a_rule_that_averages_tokens_is_on_the_page_before_the_llm_only(page):
    names = [rule["name"] for rule in page.data["rules"]]
    assert [rule["pools"] for rule in page.data["rules"]] == [name == "pool" for name in names]
    for plan in page.data["plans"]:
        for name, frames in zip(names, plan["frames"], strict=True):
            assert len(frames) == (0 if (plan["name"], name) == ("progressive", "pool") else 3)


def test_maps_inside_the_llm_are_of_their_own_stage(loaded):
    """Nothing is dropped before the first stage, so the unpatched model has its features."""
    profile = replace(PROFILE, fuse_into="selection", format=2)
    html = explore_page(
        loaded, load_image(SCENE), SCENE, QUESTION, rules=("attention",), profile=profile
    )
    first, second = Page(html).frames("progressive", "attention", "general", 2)
    inputs = inputs_of(loaded)
    with torch.inference_mode():
        hidden = loaded.model(**inputs, output_hidden_states=True).hidden_states[1][0]
    is_image = inputs["input_ids"][0] == loaded.model.config.image_token_id
    assert_covers(first, hidden[is_image])
    # What the last layer before the second stage puts out, in the columns that the first one left.
    left = []
    layer = loaded.model.get_decoder().layers[2]
    hook = layer.register_forward_hook(lambda *given: left.append(given[2]))
    schedule = progressive_plan(NUM_TOKENS, 6).schedules[2]
    with apply_clasp(loaded.model, schedule=schedule, rule="attention", profile=profile) as handle:
        loaded.model.generate(**inputs, max_new_tokens=1, categories=["general"])
        columns = handle.last.stages[0].columns[0]
    hook.remove()
    assert_covers(second, left[0][0][is_image[columns]])
    assert first["salience"] != second["salience"]
    for frame in (first, second):
        pairs = list(zip(frame["states"], frame["salience"], strict=True))
        kept = [value for state, value in pairs if state >= 2]
        dropped = [value for state, value in pairs if state == 1]
        assert min(kept) >= max(dropped)  # the rule keeps the most salient of this stage
        assert max(kept) == 255
        covered = list(zip(frame["states"], frame["coverage"], strict=True))
        assert all(value == 255 for state, value in covered if state >= 2)
        assert all(value == 0 for state, value in covered if state == 0)
        assert any(0 < value < 255 for state, value in covered if state == 1)


def test_tokens_of_several_images_are_numbered_in_turn(loaded):
    prompt = PromptTokens(
        loaded.model, loaded.processor, inputs_of(loaded, 2), (NUM_TOKENS, NUM_TOKENS), PROFILE
    )
    plans = [
        replace(input_plan(NUM_TOKENS), schedules=(Schedule.input(9),), tokens=(9,)),
        replace(
            progressive_plan(NUM_TOKENS, 6), schedules=(Schedule({1: 40, 3: 0.1}),), tokens=(36,)
        ),
    ]
    result = explore(prompt, plans, ("clasp", "uniform"))
    for plan in plans:
        for rule in ("clasp", "uniform"):
            stages = result.of(plan.name, rule, "ocr", 0)
            expected = kept_by_the_model(loaded, plan.schedules[0], rule, "ocr", images=2)
            assert [(stage.kept, stage.pivots) for stage in stages] == expected
            # Coverage is by tokens of the same image: each image has kept tokens of its own.
            assert all(float(stage.coverage[stage.kept].min()) > 0.999 for stage in stages)


def test_progress_counts_every_selection(loaded):
    prompt = PromptTokens(loaded.model, loaded.processor, inputs_of(loaded), (NUM_TOKENS,), PROFILE)
    seen = []
    explore(prompt, [input_plan(NUM_TOKENS)], ("uniform",), lambda *done: seen.append(done))
    assert seen == [(done, 36) for done in range(37)]  # 3 groups of categories, 12 budgets


def test_nobody_watches_a_model_after_a_look_at_it(loaded):
    seen = []
    with apply_clasp(loaded.model, schedule=Schedule({1: 40, 3: 9})) as handle:
        with pytest.raises(RuntimeError, match="stop"), handle.watched(seen.append):
            loaded.model.generate(**inputs_of(loaded), max_new_tokens=1)
            raise RuntimeError("stop")
        assert [tuple(choice.selection.indices.shape) for choice in seen] == [(1, 40), (1, 9)]
        loaded.model.generate(**inputs_of(loaded), max_new_tokens=1)
        assert len(seen) == 2 and handle.selector.watch is None


# --- the file ---


def test_the_same_command_makes_the_same_file(loaded, tmp_path):
    files = [tmp_path / name for name in ("a.html", "b.html")]
    for file in files:
        result = clasp("explore", SCENE, QUESTION, "--rules", "clasp,random", "--out", file)
        assert result.exit_code == 0, result.output
    first, second = (file.read_bytes() for file in files)
    assert first == second
    assert f"Page: {files[0]} (" in result.stdout.replace(str(files[1]), str(files[0]))


def test_the_page_is_small(html):
    assert len(html.encode()) < 40_000 * len(RULES)


def test_the_page_refers_to_nothing_outside_of_it(html, page):
    for tag, name, value in page.attributes:
        if name in ("src", "href", "action", "data", "srcset", "poster"):
            assert value.startswith(("data:image/png;base64,", "#")), (tag, name)
    assert "link" not in page.tags and "iframe" not in page.tags
    assert set(re.findall(r"\bhttps?://[^\s\"'<]+", html)) == {"http://www.w3.org/2000/svg"}
    assert "@import" not in html and set(re.findall(r"url\(([^)]*)\)", html)) == {
        *("#hatch", "#kept", "#ramp")
    }


def test_the_policy_lets_only_the_pages_own_script_and_style_run(page):
    [policy] = [value for tag, name, value in page.attributes if "default-src" in (value or "")]
    rules = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    style, script = page.texts["style"][0], page.texts["script"][1]
    assert rules == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": f"'sha256-{digest(style)}'",
        "script-src": f"'sha256-{digest(script)}'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    # Such a policy blocks inline styles and handlers, so there must be none.
    names = {name for _, name, _ in page.attributes}
    assert not [name for name in names if name == "style" or name.startswith("on")]


def digest(text):
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


HOSTILE = (
    '</script><script>alert(1)</script><!-- <b> & "it\'s" $script ${x} \u2028 caf\u00e9 </title>'
)


def test_no_text_breaks_out_of_its_place(loaded, page):
    hostile = Page(
        explore_page(
            loaded,
            load_image(SCENE),
            "a folder/<img src=x onerror=alert(1)>.png",
            HOSTILE,
            rules=("uniform",),
            profile=replace(PROFILE, name="</script>"),
            progressive=False,
        )
    )
    assert hostile.texts["h1"] == [HOSTILE]
    assert hostile.texts["title"] == [f"{HOSTILE} - clasp explore"]
    assert hostile.tags.count("script") == 2
    assert sorted(hostile.tags) == sorted(page.tags)
    assert "<img src=x onerror=alert(1)>.png" in hostile.texts["span"]


def test_a_category_name_does_not_end_the_script(loaded):
    name = "</script><script>alert(1)//"
    profile = replace(PROFILE, categories={**PROFILE.categories, name: CategoryPolicy((1, 0), 0.5)})
    result = Page(
        explore_page(
            *(loaded, load_image(SCENE), SCENE, QUESTION),
            rules=("uniform",),
            profile=profile,
            progressive=False,
        )
    )
    assert [each["name"] for each in result.data["categories"]][-1] == name
    assert result.tags.count("script") == 2


def test_the_page_does_not_tell_where_its_maker_keeps_files(tmp_path):
    model = tmp_path / "secret folder" / "my model"
    shutil.copytree(tiny_vlm_path(), model)
    out = tmp_path / "page.html"
    options = ("--model", model, "--rules", "uniform", "--input-only", "--out", out)
    result = clasp("explore", SCENE, *options)
    assert result.exit_code == 0, result.output
    html = out.read_text(encoding="utf-8")
    assert "my model" in html and "secret folder" not in html
    assert "scene_5.png" in html and SCENE not in html


# --- the command ---


def test_without_a_question_the_category_is_general(tmp_path):
    assert Router().route([ANY_QUESTION]) == ["general"]
    out = tmp_path / "new folder" / "page.html"
    result = clasp("explore", SCENE, "--rules", "uniform", "--input-only", "--out", out)
    assert result.exit_code == 0, result.output
    made = Page(out.read_text(encoding="utf-8"))
    assert made.texts["h1"] == [ANY_QUESTION]
    assert made.data["category"] == "general"
    assert [plan["name"] for plan in made.data["plans"]] == ["input"]
    assert made.data["noProgressive"] == "Left out by --input-only."
    assert not result.stderr


def test_every_rule_is_on_the_page_by_default(monkeypatch, tmp_path):
    asked = {}

    def spied(*_, **options):
        asked.update(options)
        return "<!DOCTYPE html>"

    monkeypatch.setattr(command, "explore_page", spied)
    result = clasp("explore", SCENE, QUESTION, "--out", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    assert asked["rules"] == rule_names() and asked["progressive"] is True
    assert f"{len(rule_names())} rules" in result.stdout


def test_a_file_name_that_is_no_text_is_shown_as_far_as_it_is(loaded):
    name = os.fsdecode(b"a folder/caf\xe9.png")
    made = Page(
        explore_page(
            *(loaded, load_image(SCENE), name, QUESTION), rules=("uniform",), progressive=False
        )
    )
    assert "caf\ufffd.png" in made.texts["span"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["none.png"], 2, "IMAGE: there is no file none.png"),
        ([SCENE, " \n"], 2, "QUESTION must hold a word, got only blanks"),
        ([SCENE, "--rules", ""], 2, "--rules must name rules"),
        ([SCENE, "--rules", "clasp,fastv"], 2, "--rules must be rules, each one of clasp, "),
        ([SCENE, "--rules", "dart,dart"], 2, "--rules must name each rule once"),
        ([SCENE, "--out", ""], 2, "--out must name a file, got an empty argument"),
        ([SCENE, "--out", "page.png"], 1, "the suffix of a page must be .html or .htm"),
        ([SCENE, "--out", SCENE + "/page.html"], 1, "is no folder"),
        ([SCENE, "--profile", "none.json"], 2, "--profile: there is no file none.json"),
    ],
)
def test_a_wrong_command_line_is_refused_before_a_model_is_loaded(
    monkeypatch, arguments, code, said
):
    monkeypatch.setattr(loading, "load_model", lambda *_: pytest.fail("worked first"))
    result = clasp("explore", *arguments)
    assert result.exit_code == code
    assert said in message(result)
    assert result.stdout == ""


def test_a_question_with_an_image_token_is_refused():
    result = clasp("explore", SCENE, "What is <image>?")
    assert result.exit_code == 2
    assert "QUESTION must not contain '<image>'" in message(result)


def test_a_page_that_cannot_be_written_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(command, "explore_page", lambda *_, **__: "<!DOCTYPE html>")
    monkeypatch.setattr("pathlib.Path.write_text", full_disk)
    result = clasp("explore", SCENE, "--out", tmp_path / "page.html")
    assert result.exit_code == 1
    assert message(result) == f"Error: --out {tmp_path}/page.html cannot be written: No space left"


def full_disk(*_, **__):
    raise OSError(28, "No space left")


def test_tokens_without_known_places_are_refused_in_words(monkeypatch, tmp_path):
    def unknown(*_):
        raise picture.NoPicture("nobody knows")

    monkeypatch.setattr(command, "placed_tokens", unknown)
    result = clasp("explore", SCENE, "--out", tmp_path / "page.html")
    assert result.exit_code == 1
    assert "there can be no page for the bundled tiny LLaVA: nobody knows" in message(result)


def test_a_model_that_drops_nothing_inside_the_llm_has_a_page_that_says_so(loaded, monkeypatch):
    applied = PromptTokens.applied

    def refused(prompt, schedule, rule):
        if any(schedule.layers):
            raise ValueError("this decoder is recurrent")
        return applied(prompt, schedule, rule)

    monkeypatch.setattr(PromptTokens, "applied", refused)
    made = Page(explore_page(loaded, load_image(SCENE), SCENE, QUESTION, rules=("uniform",)))
    assert made.data["noProgressive"] == "Not with this model: this decoder is recurrent."
    assert len(made.data["plans"]) == 1


def test_a_large_picture_is_a_jpeg(loaded, html):
    from PIL import Image

    from clasp_kernels.explore.page import _data_uri

    noise = Image.effect_noise((600, 600), 90).convert("RGB")
    assert _data_uri(noise).startswith("data:image/jpeg;base64,")
    assert "data:image/png;base64," in html
