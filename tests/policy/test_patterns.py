"""Patterns of words: classes, alternatives, optional words, gaps, anchors and precedence."""

import pytest

from clasp_kernels.policy.patterns import PatternIndex, Rule

CLASSES = {"place": ["park", "street"], "function": ["the", "of", "is"]}


def index(*weighted, neutral=()):
    found = PatternIndex(CLASSES)
    for pattern, weight in weighted:
        assert found.add(pattern, Rule(pattern, "a", weight)) is None
    for pattern in neutral:
        found.add(pattern, Rule(pattern, None, 0.0))
    return found


def matched(found, text):
    words = ["^", *text.split(), "$"]
    return [(rule.pattern, words[start:end]) for _, _, start, end, rule in found.heaviest(words)]


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("what|which dog", ["what dog", "a which dog"], ["dog", "what a dog"]),
        ("in the? park", ["in park", "in the park"], ["in a park"]),
        ("in <place>", ["in park", "in street"], ["in dog", "in the park"]),
        ("in <place>|dog", ["in park", "in dog"], ["in cat"]),
        ("the ~ price", ["the price", "the a b c price"], ["the a b c d price", "the x of price"]),
        ("^read", ["read it"], ["i read"]),
        ("red$", ["is red"], ["red is"]),
        ("in <year>", [], ["in year"]),
    ],
)
def test_what_a_pattern_matches(pattern, matching, others):
    found = index((pattern, 1.0))
    assert all(matched(found, text) for text in matching)
    assert not any(matched(found, text) for text in others)


def test_a_search_does_not_depend_on_earlier_ones():
    found = index(("the ~ price", 1.0), ("the dog", 2.0))
    texts = ["the big dog", "the dog", "the new price", "the dog price", "dog"]
    first = [matched(found, text) for text in texts]
    assert [matched(found, text) for text in reversed(texts)] == first[::-1]
    assert first[3] == [("the dog", ["the", "dog"])]


def test_the_heaviest_match_wins_then_the_longest_then_the_earliest():
    assert matched(index(("a b", 1), ("b c", 2)), "a b c") == [("b c", ["b", "c"])]
    assert matched(index(("a b", 2), ("b c d", 2)), "a b c d") == [("b c d", ["b", "c", "d"])]
    assert matched(index(("a b", 2), ("b c", 2)), "a b c") == [("a b", ["a", "b"])]
    assert matched(index(("a b", 9), neutral=["b c"]), "a b c") == [("b c", ["b", "c"])]


def test_the_longest_match_from_the_first_word_on():
    found = index(("a", 5), ("a b", 1), ("b c", 9))
    assert [match[4].pattern for match in found.longest(["a", "b", "c"])] == ["a b"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("~ dog", '"~" must be between words'),
        ("dog ~", '"~" must be between words'),
        ("dog!", "cannot read 'dog!'"),
        ("in <zoo>", "there is no class <zoo>; classes: <place>, <function>"),
        ("dog?", "a pattern must hold at least one word"),
    ],
)
def test_a_bad_pattern_is_named(pattern, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        index((pattern, 1.0))


def test_a_repeated_pattern_returns_the_other_rule():
    found = index(("what dog", 1.0), ("what|which cat", 1.0))
    again = found.add("what the? dog", Rule("what the? dog", "b", 1.0))
    assert again is not None
    assert again.pattern == "what dog"
