"""The learned table of words: sums, explanations, round trip and errors."""

import pytest

from clasp_kernels.policy import CATEGORIES, Router
from clasp_kernels.policy.clauses import Clause
from clasp_kernels.policy.word_weights import WordWeights, default_words

TABLE = {
    "categories": ["a", "b", "c"],
    "unit": 0.5,
    "bias": "0 1 -1",
    "weights": {"bear": "8 -4 0", "red": "-2 -30000 6"},
}


def added(*clauses):
    scores = dict.fromkeys("abc", 0.0)
    WordWeights(TABLE).add([Clause(words.split(), weight) for words, weight in clauses], scores)
    return scores


def test_words_add_their_weights():
    assert added(("bear x", 1.0)) == {"a": 2.0, "b": -1.0, "c": 0.0}
    assert added(("bear red", 1.0)) == {"a": 1.5, "b": -7501.0, "c": 1.5}
    assert added(("x y", 1.0)) == {"a": 0.0, "b": 0.0, "c": 0.0}
    assert WordWeights(TABLE).bias == {"a": 0.0, "b": 0.5, "c": -0.5}


def test_long_clauses_and_those_beside_the_question_count_less():
    assert added(("bear " + "x " * 15, 1.0))["a"] == 1.0
    assert added(("bear", 0.5), ("bear", 1.0))["a"] == 3.0


def test_leads_name_the_words_that_speak_for_a_category():
    leads = WordWeights(TABLE).leads([Clause(["bear", "red", "x"], 1.0)], "a")
    assert [word for _, word in leads] == ["red", "bear"]
    assert WordWeights(TABLE).leads([Clause(["bear"], 1.0)], "d") == []


def test_a_router_with_words_decides_by_them_and_says_so(tmp_path):
    rules = {"format": 2, "categories": {"a": {"apple": 1}, "b": {"berry": 1}, "c": {"c": 1}}}
    router = Router({**rules, "words": TABLE})
    assert router.route(["bear", "berry", ""]) == ["a", "b", "general"]
    assert router.explain("bear").reason == "matched the word 'bear'"
    router.save(tmp_path / "router.json")
    assert Router.load(tmp_path / "router.json") == router


def test_the_default_table_covers_the_default_categories():
    words = default_words()
    assert set(words.categories) == set(CATEGORIES)
    assert WordWeights(words.to_dict()).to_dict() == words.to_dict()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extra": 1}, "words has unknown field.*'extra'"),
        ({"categories": "abc"}, "words.categories must be a list of categories, got 'abc'"),
        ({"unit": "x"}, "words.unit must be a number, got 'x'"),
        ({"bias": "0 1"}, "words.bias must be 3 integers in a string, got '0 1'"),
        ({"weights": {"x": "0 1 z"}}, r"words.weights\['x'\] must be 3 integers .* got '0 1 z'"),
        ({"weights": {"x": [0, 1, 2]}}, r"words.weights\['x'\] must be 3 integers"),
        ({"weights": 3}, "words.weights must be a JSON object, got int"),
    ],
)
def test_a_bad_table_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        WordWeights({**TABLE, **changes})


def test_words_must_be_about_categories_of_the_router():
    with pytest.raises(ValueError, match=r"words\.categories must be among a, general, got b, c"):
        Router({"format": 2, "categories": {"a": {"x": 1}}, "words": TABLE})
