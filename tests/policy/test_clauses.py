"""Clauses: which words are left, and how much each clause counts."""

import pytest

from clasp_kernels.policy.clauses import ClauseReader
from clasp_kernels.policy.patterns import PatternIndex, Rule


def reader():
    lists = {
        "openings": ["please", "and", "can you tell me"],
        "asides": ["answer with"],
        "neutral": ["in the picture"],
    }
    indexes = {}
    for name, patterns in lists.items():
        indexes[name] = PatternIndex({"function": ["the", "in"]})
        for pattern in patterns:
            indexes[name].add(pattern, Rule(pattern, None, 0.0))
    spelling = {"whats": "what is", "colour": "color"}
    return ClauseReader(spelling, frozenset(["what", "is", "describe"]), **indexes)


def read(text):
    return [(" ".join(words[1:-1]), weight) for words, weight in reader().read(text)]


@pytest.mark.parametrize(
    ("text", "clauses"),
    [
        ("What is it?", [("what is it", 1.0)]),
        ("whats the Colour", [("what is the color", 1.0)]),
        ("What's the dog's name?", [("what is the dog name", 1.0)]),
        ("My plant is ill, what is it?", [("my plant is ill", 0.35), ("what is it", 1.0)]),
        ("Nice. Describe the dog.", [("nice", 0.35), ("describe the dog", 1.0)]),
        ("Please can you tell me what is red", [("what is red", 1.0)]),
        ("What is it? Answer with one word.", [("what is it", 1.0)]),
        ("Answer with one word.", [("answer with one word", 1.0)]),
        ("Is the dog in the picture red?", [("is the dog red", 1.0)]),
        ("In which room?", [("in which room", 1.0)]),
        ("It is 3.5 m in 1998", [("it is <number> m in <year>", 1.0)]),
        ("a dog, a cat", [("a dog", 1.0), ("a cat", 1.0)]),
        ("a dog, a cat?", [("a dog", 1.0), ("a cat", 1.0)]),
        ("Please", []),
        ("?!", []),
        ("", []),
    ],
)
def test_clauses_and_their_weights(text, clauses):
    assert read(text) == clauses
