"""The default router: categories, reasons, speed and errors."""

import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clasp_kernels.policy import CATEGORIES, Route, Router, route_prompts

# Written by hand, none copied. Rules and word weights were tuned on the rows marked "dev", and the
# rules alone on those marked "rules". The rows marked "held_out" were only scored, apart from two
# choices that ``training/router/train.py`` names. One author wrote the rows of style "fresh"
# without sight of the rules, divided them at random into "rules" and "held_out", and then mended
# the rules. All other held-out rows come from other authors. The rows of style "kinds" were
# written later, to find more kinds of questions that the rules miss.
LABELLED = [
    json.loads(line)
    for line in Path(__file__).with_name("prompts.jsonl").read_text(encoding="utf-8").splitlines()
]
TINY_RULES = {
    "format": 1,
    "fallback": "other",
    "categories": {"a": {"apple": 1, "red apple": 2}, "b": {"bear": 1, "^big": 3, "berry$": 2}},
    "neutral": ["apple pie"],
}


def accuracy(rows):
    routed = Router().route([row["prompt"] for row in rows])
    right = [got == row["category"] for got, row in zip(routed, rows, strict=True)]
    return sum(right) / len(right)


def test_labelled_set_is_large_balanced_and_without_repeats():
    assert len(LABELLED) >= 600
    assert len({row["prompt"] for row in LABELLED}) == len(LABELLED)
    for split in ("dev", "held_out"):
        categories = [row["category"] for row in LABELLED if row["split"] == split]
        assert set(categories) == set(CATEGORIES)
        assert min(map(categories.count, set(CATEGORIES) - {"general"})) >= 15


def test_no_prompt_is_in_both_halves():
    """Up to case and punctuation. The word weights have seen more prompts of the tuning half."""
    more = Path(__file__).parents[2] / "training" / "router" / "prompts.jsonl"
    rows = LABELLED + [json.loads(line) for line in more.read_text("utf-8").splitlines()]
    splits = {"dev": set(), "rules": set(), "held_out": set()}
    for row in rows:
        splits[row["split"]].add(" ".join(re.findall(r"[^\W_]+", row["prompt"].casefold())))
    assert all(splits.values())
    assert not (splits["dev"] | splits["rules"]) & splits["held_out"]


# The floors of "held_out" are the targets. `benchmarks/router.py` prints what is reached.
@pytest.mark.parametrize(("split", "floor"), [("dev", 0.95), ("rules", 0.95), ("held_out", 0.93)])
def test_accuracy_on_labelled_prompts(split, floor):
    assert accuracy([row for row in LABELLED if row["split"] == split]) >= floor


@pytest.mark.parametrize("category", CATEGORIES)
def test_no_category_is_left_behind(category):
    held_out = [r for r in LABELLED if r["split"] == "held_out" and r["category"] == category]
    assert accuracy(held_out) >= 0.85


def seconds_to_route(prompts, repeats=9):
    """Return the best of several runs in CPU time, so that other processes do not count."""
    router, seconds = Router(), []
    for _ in range(repeats):
        start = time.process_time()
        router.route(prompts)
        seconds.append(time.process_time() - start)
    return min(seconds)


@pytest.mark.parametrize(
    "prompt",
    [
        "USER: " + "<image>" * 2880 + "\nWhere is the dog? ASSISTANT:",
        "word and another thing. " * 5000 + " where is this?",
        "A. " * 20000,
        "'" * 50000 + "?" * 50000,
        "<" * 50000,
        "USER:" * 10000,
        " " * 100000 + "?",
    ],
)
def test_cost_does_not_explode_with_length(prompt):
    assert seconds_to_route([prompt]) < 0.5  # quadratic cost would take many seconds


@pytest.mark.parametrize(
    ("prompt", "category"),
    [
        ("What is the color of the ring?", "attribute"),
        ("What shape is the red object?", "attribute"),
        ("What is the orange object?", "attribute"),
        ("Is there an orange star?", "attribute"),
        ("How many crosses are in the picture?", "counting"),
        ("How many red objects are there?", "counting"),
        ("Where is the triangle?", "spatial"),
        ("In which corner is the square?", "spatial"),
        ("Is the circle left or right of the star?", "spatial"),
        ("Is the circle above or below the star?", "spatial"),
        ("What does the sign say?", "ocr"),
        ("What is written on the sign?", "ocr"),
        ("Read the text on the sign.", "ocr"),
        ("Describe the scene.", "scene"),
        ("What is the setting?", "scene"),
        ("What kind of scene is this?", "scene"),
    ],
)
def test_questions_of_the_tiny_model(prompt, category):
    assert Router().route([prompt, f"USER: <image>\n{prompt} ASSISTANT:"]) == [category] * 2


@pytest.mark.parametrize(
    "prompt",
    [
        "how many dogs are there",
        "HOW MANY DOGS ARE THERE?!",
        "  How   many\tdogs... are there ?",
        "“How” many dogs are there? ".replace("“How”", "How"),
        "How many dogs\nare there?",
    ],
)
def test_case_spacing_and_punctuation_do_not_matter(prompt):
    assert Router().route([prompt]) == ["counting"]


def test_options_do_not_decide():
    prompt = (
        "What colour is it?\nA. how many\nB. where, left of the sign\nC. describe why\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert Router().explain(prompt) == Route("attribute", "matched 'what colour is'")


def test_what_is_asked_outweighs_what_names_the_thing():
    router = Router()
    assert router.route(["What colour is the car that is to the left of the sign?"]) == [
        "attribute"
    ]
    assert router.route(['Does the poster say "how many"?']) == ["ocr"]
    assert router.route(["Is the car to the left of the bus red?"]) == ["attribute"]
    assert router.route(["Is the red car to the left of the bus?"]) == ["spatial"]


def test_patterns_use_classes_gaps_and_spelling():
    router = Router(
        {
            "format": 2,
            "spelling": {"whats": "what is"},
            "classes": {"fact": ["origin", "habitat"], "function": ["the", "of"]},
            "categories": {"a": {"what is the ~ <fact>": 3}, "b": {"origin": 2}},
        }
    )
    prompts = ["Whats the natural habitat?", "what is the cultural Origin", "the origin"]
    assert router.route(prompts) == ["a", "a", "b"]
    assert router.explain(prompts[0]) == Route("a", "matched 'what is the natural habitat'")


def test_context_counts_less_than_the_clause_that_asks():
    rules = {
        "format": 2,
        "classes": {"ask": ["where"]},
        "openings": ["please"],
        "asides": ["answer"],
        "categories": {"a": {"apple": 4, "answer": 9}, "b": {"^where": 2}},
        "neutral": ["red apple"],
    }
    router = Router(rules)
    assert router.route(["I like an apple. Please, where is it? Answer in one word."]) == ["b"]
    assert router.route(["where is the apple", "where is the red apple"]) == ["a", "b"]


@pytest.mark.parametrize(
    ("prompt", "category"),
    [
        ("Where does the fruit on the plate originally come from?", "knowledge"),
        ("What is the habitat of this animal?", "knowledge"),
        ("Which law explains the motion of the ball?", "knowledge"),
        ("Is this healthy?", "knowledge"),
        ("What is the expiry date?", "ocr"),
        ("Which country had the highest rate in 2012?", "ocr"),
        ("How many points did the home team score?", "ocr"),
        ("What is behind the counter?", "spatial"),
        ("What stands between the two houses?", "spatial"),
        ("What kind of event is this?", "scene"),
        ("Is it raining?", "scene"),
        ("Are there fewer than four cups?", "counting"),
        ("Could you help me with this picture?", "general"),
        ("my plant has spots, what is wrong with it", "knowledge"),
        ("Find the value of y in the drawing.", "knowledge"),
        ("What is the area of the circle?", "knowledge"),
        ("Which continent is shaded?", "knowledge"),
        ("If every crate weighs 9 kg, how much do the crates weigh together?", "knowledge"),
        ("What is the connection between the two women?", "knowledge"),
        ("What does the gauge measure?", "knowledge"),
        ("How many voters were asked, as shown in the chart?", "ocr"),
        ("What does the caption under the drawing say?", "ocr"),
        ("Convert the equation to LaTeX.", "ocr"),
        ("What does the blue curve stand for?", "ocr"),
        ("Find the woman carrying a basket.", "spatial"),
        ("What is in the foreground?", "spatial"),
        ("Is the kettle on the stove?", "spatial"),
        ("Give an elaborate description of the picture.", "scene"),
        ("What are the main elements of the photo?", "scene"),
        ("What are these folks up to?", "scene"),
        ("What colour is the van behind the fence?", "attribute"),
        ("What is this bird called?", "attribute"),
        ("Please reply in Dutch from now on.", "general"),
        ("Can you rephrase your last reply?", "general"),
        ("Tell me a joke.", "general"),
        ("Who trained you?", "general"),
    ],
)
def test_kinds_of_questions(prompt, category):
    assert Router().route([prompt]) == [category]


@pytest.mark.parametrize(
    ("prompt", "category"),
    [
        ("waht colour is the car", "attribute"),
        ("what is behnd the couch", "spatial"),
        ("how mnay ducks", "counting"),
        ("descirbe the phtoo", "scene"),
    ],
)
def test_slips_of_the_keyboard(prompt, category):
    assert Router().route([prompt]) == [category]


def test_a_slip_is_no_word_of_the_rules():
    rules = Router().to_dict()
    words = {word for found in rules["classes"].values() for word in found}
    wrong = {"what", "where", "there", "many", "people", "behind", "between", "below", "number"}
    assert not words & {slip for slip, word in rules["spelling"].items() if word in wrong}


def test_explain_names_the_words_that_decided():
    router = Router(TINY_RULES)
    assert router.explain("a red apple") == Route("a", "matched 'red apple'")
    assert router.explain("red apple, apple") == Route("a", "matched 'red apple', 'apple'")
    assert router.explain("big bear apple") == Route("b", "matched 'big'")
    assert router.explain("nothing") == Route("other", "no phrase of the rules matched")


def test_longest_phrase_wins_and_uses_up_its_words():
    router = Router(TINY_RULES)
    assert router.route(["apple bear bear"]) == ["b"]
    assert router.route(["red apple bear"]) == ["a"]
    assert router.route(["apple pie bear"]) == ["b"]
    assert router.route(["apple pie"]) == ["other"]


def test_anchored_phrases_match_only_at_their_end():
    router = Router(TINY_RULES)
    assert router.route(["Big red apple", "red apple, big", "berry", "berry apple"]) == [
        "b",
        "a",
        "b",
        "a",
    ]


def test_ties_go_to_the_category_listed_first():
    assert Router(TINY_RULES).route(["bear apple"]) == ["a"]
    swapped = {**TINY_RULES, "categories": dict(reversed(TINY_RULES["categories"].items()))}
    assert Router(swapped).route(["bear apple"]) == ["b"]


def test_relative_clause_counts_half():
    router = Router({"format": 1, "categories": {"a": {"apple": 3}, "b": {"bear": 4}}})
    assert router.route(["apple bear", "apple that bear", "that apple bear"]) == ["b", "a", "b"]
    # At the start of a question, "which" is not a relative pronoun.
    assert router.route(["Which apple that bear?"]) == ["a"]


@given(st.lists(st.text(max_size=200), max_size=5))
def test_any_text_gets_a_known_category_and_the_same_one_again(prompts):
    router = Router()
    routed = router.route(prompts)
    assert len(routed) == len(prompts)
    assert set(routed) <= set(router.categories)
    assert router.route(prompts) == routed == [router.explain(p).category for p in prompts]


def test_default_categories_are_the_documented_ones():
    assert set(Router().categories) == set(CATEGORIES)


def test_json_round_trip(tmp_path):
    for router in (Router(), Router(TINY_RULES)):
        router.save(tmp_path / "router.json")
        loaded = Router.load(tmp_path / "router.json")
        assert loaded == router
        prompts = [row["prompt"] for row in LABELLED]
        assert loaded.route(prompts) == router.route(prompts)
    assert Router(TINY_RULES) != Router()


def with_rules(**changes):
    return {**TINY_RULES, **changes}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([], "router rules must be a JSON object, got list"),
        (with_rules(format=3), "format must be 1 or 2, the versions this package reads, got 3"),
        (with_rules(format=True), "format must be 1 or 2, .* got True"),
        ({"categories": {}}, "format must be 1 or 2, .* got None"),
        (with_rules(extra=1), "router rules has unknown field.*'extra'; allowed: format, "),
        (with_rules(fallback=""), "fallback must be a category name, got ''"),
        (with_rules(classes={}), "router rules has unknown field.*'classes'"),
        ({"format": 2, "classes": {"x": "y"}}, "classes.x must be a list of words, got 'y'"),
        ({"format": 2, "spelling": {"x": 1}}, r"spelling\['x'\] must be a word, got 1"),
        ({"format": 2, "openings": "x"}, "openings must be a list of phrases, got 'x'"),
        (
            {"format": 2, "categories": {"a": {"in <zoo>": 1}}},
            "categories.a: phrase 'in <zoo>': there is no class <zoo>; classes: none",
        ),
        (with_rules(neutral="one"), "neutral must be a list of phrases, got 'one'"),
        (with_rules(neutral=["?"]), "neutral: a phrase must hold at least one word, got '?'"),
        (with_rules(neutral=[3]), "neutral: a phrase must hold at least one word, got 3"),
        (with_rules(categories=[1]), "categories must be a JSON object, got list"),
        (with_rules(categories={}), "categories must hold at least one category"),
        (with_rules(categories={"a": 1}), "categories.a must be a JSON object, got int"),
        (
            with_rules(categories={"a": {"x": 0}}),
            r"categories.a\['x'\] must be a number above 0, got 0",
        ),
        (
            with_rules(categories={"a": {"x": "2"}}),
            r"categories.a\['x'\] must be a number above 0, got '2'",
        ),
        (
            with_rules(categories={"a": {"x": 1}, "b": {"X!": 1}}),
            "categories.b: phrase 'X!' repeats 'x' of a",
        ),
        (
            with_rules(neutral=["apple"]),
            "neutral: phrase 'apple' repeats 'apple' of a",
        ),
    ],
)
def test_bad_rules_are_named(rules, message):
    with pytest.raises(ValueError, match=message):
        Router(rules)


def test_a_bad_rules_file_is_named(tmp_path):
    path = tmp_path / "rules.json"
    path.write_text('{"format": 3}')
    with pytest.raises(ValueError, match=r"rules\.json: format must be 1 or 2"):
        Router.load(path)
    path.write_text('{"format": 1,\n oops}')
    with pytest.raises(ValueError, match=r"rules\.json is not valid JSON: .* line 2, column 2"):
        Router.load(path)


def test_prompts_must_be_a_list_of_strings():
    with pytest.raises(TypeError, match=r"got one string; pass \[prompt\]"):
        Router().route("What is this?")
    with pytest.raises(TypeError, match=r"prompts\[1\] must be a string, got int"):
        Router().route(["fine", 3])


def test_any_callable_can_route():
    assert route_prompts(Router(), ["Where is it?"]) == ["spatial"]
    assert route_prompts(lambda prompts: ("x",) * len(prompts), ["a", "b"]) == ["x", "x"]


@pytest.mark.parametrize(
    ("router", "message"),
    [
        (lambda prompts: [], "router gave 0 categories for 2 prompts"),
        (lambda prompts: ["ocr", "maps"], "one of ocr, scene .* got 'maps' for prompt 1"),
        (lambda prompts: [None, "ocr"], "one of ocr, scene .* got None for prompt 0"),
    ],
)
def test_a_callable_that_answers_wrongly_is_named(router, message):
    with pytest.raises(ValueError, match=message):
        route_prompts(router, ["a", "b"], known=["ocr", "scene"])


@pytest.mark.parametrize("answer", [None, "ocr", b"ocr", 3])
def test_a_router_that_does_not_answer_a_list_is_named(answer):
    def my_router(prompts):
        return answer

    class Mine:
        __call__ = staticmethod(my_router)

    for router, name in ((my_router, "my_router"), (Mine(), "Mine")):
        with pytest.raises(TypeError, match=f"router {name} must give a list .* got {answer!r}"):
            route_prompts(router, ["abc", "b", "c"], known=["ocr"])
