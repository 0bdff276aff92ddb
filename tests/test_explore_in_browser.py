"""The page of ``clasp explore`` in a real browser: controls, texts, and the cells it shows."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from browser import DOWN, END, HOME, LEFT, RIGHT, UP, Browser, browser, missing
from PIL import Image
from running import QUESTION, SCENE
from test_explore import (
    HOSTILE,
    NUM_TOKENS,
    PROFILE,
    RULES,
    Page,
    inputs_of,
    kept_by_the_model,
)

from clasp_kernels.bundled import tiny_vlm_path
from clasp_kernels.cli.explore import explore_page
from clasp_kernels.cli.loading import load_image, load_model
from clasp_kernels.explore import PromptTokens, explore, input_plan, progressive_plan
from clasp_kernels.explore.page import PageText
from clasp_kernels.explore.page import page as make_page
from clasp_kernels.models import apply_clasp
from clasp_kernels.policy import CategoryPolicy, Profile

pytestmark = [
    pytest.mark.deep,
    pytest.mark.skipif(bool(missing()), reason=f"not on the path: {', '.join(missing())}"),
]
INPUT = input_plan(NUM_TOKENS)
PROGRESSIVE = progressive_plan(NUM_TOKENS, 6)


@pytest.fixture(scope="module")
def loaded():
    return load_model(None, "cpu")


@pytest.fixture(scope="module")
def file(loaded, tmp_path_factory):
    html = explore_page(loaded, load_image(SCENE), SCENE, QUESTION, rules=RULES, profile=PROFILE)
    path = tmp_path_factory.mktemp("page") / "explore.html"
    path.write_text(html, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def page(window: Browser, file):
    """Open the page afresh; afterwards nothing may have been written to the console."""
    window.resize(1280, 900)
    window.open(file)
    yield window
    assert window.complaints() == []


def cells(page):
    """Return (kept, pivots, gone) by the cells of the picture."""
    found = page.run(
        "return [...document.querySelectorAll('.cell')].map("
        "cell => [Number(cell.dataset.token), cell.dataset.state])"
    )
    assert [token for token, _ in found] == list(range(NUM_TOKENS))
    by_state = {
        state: [token for token, of in found if of == state]
        for state in ("pivot", "completion", "gone")
    }
    kept = sorted(by_state["pivot"] + by_state["completion"])
    return kept, by_state["pivot"], by_state["gone"]


def choose(page, select, name):
    """Choose in a list with the keyboard."""
    names = page.run(
        "return [...document.getElementById(arguments[0]).options].map(one => one.value)", select
    )
    page.press(f"#{select}", HOME + DOWN * names.index(name))
    assert page.run("return document.getElementById(arguments[0]).value", select) == name


def test_the_page_opens_at_the_routed_category_and_the_usual_budget(page, loaded):
    [(kept, pivots)] = kept_by_the_model(loaded, INPUT.schedules[7], "clasp", "ocr")
    assert cells(page) == (kept, pivots, [])
    assert page.text("#summary") == "36 of 144 tokens kept (25 %): 27 pivots, 9 completion."
    assert page.text("#budget-text") == "36 of 144 tokens (25 %)"
    assert page.run("return document.getElementById('category').value") == "ocr"
    assert page.run("return document.getElementById('stage-field').hidden") is True
    assert page.run("return document.title") == f"{QUESTION} - clasp explore"


def test_arrow_keys_move_the_budget(page, loaded):
    page.press("#budget", RIGHT)
    assert page.text("#summary").startswith("48 of 144 tokens kept (33 %): 36 pivots, 12")
    page.press("#budget", LEFT * 4)
    [(kept, pivots)] = kept_by_the_model(loaded, INPUT.schedules[4], "clasp", "ocr")
    assert cells(page) == (kept, pivots, [])
    assert page.text("#summary").startswith("16 of 144 tokens kept (11 %): 12 pivots, 4 completion")
    assert page.run("return document.getElementById('budget').ariaValueText || "
                    "document.getElementById('budget').getAttribute('aria-valuetext')") == (
        "16 of 144 tokens, 11 %"
    )  # fmt: skip
    page.press("#budget", END)
    assert page.text("#summary").startswith("144 of 144 tokens kept (100 %)")
    page.press("#budget", HOME)
    assert page.text("#summary").startswith("2 of 144 tokens kept (1.4 %)")


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_shows_what_a_patched_model_keeps(page, loaded, rule):
    choose(page, "rule", rule)
    [(kept, pivots)] = kept_by_the_model(loaded, INPUT.schedules[7], rule, "ocr")
    assert cells(page) == (kept, pivots, [])
    if rule == "pool":
        assert page.text("#summary") == (
            "144 tokens averaged into 36 (25 %). "
            "A frame marks the token whose place the mean of its group takes."
        )
        assert page.text("#legend-completion") == "takes the mean of its group"
        assert page.text("#dropped-means") == "averaged into another"
    elif not pivots:
        assert page.text("#summary").endswith("this rule marks none as pivots.")
    assert page.run("return document.getElementById('legend-pivot').hidden") == (not pivots)


def test_a_rule_that_works_only_before_the_llm_cannot_be_chosen_inside_it(page):
    assert page.text("#plan-note") == "Only before the LLM: pool."
    disabled = (
        "return [...document.querySelectorAll('#plans input, #rule option')]"
        ".filter(one => one.disabled).map(one => one.value)"
    )
    assert page.run(disabled) == []
    page.run("document.querySelectorAll('#plans input')[1].click()")
    assert page.run(disabled) == ["pool"]
    page.run("document.querySelectorAll('#plans input')[0].click()")
    choose(page, "rule", "pool")
    assert page.run(disabled) == ["1"]
    choose(page, "rule", "clasp")
    assert page.run(disabled) == []


def test_a_category_shows_its_own_selection_and_those_with_the_same_settings(page, loaded):
    choose(page, "category", "scene")
    [(kept, pivots)] = kept_by_the_model(loaded, INPUT.schedules[7], "clasp", "scene")
    assert len(kept) == 18  # its budget is scaled by a half
    assert cells(page) == (kept, pivots, [])
    assert page.text("#category-note") == ""
    choose(page, "category", "counting")
    assert page.text("#category-note") == "Same settings: general, counting."
    [(kept, pivots)] = kept_by_the_model(loaded, INPUT.schedules[7], "clasp", "counting")
    assert cells(page) == (kept, pivots, [])


def test_a_category_that_makes_no_difference_cannot_be_chosen(window, loaded, tmp_path):
    # Layers are alike, so that coverage is; only the rule clasp has pivots.
    bundled = Profile.load(tiny_vlm_path() / "clasp_profile.json")
    layers = bundled.categories["ocr"].layer_weights
    profile = replace(
        bundled,
        categories={
            name: CategoryPolicy(layers, pivot_ratio=0.5 if name == "ocr" else 0.0)
            for name in bundled.categories
        },
    )
    path = tmp_path / "page.html"
    path.write_text(
        explore_page(
            *(loaded, load_image(SCENE), SCENE, QUESTION),
            rules=("clasp", "random"),
            profile=profile,
            progressive=False,
        )
    )
    window.open(path)
    disabled = "return document.getElementById('category').disabled"
    assert window.run(disabled) is False
    choose(window, "rule", "random")
    assert window.run(disabled) is True
    said = "The category makes no difference to random here."
    assert window.text("#category-note") == said
    noted = window.run(
        "return document.getElementById('category').getAttribute('aria-describedby')"
    )
    assert noted == "category-note"
    assert window.run("return document.querySelector('input[name=plan][value=\"1\"]').disabled")
    assert window.text("#plan-note") == "Left out by --input-only."
    assert window.complaints() == []


def test_the_stages_of_a_progressive_schedule_are_shown_one_by_one(page, loaded):
    page.press('input[name="plan"]:checked', DOWN)
    stages = kept_by_the_model(loaded, PROGRESSIVE.schedules[1], "clasp", "ocr")
    (first, first_pivots), (last, last_pivots) = stages
    gone = sorted(set(range(NUM_TOKENS)) - set(first))
    assert cells(page) == (last, last_pivots, gone)
    text = page.text("#summary")
    assert text.startswith(f"After layer 3: {len(last)} of 144 tokens kept")
    assert text.endswith(f"Dropped here: {len(first) - len(last)}, before: {len(gone)}.")
    assert page.text("#budget-text") == "mean 36 of 144 (25 %)"
    page.click('input[name="stage"][value="0"]')
    assert cells(page) == (first, first_pivots, [])
    page.press("#budget", RIGHT)
    [(first, pivots), _] = kept_by_the_model(loaded, PROGRESSIVE.schedules[2], "clasp", "ocr")
    assert cells(page) == (first, pivots, [])
    page.press('input[name="plan"]:checked', DOWN)  # around to the other schedule and its budget
    assert page.text("#summary").startswith("36 of 144 tokens kept")


def test_a_heat_map_colours_every_token_by_its_value(page, loaded):
    with apply_clasp(loaded.model, profile=PROFILE) as handle:
        scores = handle.adapter.encode(loaded.model, inputs_of(loaded)).salience()[0]
    read = (
        "return [...document.querySelectorAll('.cell')].map(cell => [Number(cell.dataset.value),"
        " getComputedStyle(cell.querySelector('.heat')).display, "
        "cell.querySelector('.heat').getAttribute('fill')])"
    )
    assert {display for _, display, _ in page.run(read)} == {"none"}
    page.press('input[name="heat"]:checked', DOWN)
    found = page.run(read)
    expected = (255 * (scores / scores.max()).sqrt()).round().int().tolist()
    assert [value for value, _, _ in found] == expected
    assert {display for _, display, _ in found} == {"inline"}
    assert found[expected.index(255)][2] == "rgb(253,231,37)"
    assert "attention" in page.text("#heat-note")
    kept, _, _ = cells(page)
    page.click('input[name="heat"][value="2"]')
    found = page.run(read)
    assert {found[token][0] for token in kept} == {255}
    assert min(value for value, _, _ in found) < 255
    assert "cosine similarity" in page.text("#heat-note")


@pytest.mark.parametrize("heat", ["salience", "coverage"])
def test_each_stage_has_heat_maps_of_its_own(page, file, heat):
    frames = Page(file.read_text(encoding="utf-8")).frames("progressive", "clasp", "ocr", 1)
    page.click('input[name="plan"][value="1"]')
    page.press('input[name="heat"]:checked', DOWN if heat == "salience" else DOWN * 2)
    for stage, frame in enumerate(frames):
        page.click(f'input[name="stage"][value="{stage}"]')
        shown = page.run(
            "return [...document.querySelectorAll('.cell')].map(cell => Number(cell.dataset.value))"
        )
        assert shown == list(frame[heat])


def test_what_was_dropped_before_has_no_heat(page):
    page.click('input[name="plan"][value="1"]')
    page.click('input[name="heat"][value="2"]')
    _, _, gone = cells(page)
    displays = page.run(
        "return [...document.querySelectorAll('.cell[data-state=gone] .heat')].map("
        "heat => getComputedStyle(heat).display)"
    )
    assert gone and displays == ["none"] * len(gone)


def test_pivots_and_completion_differ_by_more_than_colour(page):
    def drawn(state):
        return page.run(
            "const cell = document.querySelector(`.cell[data-state=${arguments[0]}]`);"
            "return [...cell.children].filter(one => getComputedStyle(one).display !== 'none')"
            ".map(one => [one.getAttribute('class'), one.getAttribute('stroke-dasharray')])",
            state,
        )

    pivot, completion = (dict(drawn(state)) for state in ("pivot", "completion"))
    assert "corner" in pivot and pivot["frame pivot"] is None
    assert "corner" not in completion and completion["frame completion"]


def test_the_page_speaks_to_a_screen_reader(page):
    tree = page.tools("Accessibility.getFullAXTree")["nodes"]
    named = {
        (node["role"]["value"], node.get("name", {}).get("value"))
        for node in tree
        if not node["ignored"]
    }
    assert {
        ("slider", "Budget"),
        ("combobox", "Rule"),
        ("combobox", "Category"),
        ("radio", "Before the LLM"),
        ("radio", "Salience"),
        ("heading", QUESTION),
        ("image", "scene_5.png, as the model sees it"),
        ("application", "Tokens; the arrow keys go from one to the next"),
    } <= named
    live = page.run("return document.getElementById('summary').getAttribute('aria-live')")
    assert live == "polite"
    described = page.run(
        "return document.getElementById('picture').getAttribute('aria-describedby')"
    )
    assert described == "summary"


def test_everything_can_be_reached_with_the_tab_key(page):
    names = []
    for _ in range(8):
        page.tools("Input.dispatchKeyEvent", type="keyDown", key="Tab", windowsVirtualKeyCode=9)
        page.tools("Input.dispatchKeyEvent", type="keyUp", key="Tab", windowsVirtualKeyCode=9)
        names.append(
            page.run(
                "const e = document.activeElement;"
                "return [e.id || e.name || e.tagName, getComputedStyle(e).outlineStyle]"
            )
        )
    assert [name for name, _ in names][:7] == [
        "tokens",
        "budget",
        "rule",
        "category",
        "plan",
        "heat",
        "SUMMARY",
    ]
    assert {outline for _, outline in names[:7]} == {"solid"}


@pytest.mark.parametrize("width", [320, 400, 820, 1280])
def test_nothing_is_wider_than_the_window(page, width):
    page.resize(width, 800)
    page.click('input[name="plan"][value="1"]')
    assert page.run("return document.documentElement.scrollWidth") <= width
    picture = page.run("return document.getElementById('picture').getBoundingClientRect().width")
    assert picture > min(360, width) - 50


def test_dark_and_light_follow_the_system(page):
    seen = {}
    for scheme in ("light", "dark"):
        page.media(prefers_color_scheme=scheme)
        seen[scheme] = page.run("return getComputedStyle(document.body).backgroundColor")
    assert seen == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 22, 26)"}
    page.media(prefers_color_scheme="light", prefers_reduced_motion="reduce")
    durations = page.run(
        "return getComputedStyle(document.querySelector('.hit')).transitionDuration"
    )
    assert durations == "0s"
    page.media()


def test_a_token_under_the_pointer_shows_its_values(page):
    page.run(
        "document.querySelector('.cell[data-state=pivot] .hit').dispatchEvent("
        "new PointerEvent('pointermove', {bubbles: true}))"
    )
    assert ": pivot. Salience " in page.text("#readout") and "coverage 1.00" in page.text(
        "#readout"
    )
    page.press("#budget", LEFT)  # then these are no longer its values
    assert page.text("#readout").startswith("Point at a token")


def test_arrow_keys_read_token_after_token(page):
    _, pivots, _ = cells(page)
    side = 12
    page.press("#tokens", HOME)
    for keys, token in [
        *[(RIGHT * 2, 2), (DOWN, 2 + side), (LEFT * 3, side - 1), (UP, side - 1)],
        *[(END, NUM_TOKENS - 1), (RIGHT, NUM_TOKENS - 1), (DOWN, NUM_TOKENS - 1)],
        *[(UP, NUM_TOKENS - 1 - side), (HOME, 0), (LEFT, 0), (RIGHT * pivots[3], pivots[3])],
    ]:
        page.press("#tokens", keys)
        assert page.text("#readout").startswith(f"Token {token}: ")
        marked = "return [...document.querySelectorAll('.cursor')].map(one => one.dataset.token)"
        assert page.run(marked) == [str(token)]
    assert ": pivot. Salience " in page.text("#readout")
    assert page.text("#readout").endswith("coverage 1.00.")
    live = page.run("return document.getElementById('readout').getAttribute('aria-live')")
    assert live == "polite"


def test_a_budget_of_several_images_counts_for_each(window, loaded, tmp_path):
    prompt = PromptTokens(loaded.model, loaded.processor, inputs_of(loaded, 2), (144, 144), PROFILE)
    text = PageText("Two", "two.png", "it", "ocr", "so", "Left out.")
    boxes = [
        (token, (token % 24, token // 24, token % 24 + 1, token // 24 + 1)) for token in (0, 5)
    ]
    path = tmp_path / "page.html"
    exploration = explore(prompt, [INPUT], ("uniform",))
    path.write_text(make_page(exploration, Image.new("RGB", (24, 12)), boxes, text))
    window.open(path)
    assert window.text("#budget-text") == "36 of 144 per image (25 %)"
    said = "72 of 288 tokens kept (25 %); this rule marks none as pivots."
    assert window.text("#summary") == f"{said} 72 of the kept have no place in the picture."
    assert window.complaints() == []


def test_a_hostile_question_is_text(window, loaded, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(
        explore_page(
            *(loaded, load_image(SCENE), "<img src=x onerror=alert(1)>.png", HOSTILE),
            rules=("uniform",),
            progressive=False,
        ),
        encoding="utf-8",
    )
    window.open(path)
    assert window.run("return document.querySelector('h1').textContent") == HOSTILE
    assert window.run("return document.querySelectorAll('script').length") == 2
    assert window.run("return document.querySelectorAll('img').length") == 0
    assert window.text("#summary").startswith("36 of 144")
    assert window.complaints() == []


def test_the_policy_stops_what_is_not_of_the_page(window, file, tmp_path):
    """The policy is a second wall: what got in anyway neither runs nor fetches."""
    path = tmp_path / "injected.html"
    injected = "<script>document.title = 'owned'</script><img src='https://example.org/x.png'>"
    path.write_text(file.read_text(encoding="utf-8").replace("<footer>", f"<footer>{injected}"))
    window.open(path)
    assert window.run("return document.title") != "owned"
    said = " ".join(window.complaints())
    assert "script-src" in said and "img-src" in said


def test_screenshots(page, tmp_path):
    """Save what people see; CLASP_SCREENSHOTS names a folder to keep it in."""
    folder = Path(os.environ.get("CLASP_SCREENSHOTS", tmp_path))
    page.screenshot(folder / "light.png", whole=True)
    page.media(prefers_color_scheme="dark")
    page.screenshot(folder / "dark.png", whole=True)
    page.media()
    page.click('input[name="heat"][value="2"]')
    page.screenshot(folder / "coverage.png", whole=True)
    page.click('input[name="plan"][value="1"]')
    page.click('input[name="heat"][value="0"]')
    page.screenshot(folder / "progressive.png", whole=True)
    page.resize(400, 800)
    page.screenshot(folder / "narrow.png", whole=True)
    pictures = {path.name: path.read_bytes() for path in folder.glob("*.png")}
    assert len(pictures) >= 5 and len(set(pictures.values())) == len(pictures)
